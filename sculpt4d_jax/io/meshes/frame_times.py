"""The times at which the frames of a mesh sequence are visible.

Times are edges in seconds, [F + 1]: frame i is visible from edge i to edge i +
1, and the first edge is 0. Clips from phones and screen recorders have frames
of unequal length, so a frame rate is not enough.

Players that sample a file at fixed steps skip frames shorter than a step.
`for_players` lengthens such frames.
"""

from collections.abc import Sequence
import math

import numpy as np

from sculpt4d_jax.errors import UserError

# Default of Blender, Maya and USD players, in steps per second; game engines
# and browsers are faster.
PLAYER_RATE = 24.0
# Time stamps of this resolution (webm counts milliseconds) make lengths of even
# frames differ by up to twice as much.
_CLOCK = 2e-3
_ROUNDING = 1e-9


def frame_edges(
  num_frames: int, fps: float, times: Sequence[float] | None = None
) -> np.ndarray:
  """The edges of all frames, float64 [F + 1].

  Args:
    num_frames: Number of frames F.
    fps: Frames a second, used where `times` is None or has one frame.
    times: Start of each frame, seconds, increasing; the first is taken as 0.
      The last frame lasts as long as the median of the others.

  Raises:
    ValueError: The rate is not positive, or the times do not fit the frames.
  """
  if not (math.isfinite(fps) and fps > 0):
    raise UserError(f"fps must be a positive number, got {fps}.")
  if times is None or num_frames < 2:
    return np.arange(num_frames + 1) / fps
  times = np.asarray(times, np.float64)
  if times.shape != (num_frames,):
    raise UserError(
      f"times must hold one number a frame, {num_frames}; got shape"
      f" {list(times.shape)}."
    )
  lengths = np.diff(times)
  if not (np.isfinite(times).all() and (lengths > 0).all()):
    raise UserError("times must be finite and increase from frame to frame.")
  last = times[-1] + np.median(lengths)
  return np.append(times, last) - times[0]


def is_even(edges: np.ndarray) -> bool:
  """Whether all frames have one length, up to the container's resolution."""
  even = np.linspace(0, edges[-1], len(edges))
  return bool(np.abs(edges - even).max() <= _CLOCK)


def for_players(edges: np.ndarray, rate: float = PLAYER_RATE) -> np.ndarray:
  """Edges with no frame shorter than a step of a player.

  A short frame is lengthened at the cost of the next one; if all are short, the
  sequence becomes longer. The first frame lasts two steps, as Blender's
  timeline begins at its frame 1, one step after the start of the file.

  Args:
    edges: Seconds, [F + 1].
    rate: Steps a second of the player.
  """
  edges = np.array(edges, np.float64)
  for index in range(1, len(edges)):
    steps = 2 if index == 1 else 1
    shortest = edges[index - 1] + steps / rate
    if edges[index] < shortest - _ROUNDING:
      edges[index] = shortest
  return edges
