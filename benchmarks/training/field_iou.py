"""IoU of a model's fields with the truth, on coarse grids without meshes."""

from collections.abc import Sequence
import dataclasses

import jax
import numpy as np

from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.training.tasks import vae as vae_task


@dataclasses.dataclass(frozen=True)
class Clip:
  """A clip with its truth.

  Attributes:
    images: uint8 [F, S, S, 3].
    masks: uint8 [F, S, S], 255 on the object.
    surface: Rows of the true surface [F, P, 7], uniform ones first.
    num_uniform: Number of uniform rows among them.
    points: Places at which the field is compared [F, Q, 3].
    inside: Whether those points are inside, bool [F, Q].
  """

  images: np.ndarray
  masks: np.ndarray
  surface: np.ndarray
  num_uniform: int
  points: np.ndarray
  inside: np.ndarray


def score(
  model: model_lib.Sculpt4D,
  clips: Sequence[Clip],
  settings: model_lib.SamplingConfig,
  log: run_log.RunLog,
) -> dict[str, list[float]]:
  """Mean IoU over the frames of every clip, by row of the comparison."""
  rows = {"round trip": [], "sampled": [], "other pictures": []}
  sampled = []
  for clip in log.each("sample", clips):
    sampled.append(model.sample(clip.images, settings, masks=clip.masks))
  for number, clip in enumerate(log.each("score", clips)):
    encoded = _encoded(model, clip)
    rows["round trip"].append(iou(model, encoded, clip))
    rows["sampled"].append(iou(model, sampled[number], clip))
    other = sampled[(number + 1) % len(clips)]
    rows["other pictures"].append(iou(model, other, clip))
  return rows


def _encoded(model: model_lib.Sculpt4D, clip: Clip) -> np.ndarray:
  """Latents of the true surfaces [F, N, C], without noise."""
  inputs, queries = vae_task.select_clip_rows(
    jax.random.key(0), clip.surface[None], model.vae_config, clip.num_uniform
  )
  # Without noise: the mean.
  channels = model.vae_config.latent_channels
  still = np.zeros((model.vae_config.num_latents, channels), np.float32)
  return np.stack(
    [
      model.encode_surface(np.asarray(x), np.asarray(q), still)
      for x, q in zip(inputs[0], queries[0], strict=True)
    ]
  )


def iou(model: model_lib.Sculpt4D, latents: np.ndarray, clip: Clip) -> float:
  """Mean over the frames; a frame without truth or prediction counts 0."""
  found = []
  for frame, points, inside in zip(
    latents, clip.points, clip.inside, strict=True
  ):
    predicted = model.field(frame)(points) > 0
    both = (predicted & inside).sum()
    found.append(both / max((predicted | inside).sum(), 1))
  return float(np.mean(found))


def describe(title: str, rows: dict[str, list[float]]) -> str:
  """A line of the table: means with 95 % bootstrap intervals over clips."""
  cells = [title, str(len(rows["round trip"]))]
  for values in rows.values():
    if not len(values):
      cells.append("")
      continue
    estimate = evaluator.estimate_mean(np.asarray(values))
    cells.append(evaluator.format_estimate(estimate, digits=3))
  return f"| {' | '.join(cells)} |"
