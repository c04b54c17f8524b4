"""Windows of a long clip, and velocities averaged over them.

A model that was trained on W frames is applied to W frames at a time, at
positions 0 to W - 1, for any length of the clip. Windows overlap, so that
consecutive windows match.

Source of the averaged velocity: Bar-Tal et al., MultiDiffusion, 2023.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError

Array = array_types.Array
Float = array_types.Float

KINDS = ("sequential", "averaged")

# (x [B, W, ...], time [B] or [B, W], context) -> velocity like x.
_WithContext = Callable[[Array, Array, Any], Array]


@dataclasses.dataclass(frozen=True)
class Windows:
  """Division of a long clip into windows.

  Attributes:
    size: Number of frames of a window, W; best the number that the model was
      trained on.
    overlap: Number of frames that a window shares with the previous one.
    kind: "sequential" samples one window after the other, with the overlap
      known from the previous one: it needs the memory of one window, and works
      on endless streams. "averaged" denoises the whole clip at once, and
      averages the velocities of a frame over its windows: the smoothest seams.
    blend: Number of frames, the last of the overlap, that a sequential window
      samples again instead of taking them as known. While it does so, they pass
      from the previous window's data to its own, so that a difference between
      two windows is spread over several frames.
  """

  size: int
  overlap: int
  kind: str = "sequential"
  blend: int = 0

  def __post_init__(self):
    if self.size < 2:
      raise UserError(f"window={self.size} must be at least 2 frames.")
    if not 0 <= self.overlap < self.size:
      raise UserError(
        f"overlap={self.overlap} must be at least 0 and less than the window's"
        f" {self.size} frames."
      )
    if self.kind not in KINDS:
      raise UserError(f"windows={self.kind!r}: choose one of {KINDS}.")
    if not 0 <= self.blend <= self.overlap:
      raise UserError(
        f"blend={self.blend} must be at least 0 and at most the overlap's"
        f" {self.overlap} frames."
      )

  @property
  def new_weights(self) -> Float[np.ndarray, " blend"]:
    """Weight of a window's own velocity in each blended frame, in (0, 1).

    Half a cosine: the weight changes slowly at both ends of the blend, where a
    linear one would bend the motion.
    """
    part = np.arange(1, self.blend + 1) / (self.blend + 1)
    return (0.5 - 0.5 * np.cos(np.pi * part)).astype(np.float32)

  @property
  def stride(self) -> int:
    """Frames between the starts of two windows."""
    return self.size - self.overlap

  def starts(self, num_frames: int) -> list[int]:
    """First frame of every window; the last one ends with the clip.

    A clip of no more than `size` frames is one window.
    """
    last = max(num_frames - self.size, 0)
    return [*range(0, last, self.stride), last]


def make(
  size: int,
  overlap: int | None = None,
  blend: int | None = None,
  kind: str = "sequential",
) -> Windows:
  """Windows with defaults for what is None.

  Args:
    size: Number of frames of a window.
    overlap: Shared frames; by default half a window.
    blend: Blended frames of a sequential window; by default all of the overlap.
    kind: One of KINDS.
  """
  if overlap is None:
    overlap = size // 2
  if blend is None:
    blend = overlap if kind == "sequential" else 0
  return Windows(size, overlap, kind, blend)


def averaged(
  velocity: _WithContext,
  context: Any,
  windows: Windows,
  frame_axis: Callable[[Array], int],
) -> Callable[[Array, Array], Array]:
  """The velocity of a whole clip, averaged over windows.

  Windows are computed one after the other, with the activations of one at a
  time. A window has more weight in its middle than at its ends.

  Args:
    velocity: Velocity of one window.
    context: Tree of arrays with all frames.
    windows: Positions of the windows.
    frame_axis: Array of the context -> the axis of its frames.
  """

  def run(x: Array, time: Array) -> Array:
    num_frames = x.shape[1]
    size = min(windows.size, num_frames)
    starts = windows.starts(num_frames)
    # 1, 2, ... 2, 1: frames in the middle of a window see neighbours on both
    # sides. Never 0, as the clip's ends are in one window only.
    ramp = np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1))
    total = np.zeros(num_frames)
    for start in starts:
      total[start : start + size] += ramp
    ramp = _over(jnp.asarray(ramp, jnp.float32), x.ndim)

    def add(sum_: Array, start: Array) -> tuple[Array, None]:
      cut = lambda y, axis: lax.dynamic_slice_in_dim(y, start, size, axis)
      own_time = cut(time, 1) if time.ndim == 2 else time
      own_context = jax.tree.map(lambda y: cut(y, frame_axis(y)), context)
      answer = velocity(cut(x, 1), own_time, own_context)
      part = cut(sum_, 1) + ramp * answer.astype(jnp.float32)
      return lax.dynamic_update_slice_in_dim(sum_, part, start, 1), None

    # A scan, so that one window is compiled and held in memory.
    sum_ = jnp.zeros(x.shape, jnp.float32)
    sum_, _ = lax.scan(add, sum_, jnp.asarray(starts))
    return sum_ / _over(jnp.asarray(total, jnp.float32), x.ndim)

  return run


def _over(weights: Float[Array, " F"], ndim: int) -> Array:
  """Weights of frames, to multiply arrays [B, F, ...] with."""
  return weights.reshape((1, -1) + (1,) * (ndim - 2))
