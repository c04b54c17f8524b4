r"""Counts the FLOPs of a preset, and prints the paper's tables with them.

Usage:

  # By part, a step and a sample, of the released model; Tables A1 and A2.
  python -m launch.flops

  # Any preset and number of frames; Figure A1 as a file.
  python -m launch.flops --config=configs/tiny.py --num_frames=8,16 \
      --figure=figure_a1.svg

Measured times are printed by `python -m benchmarks.sampling`.

Counted are products of matrices, two operations for a multiplication with its
addition. A step is one call of the transformer on one clip; a sample is the
image encoder, the context's keys and values, and all steps, twice each with
guidance, up to the latents. With --num_points the autoencoder follows.
"""

from collections.abc import Sequence
import dataclasses

from absl import flags
from ml_collections import config_flags

from launch import program
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import cost
from sculpt4d_jax.inference import sampling as sampling_lib
from sculpt4d_jax.io import atomic
from sculpt4d_jax.training import preset as preset_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/sculpt4d.py", "Preset; see configs/base.py."
)
_NUM_FRAMES = flags.DEFINE_list(
  "num_frames", ["16"], "Numbers of frames to count by part."
)
_NUM_POINTS = flags.DEFINE_integer(
  "num_points",
  0,
  "Number of points a frame at which the field is evaluated; adds the"
  " autoencoder's part of a sample. 0 leaves it out.",
  lower_bound=0,
)
_FIGURE = flags.DEFINE_string(
  "figure", None, "SVG file for Figure A1; optional."
)


def main(unused_argv: Sequence[str]) -> None:
  """Runs the program."""
  preset = preset_lib.from_config(_CONFIG.value)
  frames = _frames(_NUM_FRAMES.value)
  model = preset.model
  sizes = cost.Sizes(
    vae=model.vae, image_encoder=model.image_encoder, dit=model.dit
  )
  for num_frames in frames:
    _print_parts(sizes, preset.sampling, num_frames)
  print(cost.table_a1(sizes), "\n")
  print(cost.table_a2(sizes), "\n")
  print(cost.difference(sizes))
  if _FIGURE.value:
    atomic.write_bytes(_FIGURE.value, cost.figure_a1(sizes).encode())


def _frames(texts: Sequence[str]) -> list[int]:
  try:
    frames = [int(text) for text in texts]
  except ValueError:
    frames = []
  if not frames or min(frames) < 1:
    raise UserError(
      f"--num_frames={','.join(texts)} must be whole numbers of at least 1,"
      " separated by commas."
    )
  return frames


def _print_parts(
  sizes: cost.Sizes, sampling: sampling_lib.SamplingConfig, num_frames: int
) -> None:
  config = dataclasses.replace(sampling, num_frames=num_frames)
  print(
    f"{num_frames} frames, temporal attention {config.temporal_mode};"
    f" a sample is {len(config.calls)} calls of the velocity,"
    f" {config.num_evaluations} of the network (guidance"
    f" {config.guidance_scale:g})"
  )
  columns = {
    "step, full": sizes.call(num_frames, "full"),
    f"step, {config.temporal_mode}": sizes.call(
      num_frames, config.temporal_mode
    ),
    "sample": cost.sample(sizes, config, _NUM_POINTS.value),
  }
  print(cost.parts_table(columns), "\n")


if __name__ == "__main__":
  program.run(main)
