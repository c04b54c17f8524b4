"""Frames of a clip in memory, and the selection of frames by time.

Times are seconds from the first frame of the source. Pictures are 8-bit RGBA
with straight (not premultiplied) alpha, rows from the top.
"""

import dataclasses

from absl import logging
import numpy as np

from sculpt4d_jax.errors import UserError

MIN_SIDE = 16  # Pixels; too small to recognise an object below this.
MAX_BYTES = 2 * 2**30
# Tolerance for comparing times with `start` and `end`; finer than the time base
# of any container.
_EPSILON = 1e-6
# Longest time between two frames without a warning (s): a step of a walk takes
# half a second.
_LONG = 0.5


class InputError(UserError):
  """The input cannot be used; the message gives the reason and a remedy."""


@dataclasses.dataclass(frozen=True)
class VideoFrames:
  """Frames of one clip.

  Attributes:
    frames: uint8 [F, height, width, 4], straight alpha.
    has_alpha: Some pixel is not fully opaque.
    fps: Rate at which `frames` play in real time; after resampling it differs
      from the source's.
    timestamps: Seconds from the first frame of the source, float64 [F],
      increasing.
    name: Short name of the source: the file's or folder's, without suffix.
  """

  frames: np.ndarray = dataclasses.field(repr=False)
  has_alpha: bool
  fps: float
  timestamps: np.ndarray
  name: str

  @property
  def num_frames(self) -> int:
    """Number of frames F."""
    return len(self.frames)

  @property
  def height(self) -> int:
    """Rows of a frame, pixels."""
    return self.frames.shape[1]

  @property
  def width(self) -> int:
    """Columns of a frame, pixels."""
    return self.frames.shape[2]


def make_video_frames(
  frames: np.ndarray, timestamps: np.ndarray, name: str, source_fps: float
) -> VideoFrames:
  """Wraps decoded frames; a single frame gets `source_fps` as its rate."""
  duration = float(timestamps[-1] - timestamps[0])
  fps = (len(frames) - 1) / duration if duration > 0 else source_fps
  return VideoFrames(
    frames=frames,
    has_alpha=bool(frames[..., 3].min() < 255),
    fps=float(fps),
    timestamps=np.asarray(timestamps, np.float64),
    name=name,
  )


def select_frames(
  timestamps: np.ndarray,
  num_frames: int | None,
  start: float | None,
  end: float | None,
  name: str,
) -> np.ndarray:
  """Chooses the frames nearest to uniform times, each at most once.

  The first and the last frame between `start` and `end` are always among them.
  If the source has at most `num_frames` frames there, each is taken once:
  repeated frames would make the motion stutter. If frames are left out, the log
  says how many, and warns if the motion between two frames is lost.

  Args:
    timestamps: Times of all frames, increasing.
    num_frames: Number of frames to choose; None takes all.
    start: Earliest time, seconds; None is the first frame's.
    end: Latest time, seconds; None is the last frame's.
    name: The source, for error messages.

  Returns:
    Indices into `timestamps`, strictly increasing.

  Raises:
    InputError: No frame lies between `start` and `end`.
  """
  timestamps = np.asarray(timestamps, np.float64)
  low = -np.inf if start is None else start - _EPSILON
  high = np.inf if end is None else end + _EPSILON
  inside = np.flatnonzero((timestamps >= low) & (timestamps <= high))
  if not len(inside):
    raise InputError(
      f"{name} has no frame between {start} and {end} s; its frames lie"
      f" between 0 and {timestamps[-1]:.3f} s."
    )
  if num_frames is None or num_frames >= len(inside):
    return inside
  times = timestamps[inside]
  _log_thinning(times, num_frames, name)
  targets = np.linspace(times[0], times[-1], num_frames)
  right = np.clip(np.searchsorted(times, targets), 1, len(times) - 1)
  is_left = targets - times[right - 1] <= times[right] - targets
  nearest = np.where(is_left, right - 1, right)
  # With uneven times, a frame may be nearest to two targets: move the later
  # choice forward, then, at the end of the clip, the earlier ones backward.
  steps = np.arange(num_frames)
  nearest = np.maximum.accumulate(nearest - steps) + steps
  nearest = np.minimum(nearest, len(times) - num_frames + steps)
  return inside[nearest]


def _log_thinning(times: np.ndarray, num_frames: int, name: str) -> None:
  """Says which part of the frames is used."""
  gap, text = 0.0, f"{name}: {num_frames} of {len(times)} frames are used"
  if num_frames > 1:
    gap = (times[-1] - times[0]) / (num_frames - 1)
    text += f", {gap:.2f} s apart"
  if gap > _LONG:
    logging.warning(
      "%s. Faster motion is lost: use a part of the clip (start, end), or more"
      " frames.",
      text,
    )
  else:
    logging.info("%s.", text)


def check_size(width: int, height: int, name: str) -> None:
  """Raises InputError where a picture is too small to show an object."""
  if min(width, height) < MIN_SIDE:
    raise InputError(
      f"{name} is {width}x{height} pixels; at least {MIN_SIDE}x{MIN_SIDE}"
      " are needed to see an object."
    )


def check_memory(num_frames: int, width: int, height: int, name: str) -> None:
  """Raises InputError before frames are kept that would not fit."""
  num_bytes = num_frames * width * height * 4
  if num_bytes > MAX_BYTES:
    raise InputError(
      f"{name} has {num_frames} frames of {width}x{height}, which take"
      f" {num_bytes / 2**30:.1f} GiB in memory; ask for fewer frames"
      " (num_frames) or a part of it (start, end)."
    )


def fit_size(width: int, height: int, max_side: int) -> tuple[int, int]:
  """The size, of the same shape, whose longer side is `max_side` at most."""
  scale = min(1.0, max_side / max(width, height))
  return max(1, round(width * scale)), max(1, round(height * scale))
