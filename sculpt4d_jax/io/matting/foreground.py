"""Separates the object of a clip from its background.

Ways, as `matte` names them:

  alpha      the alpha layer of the source
  plain      a background of one or a smoothly varying colour is removed
  onnx:PATH  a matting network in an ONNX file (optional extra "matting")
  none       the entire frame is taken as the object
  auto       alpha if there is any; else plain if the border of the frames is
             plain; else, roughly and with a warning, what moves before a
             still camera, or what differs in colour from the border

Every way makes one model of the background for the whole clip, so the
cut-out does not flicker with a model that changes from frame to frame. Frames
in which the object is away for a moment come out fully transparent and are
kept; a clip in which no frame shows an object is an error.
"""

import dataclasses

from absl import logging
import numpy as np

from sculpt4d_jax.io.matting import onnx
from sculpt4d_jax.io.matting import plain_background
from sculpt4d_jax.io.matting import rough_cutout
from sculpt4d_jax.io.video.frames import InputError
from sculpt4d_jax.io.video.frames import VideoFrames

# Of a frame's pixels; less is no object that a mesh could be made of.
MIN_COVERAGE = 1e-3
_ADVICE = (
  "give a clip with an alpha channel or a plain background, a matting"
  " network (--matte onnx:PATH), or take the entire frame as the object"
  " (--matte none)"
)


@dataclasses.dataclass(frozen=True)
class Foreground:
  """A clip with its background made transparent.

  Attributes:
    frames: uint8 [F, height, width, 4], straight alpha; colours at soft edges
      are the object's own, without the background's share.
    method: "alpha", "plain", "motion", "colour", "none" or "onnx".
    confidence: In [0, 1]: 1 where the mask is given, near 0 where it is a
      guess.
  """

  frames: np.ndarray = dataclasses.field(repr=False)
  method: str
  confidence: float


def extract(video: VideoFrames, matte: str = "auto") -> Foreground:
  """Makes the background of a clip transparent.

  Args:
    video: The clip.
    matte: "auto", "alpha", "plain", "none" or "onnx:PATH".

  Raises:
    InputError: That way does not work for this clip, or no object is found.
    ValueError: `matte` names no way.
    ImportError: An ONNX file is given and onnxruntime is not installed.
  """
  if matte == "auto":
    foreground = _auto(video)
  elif matte == "alpha":
    if not _has_useful_alpha(video):
      raise InputError(
        f"{video.name} has no alpha channel, or all of it is opaque; {_ADVICE}."
      )
    foreground = Foreground(video.frames, "alpha", 1.0)
  elif matte == "plain":
    foreground = _plain(video)
    if foreground is None:
      raise InputError(
        f"The background of {video.name} is not plain: the border of its"
        f" frames varies in colour; {_ADVICE}."
      )
  elif matte == "none":
    frames = video.frames.copy()
    frames[..., 3] = 255
    return Foreground(frames, "none", 1.0)
  elif matte.startswith("onnx:"):
    model = onnx.OnnxMatting(matte.removeprefix("onnx:"))
    alpha = model.alpha(video.frames[..., :3])
    foreground = Foreground(_with_alpha(video.frames, alpha), "onnx", 0.9)
  else:
    raise ValueError(
      f"matte={matte!r} is unknown; choose auto, alpha, plain, none or"
      " onnx:PATH."
    )
  _check_coverage(video, foreground)
  return foreground


def _auto(video: VideoFrames) -> Foreground:
  if _has_useful_alpha(video):
    return Foreground(video.frames, "alpha", 1.0)
  foreground = _plain(video)
  if foreground is not None:
    return foreground
  rgb = video.frames[..., :3]
  method = "motion"
  cutout = rough_cutout.moving_object(rgb)
  if cutout is None:
    method = "colour"
    cutout = rough_cutout.distinct_object(rgb)
  logging.warning(
    "%s has neither alpha nor a plain background. The object was cut out by"
    " its %s, which is rough; for a clean shape %s.",
    video.name,
    method,
    _ADVICE,
  )
  frames = _with_alpha(video.frames, cutout.alpha)
  return Foreground(frames, method, cutout.confidence)


def _plain(video: VideoFrames) -> Foreground | None:
  result = plain_background.remove(video.frames[..., :3])
  if result is None:
    return None
  frames = np.concatenate([result.colours, result.alpha[..., None]], axis=-1)
  return Foreground(frames, "plain", result.confidence)


def _has_useful_alpha(video: VideoFrames) -> bool:
  """Whether alpha takes away more than a few stray pixels."""
  if not video.has_alpha:
    return False
  return float((video.frames[..., 3] < 128).mean()) >= MIN_COVERAGE


def _with_alpha(frames: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  """Colours of sure pixels spread over soft ones, with the new alpha."""
  colours = np.stack(
    [
      plain_background.spread_colours(rgb, opacity > 230)
      for rgb, opacity in zip(frames[..., :3], alpha)
    ]
  )
  share = (alpha.astype(np.float32) / 255)[..., None]
  colours = share * frames[..., :3] + (1 - share) * colours
  colours = np.rint(colours).astype(np.uint8)
  return np.concatenate([colours, alpha[..., None]], axis=-1)


def _check_coverage(video: VideoFrames, foreground: Foreground) -> None:
  covered = (foreground.frames[..., 3] >= 128).mean(axis=(1, 2))
  if covered.max() < MIN_COVERAGE:
    raise InputError(
      f"No object was found in {video.name} (way: {foreground.method}): at"
      f" most {100 * covered.max():.3f} % of a frame would be left. If there"
      f" is one, {_ADVICE}."
    )
  absent = np.flatnonzero(covered < MIN_COVERAGE)
  if len(absent):
    logging.warning(
      "%s: the object is absent from %d of %d frames (%s); they stay in the"
      " clip, empty.",
      video.name,
      len(absent),
      len(covered),
      ", ".join(map(str, absent)),
    )
