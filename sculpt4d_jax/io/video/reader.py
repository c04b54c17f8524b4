"""Reads the frames of a clip: a video, a picture, a folder or an array."""

from collections.abc import Mapping
import math
import os
import pathlib
import stat

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.video import decoder
from sculpt4d_jax.io.video import frames as video_frames
from sculpt4d_jax.io.video import images
from sculpt4d_jax.io.video.frames import InputError
from sculpt4d_jax.io.video.frames import VideoFrames

__all__ = ["InputError", "VideoFrames", "read_frames"]

DEFAULT_FPS = 24.0
DEFAULT_MAX_SIDE = 1024


def read_frames(
  source: paths.PathLike | np.ndarray,
  *,
  num_frames: int | None = None,
  start: float | None = None,
  end: float | None = None,
  fps: float = DEFAULT_FPS,
  max_side: int = DEFAULT_MAX_SIDE,
) -> VideoFrames:
  """Reads a clip and resamples it uniformly in time.

  Frames are those nearest to `num_frames` uniform times from the first to the
  last frame between `start` and `end`, each taken once. A clip with at most as
  many frames is returned completely; a single picture gives one frame. A
  video's rotation and pixel aspect ratio and a picture's EXIF orientation are
  applied.

  Args:
    source: A video file (mp4, mov, webm, mkv, avi, gif and more), a picture,
      a folder of pictures (natural order), or uint8 [F, height, width, 3 or
      4] with straight alpha.
    num_frames: Frames to return at most; None returns all.
    start: Seconds from the first frame; None starts there.
    end: Seconds from the first frame; None goes to the last.
    fps: Rate of folders, arrays and single pictures, which have none.
    max_side: Larger frames are scaled down so that their longer side is this.

  Returns:
    The frames, with alpha where the source has it.

  Raises:
    InputError: The source cannot be used as a clip.
    ValueError: Another argument is invalid.
  """
  _check_arguments(num_frames, start, end, fps, max_side)
  window = dict(num_frames=num_frames, start=start, end=end)
  if not isinstance(source, (str, os.PathLike, paths.StorePath)):
    return _read_array(np.asarray(source), window, fps, max_side)
  path = local_copies.fetch(source).expanduser()
  _check_readable(path)
  if path.is_dir():
    return images.read_folder(path, **window, fps=fps, max_side=max_side)
  if images.is_picture(path):
    return images.read_picture(path, **window, fps=fps, max_side=max_side)
  return decoder.read_video(path, **window, max_side=max_side)


def _read_array(
  array: np.ndarray,
  window: Mapping[str, int | float | None],
  fps: float,
  max_side: int,
) -> VideoFrames:
  is_clip = array.ndim == 4 and array.shape[-1] in (3, 4)
  if not is_clip or array.dtype != np.uint8:
    raise InputError(
      "An array clip must be uint8 [frames, height, width, 3 or 4], got"
      f" {array.dtype} {list(array.shape)}."
    )
  if not len(array):
    raise InputError("The array has no frames; give at least one.")
  height, width = array.shape[1:3]
  video_frames.check_size(width, height, "The array")
  chosen = video_frames.select_frames(
    np.arange(len(array)) / fps, **window, name="The array"
  )
  size = video_frames.fit_size(width, height, max_side)
  video_frames.check_memory(len(chosen), *size, "The array")
  frames = np.empty((len(chosen), size[1], size[0], 4), np.uint8)
  for position, index in enumerate(chosen):
    frame = array[index]
    if frame.shape[-1] == 3:
      frame = np.dstack([frame, np.full(frame.shape[:2], 255, np.uint8)])
    frames[position] = images.resize_rgba(frame, *size)
  return video_frames.make_video_frames(frames, chosen / fps, "array", fps)


def _check_arguments(
  num_frames: int | None,
  start: float | None,
  end: float | None,
  fps: float,
  max_side: int,
) -> None:
  if num_frames is not None and num_frames < 1:
    raise UserError(f"num_frames must be at least 1, got {num_frames}.")
  if not (math.isfinite(fps) and fps > 0):
    raise UserError(f"fps must be positive, got {fps}.")
  if max_side < video_frames.MIN_SIDE:
    raise UserError(
      f"max_side must be at least {video_frames.MIN_SIDE}, got {max_side}."
    )
  if start is not None and end is not None and start > end:
    raise UserError(f"start={start} lies after end={end}.")


def _check_readable(path: pathlib.Path) -> None:
  try:
    mode = path.stat().st_mode
  except (FileNotFoundError, NotADirectoryError) as error:
    raise InputError(
      f"{path} does not exist; give a video file, a picture or a folder of"
      " pictures."
    ) from error
  except OSError as error:
    raise InputError(f"{path} cannot be read: {error.strerror}.") from error
  if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
    raise InputError(f"{path} is neither a file nor a folder.")
  needed = os.R_OK | (os.X_OK if stat.S_ISDIR(mode) else 0)
  if not os.access(path, needed):
    raise InputError(f"{path} may not be read; check its permissions.")
