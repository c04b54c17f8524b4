r"""Tells what limits a model: its autoencoder, its transformer, or the data.

  python -m benchmarks.training.limits --config=configs/small.py \
      --checkpoint=runs/small/weights --data=data/characters

IoU of fields on coarse grids, without meshes, so that it takes minutes:

  round trip      truth -> latents -> field: what a perfect transformer reaches
  sampled         pictures -> latents -> field
  other pictures  the same samples, scored against the next clip: what comes of
                  the average object alone
  its camera      true shapes, placed by the camera that the weights' head reads
                  off the pictures; of procedural clips, whose camera is known

of procedural clips, also of rigid things and of figures, and of records that
launch.prepare_data made, those trained on and those held out. A round trip far
above the samples says that the transformer needs more training; samples of
trained clips far above those of held-out ones say that there are too few clips.
"""

from collections.abc import Iterator, Sequence
import dataclasses

from absl import flags
from ml_collections import config_flags
import numpy as np

from benchmarks.sampling import field_scores
from benchmarks.training import camera_limit
from benchmarks.training import field_iou
from launch import program
from sculpt4d_jax.data.loading import batches as record_batches
from sculpt4d_jax.data.loading import loader as record_loader
from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.evaluation import held_out_records
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.training import preset as preset_lib

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


def main(unused_argv: Sequence[str]) -> None:
  """Runs the program."""
  preset = preset_lib.from_config(_CONFIG.value)
  log = run_log.RunLog()
  folder = model_lib.weights_folder(preset.weights, _CHECKPOINT.value)
  model = model_lib.Sculpt4D.load(
    preset.model, folder, sampling=preset.sampling
  )
  frames = preset.data.num_frames
  settings = dataclasses.replace(preset.sampling, num_frames=frames)
  print(
    f"| clips of {frames} frames | clips | round trip | sampled |"
    " other pictures | its camera |\n|---|---|---|---|---|---|"
  )
  for title, clips, cameras in _kinds(preset, model):
    rows = field_iou.score(model, clips, settings, log)
    rows["its camera"] = cameras
    print(field_iou.describe(title, rows), flush=True)


def _kinds(
  preset: preset_lib.Preset, model: model_lib.Sculpt4D
) -> Iterator[tuple[str, list[field_iou.Clip], list[float]]]:
  """Titles, clips, and IoU by the head's camera where there is one."""
  yield "procedural, held out", *_procedural(preset, model)
  yield "rigid things, held out", *_procedural(preset, model, things=1.0)
  yield "figures, held out", *_procedural(preset, model, figures=1.0)
  for split in ("train", "test") if _DATA.value else ():
    title = {"train": "records, trained on", "test": "records, held out"}
    yield title[split], _records(preset, split), []


def _procedural(
  preset: preset_lib.Preset, model: model_lib.Sculpt4D, **shares: float
) -> tuple[list[field_iou.Clip], list[float]]:
  """Held-out clips, compared at the centres of a grid's cells."""
  frames, head = preset.data.num_frames, model.view_head
  clips, cameras = [], []
  for seed in range(_FIRST.value, _FIRST.value + _NUM_CLIPS.value):
    clip = solids.make_clip(seed, frames, **shares)
    record = clip_records.make_record(clip, preset.data.sizes)
    at = field_scores.points()
    truth = field_scores.true_fields(
      clip, record.placement.inverse().points(at)
    )
    clips.append(
      field_iou.Clip(
        record.images,
        record.masks,
        record.surface,
        preset.data.sizes.num_uniform,
        np.broadcast_to(at, (len(truth), *at.shape)),
        truth > 0,
      )
    )
    if head is not None:
      taken = np.asarray(head(model.encode(record.images)[None])[0])
      cameras.append(camera_limit.iou(clip, record.view, taken))
  return clips, cameras


def _records(preset: preset_lib.Preset, split: str) -> list[field_iou.Clip]:
  """Clips of records, compared at their samples in the cube."""
  # All frames: pictures are cut around the whole clip, which fills the cube.
  example = record_batches.whole_clips(
    preset.records.example, preset.data.num_frames
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
      field_iou.Clip(
        read["images"],
        read["masks"],
        surface,
        num_uniform,
        samples[..., :3].astype(np.float32),
        samples[..., 3] > 0,
      )
    )
  return clips


if __name__ == "__main__":
  program.run(main)
