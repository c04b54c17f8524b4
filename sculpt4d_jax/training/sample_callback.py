"""Held-out clips sampled while the DiT is trained: metrics and pictures.

The clips, their noise and the sampler's settings are always the same, so that
curves and pictures can be compared. The first process samples, on one of its
devices, and sends the metrics to the others, which wait.
"""

from collections.abc import Mapping, Sequence
import concurrent.futures
import dataclasses
from typing import Any

from flax import nnx
import jax
from jax.experimental import multihost_utils
import numpy as np

from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation import held_out
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import preview
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.models import networks
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import metric_writers
from sculpt4d_jax.training import preset as preset_lib

METRICS = (*evaluator.METRICS, "empty_frames")


class SampledClips:
  """Callback that samples clips, scores and shows them."""

  def __init__(
    self,
    preset: preset_lib.Preset,
    vae: shape_vae.ShapeVAE,
    scale: float,
  ):
    """Sets up; the clips are made at the first call.

    Args:
      preset: The preset; `dit_training.samples` says what is sampled.
      vae: The trained autoencoder.
      scale: Scale of the latents that the DiT is trained on.
    """
    options = preset.dit_training.samples
    self.every = options.every
    self._options = options
    self._preset = preset
    params = nnx.state(vae)
    vae_config = dataclasses.replace(vae.config, scale_factor=scale)
    graphdef, _ = networks.abstract(shape_vae.ShapeVAE, vae_config)
    self._vae = nnx.merge(graphdef, params)
    self._model = None
    self._clips = None
    self._sampling = dataclasses.replace(
      preset.sampling, num_steps=options.num_steps
    )
    self._surface = dataclasses.replace(
      preset.surface,
      resolution=options.resolution,
      min_resolution=min(preset.surface.min_resolution, options.resolution),
    )
    self._conventions = geometry_metrics.Conventions(
      num_points=options.num_points, iou_resolution=32, jitter_resolution=16
    )

  def look(
    self, step: int, params: Mapping[str, Any], writer: metric_writers.Writer
  ) -> dict[str, float]:
    """Samples with the averaged parameters; means over the clips.

    Metrics have names that start with "sample/"; pictures go to the writer.
    """
    values = np.zeros(len(METRICS))
    if jax.process_index() == 0:
      # In a new thread no device mesh is active, so one device samples.
      with concurrent.futures.ThreadPoolExecutor(1) as pool:
        scores, sheets = pool.submit(self._sample, params).result()
      values = _means(scores)
      for clip, sheet in zip(self._clips, sheets):
        writer.write_picture(step, f"sample/{clip.name}", sheet)
    if jax.process_count() > 1:
      values = multihost_utils.broadcast_one_to_all(values)
    named = zip(METRICS, map(float, values))
    return {f"sample/{name}": value for name, value in named}

  def _sample(
    self, params: Mapping[str, Any]
  ) -> tuple[list[evaluator.SequenceMetrics], list[np.ndarray]]:
    if self._clips is None:
      self._clips = self._make_clips()
    model = self._with_weights(params)
    scores, sheets = [], []
    for clip in self._clips:
      meshes = held_out.sample_meshes(
        model, clip, self._sampling, self._surface
      )
      # Nothing sets shapes upright here: the view head is trained later.
      truth = list(map(clip.placement.mesh, clip.truth))
      scores.append(
        evaluator.evaluate_sequence(
          meshes, truth, self._conventions, name=clip.name
        )
      )
      sheets.append(preview.contact_sheet(meshes, clip.images, tile_size=128))
    return scores, sheets

  def _make_clips(self) -> list[held_out.HeldOutClip]:
    first = self._preset.data.held_out_seed
    return held_out.make_clips(
      range(first, first + self._options.num_clips),
      self._sampling.num_frames,
      self._preset.data.sizes,
      run_log.RunLog(progress=False),
    )

  def _with_weights(self, params: Mapping[str, Any]) -> model_lib.Sculpt4D:
    """The model with these parameters, compiled once for all calls."""
    if self._model is None:
      modules = {"vae": self._vae}
      for name in ("image_encoder", "dit"):
        graphdef, _ = networks.abstract(*self._preset.model.parts()[name])
        modules[name] = nnx.merge(graphdef, params[name])
      self._model = model_lib.Sculpt4D(
        **modules, offload=self._sampling.offload
      )
    else:
      self._model.set_weights(params["image_encoder"], params["dit"])
    return self._model


def _means(scores: Sequence[evaluator.SequenceMetrics]) -> np.ndarray:
  means = [score.means() for score in scores]
  values = [
    np.nanmean([mean[name] for mean in means] or [np.nan])
    for name in evaluator.METRICS
  ]
  return np.array([*values, sum(score.num_empty for score in scores)], float)
