r"""Tells what limits a model: its autoencoder, its transformer, or the data.

  python -m benchmarks.training.limits --config=configs/small.py \
      --checkpoint=runs/small/weights --data=data/characters

IoU of fields on coarse grids, without meshes, so that it takes minutes:

  round trip      truth -> latents -> field: what a perfect transformer reaches
  sampled         pictures -> latents -> field
  other pictures  the same samples, scored against the next clip: what comes of
                  the average object alone

of procedural clips, and of records that launch.prepare_data made, those trained
on and those held out. A round trip far above the samples says that the
transformer needs more training; samples of trained clips far above those of
held-out ones say that there are too few clips.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses

from absl import flags
import jax
from ml_collections import config_flags
import numpy as np

from benchmarks.sampling import field_scores
from launch import program
from sculpt4d_jax.data.loading import batches as record_batches
from sculpt4d_jax.data.loading import loader as record_loader
from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import held_out_records
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.tasks import vae as vae_task

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/small.py", "Preset; see configs/base.py."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of weights.")
_DATA = flags.DEFINE_list(
  "data", [], "Data sets of launch.prepare_data; none: procedural clips alone."
)
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 12, "Clips of each kind.")
_FIRST = flags.DEFINE_integer(
  "first", 40, "Seed of the first procedural clip; 0 to 63 are held out."
)

IoU = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Clip:
  """A clip with its truth.

  Attributes:
    images: uint8 [F, S, S, 3].
    surface: Rows of the true surface [F, P, 7], uniform ones first.
    num_uniform: Number of uniform rows among them.
    points: Places at which the field is compared [F, Q, 3].
    inside: Whether those points are inside, bool [F, Q].
  """

  images: np.ndarray
  surface: np.ndarray
  num_uniform: int
  points: np.ndarray
  inside: np.ndarray


def main(unused_argv: Sequence[str]) -> None:
  """Runs the program."""
  preset = preset_lib.from_config(_CONFIG.value)
  log = run_log.RunLog()
  folder = model_lib.weights_folder(preset.weights, _CHECKPOINT.value)
  model = model_lib.Sculpt4D.load(preset.model, folder)
  frames = preset.data.num_frames
  settings = dataclasses.replace(preset.sampling, num_frames=frames)
  print(
    f"| clips of {frames} frames | clips | round trip | sampled |"
    " other pictures |\n|---|---|---|---|---|"
  )
  for title, clips in _kinds(preset):
    print(describe(title, score(model, clips, settings, log)), flush=True)


def _kinds(preset: preset_lib.Preset) -> Iterator[tuple[str, list[Clip]]]:
  yield "procedural, held out", _procedural(preset)
  for split in ("train", "test") if _DATA.value else ():
    title = {"train": "records, trained on", "test": "records, held out"}
    yield title[split], _records(preset, split)


def _procedural(preset: preset_lib.Preset) -> list[Clip]:
  """Held-out clips, compared at the centres of a grid's cells."""
  frames = preset.data.num_frames
  clips = []
  for seed in range(_FIRST.value, _FIRST.value + _NUM_CLIPS.value):
    clip = solids.make_clip(seed, frames)
    record = clip_records.make_record(clip, preset.data.sizes)
    truth = field_scores.true_fields(clip)
    at = field_scores.points()
    clips.append(
      Clip(
        record.images,
        record.surface,
        preset.data.sizes.num_uniform,
        np.broadcast_to(at, (len(truth), *at.shape)),
        truth > 0,
      )
    )
  return clips


def _records(preset: preset_lib.Preset, split: str) -> list[Clip]:
  """Clips of records, compared at their samples in the cube."""
  # All frames: pictures are cut around the whole clip, which fills the cube.
  example = record_batches.as_they_are(
    preset.records.example, preset.data.num_frames
  )
  example = dataclasses.replace(
    example,
    contents=("geometry", "images"),
    num_parts=0,
    num_uniform=0,
    num_sharp=0,
    num_samples=0,
  )
  reader = record_loader.open_split(tuple(_DATA.value), split, example)
  count = min(_NUM_CLIPS.value, len(reader))
  sizes = preset.data.sizes
  clips = []
  for row in held_out_records.choose(reader, count):
    read = reader.read(row, np.random.default_rng([0, row]))
    is_uniform = read["surface"][0, :, 6] == 0
    # As many rows as the autoencoder learned with.
    surface = np.concatenate(
      [
        read["surface"][:, is_uniform][:, : sizes.num_uniform],
        read["surface"][:, ~is_uniform][:, : sizes.num_sharp],
      ],
      axis=1,
    )
    samples = read["samples"][:, ~read["is_near"]]
    num_uniform = min(int(is_uniform.sum()), sizes.num_uniform)
    clips.append(
      Clip(
        read["images"],
        surface,
        num_uniform,
        samples[..., :3].astype(np.float32),
        samples[..., 3] > 0,
      )
    )
  return clips


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
    sampled.append(model.sample(clip.images, settings))
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
    estimate = evaluator.estimate_mean(np.asarray(values))
    cells.append(evaluator.format_estimate(estimate, digits=3))
  return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
  program.run(main)
