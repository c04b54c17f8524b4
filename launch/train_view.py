r"""Trains the head that lets the sampler fit shapes to outlines.

  python -m launch.train_view --config=configs/small.py --workdir=runs/small

Run it after a training of a preset whose objects are turned until the camera
stands in front of them (`data.max_azimuth=0`). It needs the pictures in the
run's folder `data` and the weights in `weights`, or others by --checkpoint,
takes some minutes, and writes `view_head.safetensors` next to the weights.
Sampling with `sampling.outline_steps` above 0 then uses it. The errors that are
printed are those of held-out clips.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags
import numpy as np

from launch import program
from sculpt4d_jax.data.procedural import store as record_store
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io import output_checks
from sculpt4d_jax.io import paths
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import view_training
from sculpt4d_jax.weights import view_heads

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/small.py", "Preset; see configs/base.py."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of a training, which holds its data.", required=True
)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint", None, "Folder of weights; by default the run's."
)
_NUM_STEPS = flags.DEFINE_integer(
  "num_steps", 3000, "Optimizer steps.", lower_bound=1
)
_NAMES = ("elevation", "centre x", "centre y", "log extent")


def main(unused_argv: Sequence[str]) -> None:
  """Runs the program."""
  preset = preset_lib.from_config(_CONFIG.value)
  if preset.data.sizes.max_azimuth:
    raise UserError(
      "The head assumes a camera in front of the object, but this preset has"
      f" data.max_azimuth={preset.data.sizes.max_azimuth}; expected 0."
    )
  workdir = paths.of(_WORKDIR.value)
  weights = paths.of(_CHECKPOINT.value or workdir / "weights")
  output_checks.check_folder(weights)
  # Memory-mapped, hence on a disk.
  data = local_copies.fetch(workdir / "data")
  log = run_log.RunLog()
  config = view_training.ViewTrainingConfig(num_steps=_NUM_STEPS.value)
  model = model_lib.Sculpt4D.load(preset.model, weights)
  found = {}
  for split, count, seed in (
    ("train", preset.data.num_clips, preset.data.first_seed),
    ("held_out", preset.data.num_held_out, preset.data.held_out_seed),
  ):
    folder = data / split
    if not (folder / "store.json").is_file():
      raise UserError(
        f"{folder} holds no clips; run launch.train with this --workdir first."
      )
    store = record_store.open_or_make(
      folder,
      num_clips=count,
      num_frames=preset.data.num_frames,
      first_seed=seed,
      sizes=preset.data.sizes,
    )
    views = view_training.views(store, preset.data.sizes)
    tokens = view_training.tokens(model, store, config.frames)
    with log.stage(f"read clips ({split})", store.num_clips) as bar:
      rows = []
      for row in zip(tokens, views, strict=True):
        rows.append(row)
        bar.update()
    found[split] = tuple(np.stack(x) for x in zip(*rows))
  with log.stage("train"):
    head = view_training.train(*found["train"], config)
  tokens, views = found["held_out"]
  rms = view_training.errors(head, tokens[:, 0], views)
  spread = found["train"][1].std(0)
  for name, error, deviation in zip(_NAMES, rms, spread, strict=True):
    print(f"{name}: error {error:.3f}, spread {deviation:.3f}")
  details = {
    "num_steps": config.num_steps,
    "num_clips": len(found["train"][1]),
    "errors": [round(float(x), 4) for x in rms],
  }
  path = view_heads.save(weights, head, details)
  print(f"Wrote {path}.")


if __name__ == "__main__":
  program.run(main)
