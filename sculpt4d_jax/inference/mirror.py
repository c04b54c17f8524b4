"""A clip sampled twice, as it is and mirrored, and the mean of both shapes.

A camera that looks along the object's plane x = 0 sees the mirrored object in
the mirrored picture, so that a second sample of the same shape is had by
mirroring both. What a model guesses differs between the two: of depth, and of
limbs that cover each other. The mean of both fields has less of these errors.

Latents of such a clip are [F, 2, N, C]: those of the clip, and of its mirror
image, whose field is evaluated at mirrored points.
"""

from collections.abc import Callable, Mapping
import dataclasses

import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax.diffusion import windows as windows_lib
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.inference import sampling as sampling_lib

Array = array_types.Array
Float = array_types.Float
UInt8 = array_types.UInt8

_FLIP = np.array([-1.0, 1.0, 1.0], np.float32)


def pictures(images: UInt8[np.ndarray, "F S S *C"]) -> np.ndarray:
  """Pictures or masks, left and right exchanged."""
  return np.ascontiguousarray(images[:, :, ::-1])


def points(x: Float[np.ndarray, "Q 3"]) -> Float[np.ndarray, "Q 3"]:
  """Points on the other side of the plane x = 0."""
  return x * _FLIP


def mesh(mesh: mesh_lib.TriangleMesh) -> mesh_lib.TriangleMesh:
  """The mirrored mesh; faces are turned, so that they still face outwards."""
  return mesh_lib.TriangleMesh(points(mesh.vertices), mesh.faces[:, ::-1])


def sample(
  sample_one: Callable[..., Float[np.ndarray, "F N C"]],
  images: UInt8[np.ndarray, "F S S 3"],
  config: sampling_lib.SamplingConfig,
  on_step: Callable[[int], None] | None,
  known_frames: Mapping[int, np.ndarray] | None,
  windows: windows_lib.Windows | None,
  masks: UInt8[np.ndarray, "F S S"] | None,
) -> Float[np.ndarray, "F 2 N C"]:
  """Samples a clip and its mirror image by `Sculpt4D.sample`, `sample_one`.

  The other arguments are those of that method.
  """
  once, num_calls = dataclasses.replace(config, mirror=False), len(config.calls)

  def sample(
    images: np.ndarray,
    masks: np.ndarray | None,
    known_frames: Mapping[int, np.ndarray] | None,
    number: int,
  ) -> np.ndarray:
    step = on_step and (lambda done: on_step(number * num_calls + done))
    return sample_one(images, once, step, known_frames, windows, masks)

  return both(sample, images, masks, known_frames)


def both(
  sample: Callable[..., Float[np.ndarray, "F N C"]],
  images: UInt8[np.ndarray, "F S S 3"],
  masks: UInt8[np.ndarray, "F S S"] | None,
  known_frames: Mapping[int, np.ndarray] | None,
) -> Float[np.ndarray, "F 2 N C"]:
  """Samples a clip and its mirror image.

  Args:
    sample: Called with pictures, masks and known frames, or None for either,
      and with the number of clips sampled before.
    images: The clip.
    masks: Coverage of the pictures.
    known_frames: Latents [2, N, C] of frames that are given, by their index.

  Raises:
    ValueError: A known frame has no latents of the mirrored clip.
  """
  _check(known_frames)
  of = lambda index: (
    known_frames and {i: x[index] for i, x in known_frames.items()}
  )
  mirrored = None if masks is None else pictures(masks)
  return np.stack(
    [
      sample(images, masks, of(0), 0),
      sample(pictures(images), mirrored, of(1), 1),
    ],
    axis=1,
  )


def _check(known_frames: Mapping[int, np.ndarray] | None) -> None:
  for index, latents in (known_frames or {}).items():
    if np.ndim(latents) != 3:
      raise UserError(
        f"The latents of known frame {index} are {np.shape(latents)}: they come"
        " from a run without sampling.mirror. Set sampling.mirror=False, or"
        " sample that run again with it."
      )
