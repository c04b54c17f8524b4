r"""Scores settings of the sampler on held-out procedural clips.

  python -m benchmarks.sampling.quality --num_clips=40 \
      --setting='num_steps=50' --setting=fast --setting=draft \
      --setting='solver=ab2 num_steps=5'

A setting is the name of a sampling preset, fields of `config.sampling`
separated by blanks, or both. All rows use the same clips and noise. It prints
the evaluations of the network per clip, CPU seconds per clip and the metrics
with 95 % bootstrap intervals; then, for every row except the first, the paired
differences to the first. With --field the decoder's field is compared with the
true distance on a grid instead of meshes, which takes seconds instead of
minutes.

  python -m benchmarks.sampling.quality --config=configs/small.py \
      --setting=num_steps=5 --num_frames=64 --together=16,64 --num_clips=20

samples clips that last four times as long as those of the training, in pieces
of 16 frames, each by itself, and all 64 at once.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import json
import time
from typing import Any

from absl import flags
import jax
from ml_collections import config_flags
import numpy as np

from benchmarks.sampling import field_scores
from benchmarks.sampling import settings as settings_lib
from launch import program
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation import held_out
from sculpt4d_jax.inference import mirror
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.inference import sampling as sampling_lib
from sculpt4d_jax.io import atomic
from sculpt4d_jax.training import preset as preset_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/tiny.py", "Preset; see configs/base.py."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of weights.")
_SETTINGS = flags.DEFINE_multi_string(
  "setting", ["num_steps=50", "fast", "draft"], "A row; see above."
)
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 40, "Held-out clips.")
_FIRST = flags.DEFINE_integer("first", 0, "Seed of the first of them.")
_NUM_FRAMES = flags.DEFINE_integer(
  "num_frames", None, "Frames of a clip, at the preset's rate.", lower_bound=1
)
_TOGETHER = flags.DEFINE_list(
  "together", None, "Frames that are sampled at once, a row each; default: all."
)
_FIELD = flags.DEFINE_bool("field", False, "Scores of the field, no meshes.")
_RESOLUTION = flags.DEFINE_integer("resolution", 48, "Cells of the meshes.")
_JSON = flags.DEFINE_string("json", None, "File for all numbers, if wanted.")

# Coarser than in launch.evaluate, which takes 15 seconds per clip.
CONVENTIONS = geometry_metrics.Conventions(
  num_points=5_000, iou_resolution=40, jitter_resolution=24
)
_CLIPS_AT_A_TIME = 8

# Scores a clip, by its index, from its latents.
_Scorer = Callable[[int, np.ndarray], evaluator.SequenceMetrics]


@dataclasses.dataclass
class Row:
  """A setting's scores and cost.

  Attributes:
    evaluations: Passes of the network a clip.
    seconds: CPU seconds of sampling a clip, without compiling.
    summary: Metrics of all clips.
  """

  evaluations: int
  seconds: float
  summary: evaluator.Summary


def main(unused_argv: Sequence[str]) -> None:
  """Runs the program."""
  preset = preset_lib.from_config(_CONFIG.value)
  log = run_log.RunLog()
  folder = model_lib.weights_folder(preset.weights, _CHECKPOINT.value)
  settings = {
    text: settings_lib.parse(text, dataclasses.asdict(preset.sampling))
    for text in _SETTINGS.value
  }
  num_frames = _NUM_FRAMES.value or preset.sampling.num_frames
  pieces = _pieces(num_frames)
  loaded = next(iter(settings.values()))
  model = model_lib.Sculpt4D.load(preset.model, folder, sampling=loaded)
  clips = held_out.make_clips(
    range(_FIRST.value, _FIRST.value + _NUM_CLIPS.value),
    num_frames,
    preset.data.sizes,
    log,
    seconds=num_frames / preset.data.num_frames,
    has_truth=not _FIELD.value,
  )
  score = _field_scorer if _FIELD.value else _mesh_scorer
  scorer = score(preset, model, clips)
  rows = {}
  for (text, sampling), together in itertools.product(settings.items(), pieces):
    name = text if len(pieces) == 1 else f"{text}, {together} frames at once"
    if _kept(sampling) != _kept(loaded):
      model = model_lib.Sculpt4D.load(preset.model, folder, sampling=sampling)
      loaded = sampling
    rows[name] = run(model, clips, sampling, scorer, log, together)
    print(_line(name, rows[name]), flush=True)
    if _JSON.value:  # After every row, because rows take long.
      content = json.dumps(_plain(rows), indent=1)
      atomic.write_bytes(_JSON.value, content.encode())
  print("\n" + "\n".join(table(rows)))


def run(
  model: model_lib.Sculpt4D,
  clips: Sequence[held_out.HeldOutClip],
  sampling: sampling_lib.SamplingConfig,
  scorer: _Scorer,
  log: run_log.RunLog,
  together: int,
) -> Row:
  """Samples all clips, some at a time, and scores them.

  Args:
    model: Networks with weights.
    clips: The clips.
    sampling: Settings of the sampler.
    scorer: Scores a clip.
    log: Shows progress.
    together: Frames that are sampled at once; it divides those of a clip.
  """
  noise = np.stack(
    [
      model.draw_noise(sampling.seed + i, len(clip.images), sampling.noise)
      for i, clip in enumerate(clips)
    ]
  )
  # Pieces of a clip are sampled as clips.
  pieces_a_clip = len(noise[0]) // together
  sample = functools.partial(
    _sample, model, noise=noise, sampling=sampling, together=together
  )
  images = [clip.images for clip in clips]
  whole, seconds = sample(images)
  if sampling.mirror:
    mirrored, more = sample([mirror.pictures(x) for x in images])
    whole, seconds = np.stack([whole, mirrored], 2), seconds + more
  scores = [
    scorer(index, frames)
    for index, frames in enumerate(log.each("score", whole))
  ]
  return Row(
    sampling.num_evaluations * pieces_a_clip,
    seconds * pieces_a_clip,
    evaluator.summarise(scores),
  )


def _sample(
  model: model_lib.Sculpt4D,
  images: Sequence[np.ndarray],
  *,
  noise: np.ndarray,
  sampling: sampling_lib.SamplingConfig,
  together: int,
) -> tuple[np.ndarray, float]:
  """Latents of all clips [B, F, N, C], and the median seconds of a piece."""
  context = np.stack([model.encode(x) for x in images])
  context, pieces = (
    x.reshape(-1, together, *x.shape[2:]) for x in (context, noise)
  )
  latents, seconds = [], []
  for first in range(0, len(pieces), _CLIPS_AT_A_TIME):
    some = slice(first, first + _CLIPS_AT_A_TIME)
    inputs = context[some], pieces[some]
    if len(inputs[0]) != _CLIPS_AT_A_TIME or not first:
      model.denoise(*inputs, sampling)  # Compiles.
    start = time.process_time()
    latents.extend(model.denoise(*inputs, sampling))
    seconds.append((time.process_time() - start) / len(inputs[0]))
  whole = np.reshape(latents, (len(images), -1, *latents[0].shape[1:]))
  return whole, float(np.median(seconds))


def _kept(sampling: sampling_lib.SamplingConfig) -> tuple[str, bool, bool]:
  """How a model keeps its weights, from when they are loaded on."""
  return sampling.weights, sampling.stream_layers, sampling.offload


def _pieces(num_frames: int) -> list[int]:
  """Frames that are sampled at once, by row."""
  try:
    pieces = [int(text) for text in _TOGETHER.value or [num_frames]]
  except ValueError:
    pieces = []
  if not pieces or any(size < 1 or num_frames % size for size in pieces):
    raise UserError(
      f"--together={','.join(_TOGETHER.value)}: expected numbers that divide the"
      f" {num_frames} frames of a clip."
    )
  return pieces


def _mesh_scorer(
  preset: preset_lib.Preset,
  model: model_lib.Sculpt4D,
  clips: Sequence[held_out.HeldOutClip],
) -> _Scorer:
  surface = dataclasses.replace(preset.surface, resolution=_RESOLUTION.value)

  def score(index: int, latents: np.ndarray) -> evaluator.SequenceMetrics:
    clip = clips[index]
    meshes, _ = pipeline.extract_meshes(
      model,
      latents,
      surface,
      placed=pipeline.placement(model, clip.images),
    )
    return evaluator.evaluate_sequence(
      meshes, clip.truth, CONVENTIONS, name=clip.name
    )

  return score


def _field_scorer(
  preset: preset_lib.Preset,
  model: model_lib.Sculpt4D,
  clips: Sequence[held_out.HeldOutClip],
) -> _Scorer:
  band = preset.vae_training.task.field_band
  truth = [field_scores.true_fields(clip.clip) for clip in clips]

  def score(index: int, latents: np.ndarray) -> evaluator.SequenceMetrics:
    clip = clips[index]
    placement = pipeline.placement(model, clip.images)
    predicted = field_scores.fields(model, latents, band, placement)
    return field_scores.sequence_metrics(predicted, truth[index], clip.name)

  return score


def _line(name: str, row: Row) -> str:
  cells = [
    f"{metric} {_interval(estimate, 4)}"
    for metric, estimate in row.summary.estimates.items()
    if not np.isnan(estimate.mean)
  ]
  return f"{name}: {row.evaluations} evaluations, {'; '.join(cells)}"


def table(rows: Mapping[str, Row]) -> list[str]:
  """Two tables in Markdown: the rows, and their differences to the first."""
  metrics = [
    m
    for m in evaluator.METRICS
    if not all(np.isnan(r.summary.estimates[m].mean) for r in rows.values())
  ]
  lines = [
    f"| setting | evaluations | CPU s a clip | {' | '.join(metrics)} |",
    "|---" * (3 + len(metrics)) + "|",
  ]
  for name, row in rows.items():
    cells = [_interval(row.summary.estimates[m], 4) for m in metrics]
    lines.append(
      f"| {name} | {row.evaluations} | {row.seconds:.2f} |"
      f" {' | '.join(cells)} |"
    )
  first, *others = rows
  lines += ["", f"| less {first} | {' | '.join(metrics)} |"]
  lines.append("|---" * (1 + len(metrics)) + "|")
  for name in others:
    cells = [
      _interval(
        evaluator.paired_difference(
          rows[name].summary, rows[first].summary, metric
        ),
        4,
        sign="+",
      )
      for metric in metrics
    ]
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return lines


def _interval(estimate: evaluator.Estimate, digits: int, sign: str = "") -> str:
  form = f"{sign}.{digits}f"
  return (
    f"{estimate.mean:{form}} [{estimate.low:{form}}, {estimate.high:{form}}]"
  )


def _plain(rows: Mapping[str, Row]) -> dict[str, Any]:
  return {
    name: {
      "evaluations": row.evaluations,
      "seconds": row.seconds,
      "device": jax.devices()[0].device_kind,
      **evaluator.to_json({name: row.summary}, CONVENTIONS)["methods"][name],
    }
    for name, row in rows.items()
  }


if __name__ == "__main__":
  program.run(main)
