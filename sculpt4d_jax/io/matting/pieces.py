"""Selects the pieces of a cut-out that belong to the object.

A cut-out often contains more than the object: corners of rounded clips, edge
strips of a bad crop, a watermark, specks of a green screen, distant things that
a network takes for objects. They would widen the crop and float in the meshes.
In each frame the main piece is kept, with pieces that are large or near it; a
piece that stands still, all pixels unchanged, while the main one moves, is part
of the scene. A small piece that, seen from the object, is not close to anything
in the frames before and after passes by: a cursor, a bird.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np
from scipy import ndimage

_SOLID = 128  # Alpha from which a pixel belongs to a piece.
# Sizes relative to the main piece, distances to its box's diagonal.
_LARGE = 0.15
_SMALL = 0.003
_NEAR = 0.12
_PASSING = 0.05
_LASTING = 0.05
_STILL_CHANGE = 7.0  # Levels; noise changes still pixels by less.
_MOSTLY = 0.75
_SOFT_REACH = 6  # Pixels of soft edge that stay around a kept piece.
_THIN = 3  # Half the width of lines that run in from the border.


@dataclasses.dataclass(frozen=True)
class Kept:
  """Result of `keep_object`.

  Attributes:
    alpha: uint8 [F, height, width].
    notes: Clauses that describe the removed pieces.
  """

  alpha: np.ndarray
  notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Pieces:
  """Components of one frame; arrays have one entry for each, from label 1.

  Attributes:
    labels: int [H, W], 0 where nothing is.
    area: Pixels.
    still: Share of the pixels that belong to the still scene.
    corner: Whether it holds a corner of the frame.
    boxes: Slices of rows and columns.
  """

  labels: np.ndarray
  area: np.ndarray
  still: np.ndarray
  corner: np.ndarray
  boxes: list[tuple[slice, slice]]


def keep_object(alpha: np.ndarray, rgb: np.ndarray) -> Kept:
  """Clears pieces that do not belong to the object.

  Args:
    alpha: uint8 [F, height, width].
    rgb: The clip, uint8 [F, height, width, 3].
  """
  solid = np.stack([_without_lines(a >= _SOLID) for a in alpha])
  still = _still(solid, rgb)
  frames = [_pieces(mask, still) for mask in solid]
  mains = [_main(pieces, still.any()) for pieces in frames]
  moving = [
    p.still[m] < _MOSTLY for p, m in zip(frames, mains) if m is not None
  ]
  moves = bool(moving) and np.mean(moving) > 0.5
  result = np.zeros_like(alpha)
  dropped = {"still": 0, "corner": 0, "small": 0, "passing": 0}
  for index, (pieces, main) in enumerate(zip(frames, mains)):
    if main is None:
      continue
    keep, reasons = _choose(pieces, main, moves)
    passing = np.zeros_like(keep)
    for number in np.flatnonzero(keep):
      passing[number] = _passes(frames, mains, index, number)
    if passing.any():
      keep &= ~passing
      reasons.add("passing")
    for reason in reasons:
      dropped[reason] += 1
    shown = np.concatenate([[False], keep])[pieces.labels]
    near = ndimage.binary_dilation(shown, iterations=_SOFT_REACH)
    # Other pieces may be within reach of the object's soft edge.
    gone = ~keep & (pieces.area >= _SMALL * pieces.area[main])
    if gone.any():
      others = np.concatenate([[False], gone])[pieces.labels]
      near &= shown | ~ndimage.binary_dilation(others, iterations=2)
    result[index] = np.where(near, alpha[index], 0)
  texts = {
    "still": "something that stands still in every frame (text, a mark, a"
    " strip) was left out",
    "corner": "a piece at a corner of the frame was left out",
    "small": "small pieces far from the object were left out",
    "passing": "a small piece that passes by was left out",
  }
  least = {"passing": 1}
  notes = [
    texts[reason]
    for reason, number in dropped.items()
    if number >= least.get(reason, max(1, len(alpha) / 4))
  ]
  return Kept(result, tuple(notes))


def _without_lines(mask: np.ndarray) -> np.ndarray:
  """Clears thin lines that reach the border: edges of floors, strips."""
  # An opening by a square, whose filters run along one axis after the other.
  square = dict(size=2 * _THIN + 1, mode="constant")
  inner = ndimage.minimum_filter(np.pad(mask, _THIN), **square)
  opened = ndimage.maximum_filter(inner, **square)[_THIN:-_THIN, _THIN:-_THIN]
  opened = ndimage.binary_dilation(opened, iterations=_THIN) & mask
  thin = mask & ~opened
  labels, count = ndimage.label(thin, np.ones((3, 3)))
  if not count:
    return mask
  long = 0.05 * max(mask.shape)
  lines = np.zeros(count + 1, bool)
  for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
    touches = (
      rows.start == 0
      or columns.start == 0
      or rows.stop == mask.shape[0]
      or columns.stop == mask.shape[1]
    )
    extent = max(rows.stop - rows.start, columns.stop - columns.start)
    lines[number] = touches and extent > long
  return mask & ~lines[labels]


def _still(solid: np.ndarray, rgb: np.ndarray) -> np.ndarray:
  """Pixels that are in all masks and never change, bool [H, W]."""
  if len(rgb) < 3:
    return np.zeros(solid.shape[1:], bool)
  grey = np.stack(
    [ndimage.uniform_filter(f.mean(axis=-1, dtype=np.float32), 3) for f in rgb]
  )
  change = np.quantile(grey, 0.9, axis=0) - np.quantile(grey, 0.1, axis=0)
  return (solid.mean(axis=0) > 0.85) & (change < _STILL_CHANGE)


def _pieces(mask: np.ndarray, still: np.ndarray) -> _Pieces:
  labels, count = ndimage.label(mask, np.ones((3, 3)))
  area = np.bincount(labels.ravel(), minlength=count + 1)[1:]
  fixed = np.bincount(labels.ravel(), still.ravel(), count + 1)[1:]
  corner = np.zeros(count + 1, bool)
  corner[labels[[0, 0, -1, -1], [0, -1, 0, -1]]] = True
  return _Pieces(
    labels,
    area,
    fixed / np.maximum(area, 1),
    corner[1:],
    ndimage.find_objects(labels),
  )


def _main(pieces: _Pieces, some_still: bool) -> int | None:
  """The piece that is most likely the object; None where there is none."""
  if not len(pieces.area):
    return None
  height, width = pieces.labels.shape
  score = pieces.area.astype(np.float64)
  for index, (rows, columns) in enumerate(pieces.boxes):
    y = (rows.start + rows.stop) / height - 1
    x = (columns.start + columns.stop) / width - 1
    score[index] *= np.exp(-1.5 * min(1.0, x * x + y * y))
  score[pieces.corner] *= 0.2
  if some_still:
    score[pieces.still > _MOSTLY] *= 0.3
  return int(score.argmax())


def _choose(
  pieces: _Pieces, main: int, moves: bool
) -> tuple[np.ndarray, set[str]]:
  """Selects pieces, and gives reasons for the others."""
  keep = np.zeros(len(pieces.area), bool)
  reasons = set()
  diagonal = _diagonal(pieces.boxes[main])
  for index, area in enumerate(pieces.area):
    share = area / pieces.area[main]
    gap = _gap(pieces.boxes[main], pieces.boxes[index])
    if index == main:
      keep[index] = True
    elif moves and pieces.still[index] > _MOSTLY:
      reasons.add("still")
    elif pieces.corner[index] and not pieces.corner[main]:
      reasons.add("corner")
    elif share >= _LARGE or (share >= _SMALL and gap < _NEAR * diagonal):
      keep[index] = True
    else:
      reasons.add("small")
  return keep, reasons


def _passes(
  frames: Sequence[_Pieces],
  mains: Sequence[int | None],
  index: int,
  number: int,
) -> bool:
  """Whether a piece of a frame is small and has no match in those next to it.

  Args:
    frames: Pieces of all frames.
    mains: The main piece of each; None where nothing is.
    index: Number of the frame.
    number: Number of the piece.
  """
  pieces, main = frames[index], mains[index]
  if number == main or pieces.area[number] > _PASSING * pieces.area[main]:
    return False
  places = np.argwhere(pieces.labels == number + 1)
  reach = max(1, round(_LASTING * _diagonal(pieces.boxes[main])))
  neighbours = [
    other
    for other in (index - 1, index + 1)
    if 0 <= other < len(frames) and mains[other] is not None
  ]
  for other in neighbours:
    solid = frames[other].labels > 0
    close = ndimage.binary_dilation(solid, iterations=reach)
    step = _middle(frames[other], mains[other]) - _middle(pieces, main)
    rows, columns = (places + np.rint(step).astype(int)).T
    inside = (rows >= 0) & (rows < close.shape[0])
    inside &= (columns >= 0) & (columns < close.shape[1])
    # Beyond the frame nothing is known.
    if not inside.all() or close[rows, columns].mean() > 0.5:
      return False
  return bool(neighbours)


def _middle(pieces: _Pieces, number: int) -> np.ndarray:
  """Mean row and column of a piece."""
  return np.array(ndimage.center_of_mass(pieces.labels == number + 1))


def _diagonal(box: tuple[slice, slice]) -> float:
  rows, columns = box
  return float(np.hypot(rows.stop - rows.start, columns.stop - columns.start))


def _gap(first: tuple[slice, slice], second: tuple[slice, slice]) -> float:
  """Pixels between two boxes."""
  apart = [
    max(0, b.start - a.stop, a.start - b.stop) for a, b in zip(first, second)
  ]
  return float(np.hypot(*apart))
