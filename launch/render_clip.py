r"""Renders a procedural clip to a video, as input for the sampler.

  python -m launch.render_clip --seed=8 --output=clip.mp4

Seeds 0 to 63 are held out of the shipped model's training; it was trained on
seeds from 100000 on. The same seed gives the same object and motion, whatever
the number of frames. --truth also writes the true meshes, frame_0000.ply and so
on, for launch.evaluate.
"""

from collections.abc import Sequence

from absl import flags
from absl import logging
import numpy as np

from launch import program
from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.evaluation import held_out
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.io.video import writer

_SEED = flags.DEFINE_integer("seed", 0, "Seed of the clip.", lower_bound=0)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Video to write (mp4, webm, gif).", required=True
)
_TRUTH = flags.DEFINE_string(
  "truth", None, "Folder for the true meshes; optional."
)
_NUM_FRAMES = flags.DEFINE_integer(
  "num_frames", 8, "Number of frames.", lower_bound=1
)
_FPS = flags.DEFINE_float("fps", 8.0, "Frames a second.", lower_bound=0.1)
_SIZE = flags.DEFINE_integer(
  "size", 256, "Side of the picture in pixels.", lower_bound=16
)
_BORDER = flags.DEFINE_float(
  "border_ratio",
  0.3,
  "Margin around the object, as a fraction of the image side.",
  0.0,
  0.9,
)
_BACKGROUND = flags.DEFINE_list(
  "background", ["0.78", "0.86", "0.92"], "Background colour, RGB in [0, 1]."
)


def main(argv: Sequence[str]):
  """Runs the program."""
  del argv
  clip = solids.make_clip(_SEED.value, _NUM_FRAMES.value)
  rng = np.random.default_rng([_SEED.value, 0x56])
  view = clip_records.draw_view(rng, clip_records.RecordSizes())
  view = clip_records.fit_view(clip, view, _BORDER.value)
  rgba = clip_records.render_clip(clip, view, _SIZE.value)
  alpha = rgba[..., 3:]
  colour = np.array([float(x) for x in _BACKGROUND.value])
  frames = np.round(255 * (rgba[..., :3] * alpha + colour * (1 - alpha)))
  writer.write_video(_OUTPUT.value, frames.astype(np.uint8), _FPS.value)
  logging.info("Wrote a %s to %s.", clip.family, _OUTPUT.value)
  if _TRUTH.value:
    ply_obj.write_mesh_sequence(_TRUTH.value, held_out.truth_meshes(clip))
    logging.info("Wrote its meshes to %s.", _TRUTH.value)


if __name__ == "__main__":
  program.run(main)
