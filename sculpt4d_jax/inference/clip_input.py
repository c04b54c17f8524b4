"""Clips given by a Python caller: a path, an array, or a list of pictures."""

from collections.abc import Sequence
import os
from typing import Any

import numpy as np
from PIL import Image
from PIL import ImageOps

from sculpt4d_jax.io import paths
from sculpt4d_jax.io.video.frames import InputError

ClipInput = str | os.PathLike | np.ndarray | Sequence[Any]


def as_source(clip: ClipInput) -> str | os.PathLike | np.ndarray:
  """Converts the caller's clip to an input of `reader.read_frames`.

  Args:
    clip: A path, which is returned unchanged; an array [F, H, W, 3 or 4] or
      one picture [H, W, 3 or 4], uint8 or floating point in [0, 1]; or a list
      of pictures of one size: paths, PIL images or such arrays.

  Returns:
    The path, or uint8 [F, H, W, 3 or 4].

  Raises:
    InputError: It is none of these.
  """
  if isinstance(clip, (str, os.PathLike, paths.StorePath)):
    return clip
  if isinstance(clip, (list, tuple)):
    return _stack([_picture(item, i) for i, item in enumerate(clip)])
  if isinstance(clip, Image.Image):
    return _picture(clip, 0)[None]
  array = _as_bytes(np.asarray(clip))
  return array[None] if array.ndim == 3 else array


def _picture(item: Any, index: int) -> np.ndarray:
  """One picture of a list, uint8 [H, W, 3 or 4]."""
  if isinstance(item, (str, os.PathLike)):
    try:
      item = Image.open(item)
    except OSError as error:
      raise InputError(f"{os.fspath(item)} is no picture: {error}.") from error
  if isinstance(item, Image.Image):
    try:
      item = ImageOps.exif_transpose(item)
      return np.asarray(item.convert("RGBA"))
    except OSError as error:
      raise InputError(f"Picture {index} is damaged: {error}.") from error
  array = _as_bytes(np.asarray(item))
  if array.ndim != 3 or array.shape[-1] not in (3, 4):
    raise InputError(
      f"Picture {index} of the list has shape {list(array.shape)}; expected"
      " [height, width, 3 or 4], a PIL image or a path."
    )
  return array


def _stack(pictures: list[np.ndarray]) -> np.ndarray:
  if not pictures:
    raise InputError("The list has no pictures; give at least one.")
  sizes = {picture.shape[:2] for picture in pictures}
  if len(sizes) > 1:
    shown = ", ".join(f"{w} x {h}" for h, w in sorted(sizes)[:4])
    raise InputError(
      f"The pictures of a clip must have one size, got {shown}; scale or pad"
      " them alike."
    )
  opaque = [
    np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
    if picture.shape[-1] == 3
    else picture
    for picture in pictures
  ]
  return np.stack(opaque)


def _as_bytes(array: np.ndarray) -> np.ndarray:
  """Floating point in [0, 1] as bytes; other types as they are."""
  if not np.issubdtype(array.dtype, np.floating):
    return array
  if not array.size or not np.isfinite(array).all():
    raise InputError("The array has no values, or some are NaN or infinite.")
  if array.min() < 0 or array.max() > 1:
    raise InputError(
      "A floating-point clip must be in [0, 1], got values from"
      f" {array.min():.3g} to {array.max():.3g}; scale it, or give uint8."
    )
  return np.round(array * 255).astype(np.uint8)
