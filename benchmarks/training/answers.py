r"""Compares a preset's model with retrieval baselines.

  python -m benchmarks.training.answers --config=configs/small.py \
      --checkpoint=runs/small/weights --num_clips=40

It uses held-out procedural clips in the preset's format. Scored are the model,
the same weights frame by frame, the mean shape of training clips, and the
training clip that is nearest by its pictures or by its truth; then the paired
differences of the model to each, with 95 % bootstrap intervals. Without
weights, only the baselines are scored.
"""

from collections.abc import Callable, Sequence
import dataclasses

from absl import flags
from ml_collections import config_flags
import numpy as np

from launch import program
from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation import held_out
from sculpt4d_jax.evaluation import retrieval
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.training import preset as preset_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/small.py", "Preset; see configs/base.py."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of weights.")
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 40, "Held-out clips.")
_FIRST = flags.DEFINE_integer("first", 0, "Seed of the first of them.")
_NUM_TRAINING = flags.DEFINE_integer(
  "num_training_clips", 512, "Training clips that answers are looked up in."
)
_OCCUPANCY_CELLS = 24

Meshes = list[mesh_lib.TriangleMesh]
Answer = Callable[[held_out.HeldOutClip], Meshes]


def main(unused_argv: Sequence[str]) -> None:
  """Runs the program."""
  preset = preset_lib.from_config(_CONFIG.value)
  data, log = preset.data, run_log.RunLog()
  clips = held_out.make_clips(
    range(_FIRST.value, _FIRST.value + _NUM_CLIPS.value),
    data.num_frames,
    data.sizes,
    log,
  )
  answers = _answers(preset, log)
  if preset.weights or _CHECKPOINT.value:
    answers = _model_answers(preset) | answers
  conventions = geometry_metrics.Conventions()
  scores = {name: [] for name in answers}
  for clip in log.each("score", clips):
    for name, answer in answers.items():
      scores[name].append(
        evaluator.evaluate_sequence(
          answer(clip), clip.truth, conventions, name=clip.name
        )
      )
  rows = {name: evaluator.summarise(s) for name, s in scores.items()}
  print(evaluator.format_table(rows, markdown=True))
  if "model" in rows and len(clips) > 1:
    _print_differences(rows)
  print(f"\nConventions: {conventions.describe()}.")


def _model_answers(preset: preset_lib.Preset) -> dict[str, Answer]:
  folder = model_lib.weights_folder(preset.weights, _CHECKPOINT.value)
  model = model_lib.Sculpt4D.load(
    preset.model, folder, sampling=preset.sampling
  )
  alone = dataclasses.replace(preset.sampling, temporal_mode="none")
  sample = held_out.sample_meshes
  return {
    "model": lambda c: sample(model, c, preset.sampling, preset.surface),
    "per frame": lambda c: sample(model, c, alone, preset.surface),
  }


def _answers(
  preset: preset_lib.Preset, log: run_log.RunLog
) -> dict[str, Answer]:
  """The mean shape, and training clips retrieved by picture and by truth."""
  data = preset.data
  count = min(data.num_clips, _NUM_TRAINING.value)
  made, pictures, occupied = [], [], []
  small = dataclasses.replace(
    data.sizes, num_uniform=16, num_sharp=0, num_near=1, num_volume=1
  )
  for number in log.each("training clips", range(count)):
    clip = data.sizes.make_clip(data.first_seed + number, data.num_frames)
    made.append(clip)
    pictures.append(clip_records.make_record(clip, small).images)
    occupied.append(_occupied(clip))
  average = held_out.mean_shape(made)

  def by_picture(clip: held_out.HeldOutClip) -> Meshes:
    number = retrieval.nearest_by_picture(clip.images, pictures)
    return held_out.truth_meshes(made[number])

  def by_truth(clip: held_out.HeldOutClip) -> Meshes:
    number = retrieval.nearest_by_truth(_occupied(clip.clip), occupied)
    return held_out.truth_meshes(made[number])

  return {
    "mean shape": lambda clip: average * clip.clip.num_frames,
    "nearest by picture": by_picture,
    "nearest by truth": by_truth,
  }


def _occupied(clip: solids.SyntheticClip) -> np.ndarray:
  """Whether the centres of a grid's cells are inside, bool [F, P]."""
  points = geometry_metrics.grid_points(_OCCUPANCY_CELLS).astype(np.float32)
  points = np.broadcast_to(points, (clip.num_frames, *points.shape))
  solid = clip_records.trim(clip.solid)
  return np.asarray(clip_records.distances(solid, points)) > 0


def _print_differences(rows: dict[str, evaluator.Summary]) -> None:
  print("\nmodel - other, means over clips with 95 % intervals:")
  for name, row in rows.items():
    if name == "model":
      continue
    for metric in evaluator.METRICS:
      found = evaluator.paired_difference(rows["model"], row, metric)
      print(
        f"  {name:20s} {metric:8s} {found.mean:+.4f} [{found.low:+.4f},"
        f" {found.high:+.4f}]"
      )


if __name__ == "__main__":
  program.run(main)
