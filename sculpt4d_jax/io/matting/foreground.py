"""Separates the object of a clip from its background.

Methods by the value of `matte`; the table is in `methods.py`:

  alpha       the alpha layer of the source
  plain       a plain background is removed: one colour, a gradient, a green
              screen, a floor before a wall
  motion      moving parts in front of a still camera
  colour      parts that differ in colour from the frames' border
  onnx:FILE   a matting network (`onnx.py`)
  none        the entire frame is taken as the object
  auto        alpha, plain, motion, colour: the first suitable one

Every method fits one background model to the complete clip; a model per frame
would make the cut-out flicker. Unless the user gave the mask, pieces that do
not belong to the object are then removed (`pieces.py`). The mask is checked for
plausibility (`plausibility.py`). Frames without the object are kept, fully
transparent; a clip in which no frame shows an object is an error.
"""

import dataclasses

from absl import logging
import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io.matting import cutout
from sculpt4d_jax.io.matting import methods
from sculpt4d_jax.io.matting import pieces
from sculpt4d_jax.io.matting import plausibility
from sculpt4d_jax.io.video.frames import InputError
from sculpt4d_jax.io.video.frames import VideoFrames

# Share of a frame's pixels; smaller objects are too small for a mesh.
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
    method: Name of the method, a key of `methods.METHODS`.
    confidence: Confidence in [0, 1]: 1 where the mask is given, near 0 where it
      is a guess or implausible.
    warnings: Sentences about doubts and about pieces removed from the mask.
  """

  frames: np.ndarray = dataclasses.field(repr=False)
  method: str
  confidence: float
  warnings: tuple[str, ...] = ()


def extract(video: VideoFrames, matte: str = "auto") -> Foreground:
  """Makes the background of a clip transparent.

  Args:
    video: The clip.
    matte: "auto", or "NAME" or "NAME:ARGUMENT" of `methods.METHODS`.

  Raises:
    InputError: The method does not work for this clip, or no object is found.
    ValueError: `matte` is not the name of a method.
    ImportError: A network is given and onnxruntime is not installed.
  """
  name, _, argument = matte.partition(":")
  if name == "auto":
    name, found = _first_that_suits(video)
  elif name in methods.METHODS:
    try:
      found = methods.METHODS[name](video, argument)
    except cutout.NotApplicable as error:
      raise InputError(
        f"{video.name} cannot be cut out by --matte={name}: {error}; {_ADVICE}."
      ) from error
  else:
    raise UserError(
      f"matte={matte!r} is unknown; choose auto,"
      f" {', '.join(methods.METHODS)} (onnx:PATH)."
    )
  foreground = _examined(video, name, found)
  _check_coverage(video, foreground)
  for warning in foreground.warnings:
    logging.warning("%s: %s", video.name, warning)
  return foreground


def _first_that_suits(video: VideoFrames) -> tuple[str, cutout.Cutout]:
  reasons = []
  for name in methods.AUTO:
    try:
      found = methods.METHODS[name](video, "")
    except cutout.NotApplicable as error:
      reasons.append(f"{name}: {error}")
      continue
    if name in methods.ROUGH:
      note = (
        "It has neither alpha nor a plain background. The object was cut out"
        f" by its {name}, which is rough; for a clean shape {_ADVICE}."
      )
      found = dataclasses.replace(found, notes=(*found.notes, note))
    return name, found
  raise InputError(
    f"No object can be cut out of {video.name} ({'; '.join(reasons)});"
    f" {_ADVICE}."
  )


def _examined(
  video: VideoFrames, name: str, found: cutout.Cutout
) -> Foreground:
  """Keeps the object's pieces and records doubts."""
  frames, notes = found.frames, list(found.notes)
  if not found.is_given:
    kept = pieces.keep_object(frames[..., 3], video.frames[..., :3])
    frames = np.concatenate([frames[..., :3], kept.alpha[..., None]], axis=-1)
    notes += [f"{text[0].upper()}{text[1:]}." for text in kept.notes]
  confidence = found.confidence
  if name != "none":
    for finding in plausibility.examine(frames[..., 3]):
      confidence *= finding.factor
      notes.append(finding.text)
  return Foreground(frames, name, float(confidence), tuple(notes))


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
