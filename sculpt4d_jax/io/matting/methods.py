"""Methods of cutting an object out, by their names in `--matte`.

To add a method, write a function of the clip and of the argument in
`--matte=NAME:ARGUMENT`, and add it to `METHODS`. It returns a `cutout.Cutout`,
or raises `cutout.NotApplicable` with a clause that gives the reason. `AUTO`
lists the methods that `--matte=auto` tries in order.
"""

from collections.abc import Callable

from sculpt4d_jax.io.matting import colour
from sculpt4d_jax.io.matting import cutout
from sculpt4d_jax.io.matting import given
from sculpt4d_jax.io.matting import motion
from sculpt4d_jax.io.matting import onnx
from sculpt4d_jax.io.matting import plain_background
from sculpt4d_jax.io.video.frames import VideoFrames

Method = Callable[[VideoFrames, str], cutout.Cutout]

METHODS: dict[str, Method] = {
  "alpha": given.from_alpha_layer,
  "plain": plain_background.cut_out,
  "motion": motion.cut_out,
  "colour": colour.cut_out,
  "onnx": onnx.cut_out,
  "none": given.whole_frame,
}
AUTO = ("alpha", "plain", "motion", "colour")
ROUGH = frozenset(["motion", "colour"])
