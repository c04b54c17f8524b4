"""Held-out clips sampled while the DiT is trained: metrics and pictures.

The clips, their noise and the sampler's settings are the same at every look, so
that curves and pictures can be compared. The first process samples, on one of
its devices, and tells the others the numbers; they wait for it.
"""

from collections.abc import Mapping
import concurrent.futures
import dataclasses
from typing import Any

from flax import nnx
import jax
from jax.experimental import multihost_utils
import ml_collections
import numpy as np

from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation import held_out
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import preview
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import metrics as metrics_lib

METRICS = (*evaluator.METRICS, "empty_frames")


@dataclasses.dataclass(frozen=True)
class SampledConfig:
  """What is sampled, and when.

  Attributes:
    every: Steps between looks; 0 never looks.
    num_clips: The first held-out procedural clips.
    num_steps: Of the sampler.
    resolution: Cells of the surface's grid along an axis.
    num_points: Points a surface for Chamfer distance and F-Score.
  """

  every: int
  num_clips: int
  num_steps: int
  resolution: int
  num_points: int

  def __post_init__(self):
    if self.every < 0 or self.num_clips < 1:
      raise ValueError(
        f"samples.every={self.every} must not be negative and"
        f" samples.num_clips={self.num_clips} at least 1."
      )


class SampledClips:
  """Looks at a run: samples its clips, scores and shows them."""

  def __init__(
    self,
    options: SampledConfig,
    config: ml_collections.ConfigDict,
    vae: shape_vae.ShapeVAE,
    scale: float,
  ):
    """Sets up; the clips are made at the first look.

    Args:
      options: What is sampled.
      config: The preset.
      vae: The trained autoencoder.
      scale: Of the latents that the DiT is trained on.
    """
    self.every = options.every
    self._options = options
    self._config = config
    graphdef, params = nnx.split(vae)
    vae_config = dataclasses.replace(vae.config, scale_factor=scale)
    rescaled = nnx.eval_shape(
      lambda: shape_vae.ShapeVAE(vae_config, rngs=nnx.Rngs(0))
    )
    self._vae = nnx.merge(nnx.split(rescaled)[0], params)
    self._model = None
    self._clips = None
    sampling = config.sampling.to_dict() | {"num_steps": options.num_steps}
    self._sampling = model_lib.SamplingConfig(**sampling)
    surface = config.surface.to_dict()
    surface["resolution"] = options.resolution
    surface["min_resolution"] = min(
      surface["min_resolution"], options.resolution
    )
    self._surface = pipeline.SurfaceConfig(**surface)
    self._conventions = geometry_metrics.Conventions(
      num_points=options.num_points, iou_resolution=32, jitter_resolution=16
    )

  def look(
    self, step: int, params: Mapping[str, Any], writer: metrics_lib.Writer
  ) -> dict[str, float]:
    """Samples with the averaged parameters; means over the clips.

    Metrics have names that start with "sample/"; pictures go to the writer.
    """
    values = np.zeros(len(METRICS))
    if jax.process_index() == 0:
      # A thread of its own: in it no mesh is in use.
      with concurrent.futures.ThreadPoolExecutor(1) as pool:
        scores, sheets = pool.submit(self._sample, params).result()
      values = _means(scores)
      for clip, sheet in zip(self._clips, sheets):
        writer.write_picture(step, f"sample/{clip.name}", sheet)
    if jax.process_count() > 1:
      values = multihost_utils.broadcast_one_to_all(values)
    named = zip(METRICS, map(float, values))
    return {f"sample/{name}": value for name, value in named}

  def _sample(self, params):
    if self._clips is None:
      self._clips = self._make_clips()
    model = self._with_weights(params)
    scores, sheets = [], []
    for clip in self._clips:
      meshes = held_out.sample_meshes(
        model, clip, self._sampling, self._surface
      )
      scores.append(
        evaluator.evaluate_sequence(
          meshes, clip.truth, self._conventions, name=clip.name
        )
      )
      sheets.append(preview.contact_sheet(meshes, clip.images, tile_size=128))
    return scores, sheets

  def _make_clips(self):
    data = self._config.data.to_dict()
    names = {
      field.name for field in dataclasses.fields(clip_records.RecordSizes)
    }
    sizes = {name: value for name, value in data.items() if name in names}
    first = data["held_out_seed"]
    return held_out.make_clips(
      range(first, first + self._options.num_clips),
      self._sampling.num_frames,
      clip_records.RecordSizes(**sizes),
      run_log.RunLog(progress=False),
    )

  def _with_weights(self, params):
    """The model with these parameters, compiled once for all looks."""
    if self._model is None:
      modules = {"vae": self._vae}
      for name in ("image_encoder", "dit"):
        kind, part = model_lib.parts(self._config.model)[name]
        module = nnx.eval_shape(lambda: kind(part, rngs=nnx.Rngs(0)))
        modules[name] = nnx.merge(nnx.split(module)[0], params[name])
      self._model = model_lib.Sculpt4D(
        **modules, offload=self._sampling.offload
      )
    else:
      self._model.set_weights(params["image_encoder"], params["dit"])
    return self._model


def _means(scores) -> np.ndarray:
  means = [score.means() for score in scores]
  values = [
    np.nanmean([mean[name] for mean in means] or [np.nan])
    for name in evaluator.METRICS
  ]
  return np.array([*values, sum(score.num_empty for score in scores)], float)
