"""Writes clips: mp4, webm, mov, gif, or a folder of PNG pictures.

Alpha is kept in webm (VP9), mov (ProRes 4444), gif (binary) and PNG; mp4 does
not support it, so the object is put on white. Files are written atomically.
"""

import fractions
import math
import os
import pathlib

import av
import numpy as np
from PIL import Image

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths
from sculpt4d_jax.io import staged
from sculpt4d_jax.io.matting import crop

# FFmpeg's numbers for BT.709 and for the studio range of 16 to 235.
_BT709 = 1
_STUDIO_RANGE = 1
_H264_OPTIONS = {
  "crf": "18",
  "preset": "medium",
  # Chroma position of FFmpeg's conversion; for an untagged file players assume
  # "left", which is half a pixel off.
  "chroma_sample_location": "center",
}
_VP9_OPTIONS = {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "4"}


def write_video(
  path: paths.PathLike, frames: np.ndarray, fps: float
) -> paths.LocalPath | paths.StorePath:
  """Writes a clip in the format that the suffix of `path` names.

  Args:
    path: A name ending in .mp4, .webm, .mov or .gif; a name without suffix
      becomes a folder of frame_0000.png and so on.
    frames: uint8 [F, height, width, 3], or 4 with straight alpha.
    fps: Frames a second. A gif's delays are hundredths of a second and match
      the rate on average; browsers play at most 50 frames a second. Equal
      consecutive frames in a gif become one longer frame.

  Returns:
    The path written to.

  Raises:
    ValueError: Frames are unsuitable or missing, or the suffix is unknown.
    atomic.OutputError: The file cannot be written.
  """
  path = paths.of(path)
  _check(frames, fps)
  suffix = path.suffix.lower()
  if not suffix:
    return _write_pictures(path, frames)
  if suffix == ".gif":
    with atomic.atomic_path(path) as temporary:
      _write_gif(temporary, frames, fps)
  elif suffix in (".mp4", ".mov", ".webm"):
    with atomic.atomic_path(path) as temporary:
      _encode(temporary, suffix, frames, fps)
  else:
    raise UserError(
      f"{path.name} has an unknown suffix; choose .mp4, .webm, .mov, .gif,"
      " or none for a folder of PNG pictures."
    )
  return path


def _check(frames: np.ndarray, fps: float) -> None:
  is_clip = frames.ndim == 4 and frames.shape[-1] in (3, 4)
  if not is_clip or frames.dtype != np.uint8 or not frames.size:
    raise UserError(
      "frames must be uint8 [F, height, width, 3 or 4] with F > 0, got"
      f" {frames.dtype} {list(frames.shape)}."
    )
  if not (math.isfinite(fps) and fps > 0):
    raise UserError(f"fps must be positive, got {fps}.")


def _write_pictures(
  folder: paths.LocalPath | paths.StorePath, frames: np.ndarray
) -> paths.LocalPath | paths.StorePath:
  digits = max(4, len(str(len(frames) - 1)))
  with staged.staged_folder(folder, replaces=["frame_*.png"]) as staging:
    for index, frame in enumerate(frames):
      Image.fromarray(frame).save(staging / f"frame_{index:0{digits}d}.png")
  return folder


def _write_gif(path: pathlib.Path, frames: np.ndarray, fps: float) -> None:
  # Rounding the end of each frame instead of its length keeps the mean rate.
  ends = np.rint(np.arange(1, len(frames) + 1) * 100 / fps)
  delays = 10 * np.maximum(1, np.diff(ends, prepend=0)).astype(int)
  pictures = [Image.fromarray(frame) for frame in frames]
  pictures[0].save(
    path,
    save_all=True,
    append_images=pictures[1:],
    duration=delays.tolist(),
    loop=0,
    # Without it, transparent pixels would show the previous frame.
    disposal=2 if frames.shape[-1] == 4 else 0,
  )


def _encode(
  path: pathlib.Path, suffix: str, frames: np.ndarray, fps: float
) -> None:
  if suffix == ".mp4" and frames.shape[-1] == 4:
    frames = crop.composite(frames, crop.WHITE)
  has_alpha = frames.shape[-1] == 4
  codec, pixel_format, options = _encoder(suffix, has_alpha)
  # Chroma has half the resolution, so odd sides are padded by repetition.
  odd = (frames.shape[1] % 2, frames.shape[2] % 2)
  frames = np.pad(frames, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)), "edge")
  rate = fractions.Fraction(fps).limit_denominator(10000)
  container_options = {} if suffix == ".webm" else {"movflags": "+faststart"}
  with av.open(
    "file:" + os.fspath(path), "w", options=container_options
  ) as container:
    stream = container.add_stream(codec, rate=rate, options=options)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = pixel_format
    context = stream.codec_context
    context.colorspace, context.color_range = _BT709, _STUDIO_RANGE
    if has_alpha and suffix == ".webm":
      stream.metadata["alpha_mode"] = "1"
    for index, picture in enumerate(frames):
      frame = av.VideoFrame.from_ndarray(
        np.ascontiguousarray(picture), format="rgba" if has_alpha else "rgb24"
      ).reformat(
        format=pixel_format,
        dst_colorspace=av.video.reformatter.Colorspace.ITU709,
        interpolation="BICUBIC",
      )
      frame.pts = index
      frame.time_base = 1 / rate
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def _encoder(suffix: str, has_alpha: bool) -> tuple[str, str, dict[str, str]]:
  """Encoder, pixel format and options."""
  if suffix == ".webm":
    return "libvpx-vp9", "yuva420p" if has_alpha else "yuv420p", _VP9_OPTIONS
  if suffix == ".mov" and has_alpha:
    return "prores_ks", "yuva444p10le", {"profile": "4444"}
  if "libx264" in av.codecs_available:
    return "libx264", "yuv420p", _H264_OPTIONS
  return "mpeg4", "yuv420p", {"qscale": "3"}
