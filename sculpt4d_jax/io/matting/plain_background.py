"""Removes a background of one colour, or of a smoothly varying one.

The background of a clip is modelled as  colour(f, x, y) = level(f) + q(x, y):
q is one quadratic in the pixel position for the whole clip (vignettes, studio
gradients), level(f) follows exposure and fades. Both are fitted robustly to
the border of the frames, then again to all background found.

A pixel is background if its colour lies near the model AND it is connected to
the border through such pixels: parts of the object that happen to have the
background's colour stay, as long as the object encloses them. So does a view
through a hole of the object, which cannot be told from them.

Along the outline, alpha is the pixel's distance from the background's colour,
relative to that of the object just inside (the matting equation
c = alpha * f + (1 - alpha) * b, with f from the nearest inner pixel), and the
background's share is taken out of the colour.
"""

import dataclasses

import numpy as np
from scipy import ndimage

# Distances are Euclidean, of 8-bit RGB.
_MIN_THRESHOLD = 4.0
# Above this median distance the border is textured, not plain.
_MAX_NOISE = 6.0
_MIN_PLAIN_SHARE = 0.7
# Compression surrounds an edge with ringing of about this part of its height.
_RINGING = 0.1
_RINGING_REACH = 8  # Pixels; a transform block.
_MAX_BORDER_SAMPLES = 4000
_SPECK = 1e-4  # Of the frame's pixels.


@dataclasses.dataclass(frozen=True)
class Removal:
  """Result of `remove`.

  Attributes:
    colours: uint8 [F, height, width, 3], without the background's share.
    alpha: uint8 [F, height, width].
    confidence: In (0, 1]: the plain part of the border, less its noise.
  """

  colours: np.ndarray
  alpha: np.ndarray
  confidence: float


def remove(rgb: np.ndarray) -> Removal | None:
  """Removes the background of uint8 [F, height, width, 3], if it is plain.

  Returns:
    The cut-out, or None where less than 70 % of the border fits one smooth
    colour.
  """
  model = _fit(rgb)
  if model is None:
    return None
  for _ in range(2):
    model = _refit(model, rgb)
  surface = model.surface(rgb.shape[1:3])
  colours, alpha = np.full_like(rgb, 255), np.zeros(rgb.shape[:3], np.uint8)
  for index, frame in enumerate(rgb):
    difference = frame - surface - model.levels[index].astype(np.float32)
    _matte(frame, difference, model.threshold, colours[index], alpha[index])
  share = model.plain_share * (1 - 0.5 * model.noise / _MAX_NOISE)
  return Removal(colours, alpha, float(share))


def spread_colours(rgb: np.ndarray, sure: np.ndarray) -> np.ndarray:
  """Gives every pixel the colour of the nearest sure one, [H, W, 3]."""
  if not sure.any():
    return rgb
  rows, columns = ndimage.distance_transform_edt(
    ~sure, return_distances=False, return_indices=True
  )
  return rgb[rows, columns]


@dataclasses.dataclass(frozen=True)
class _Model:
  coefficients: np.ndarray  # [6, 3], of `_basis`.
  levels: np.ndarray  # [F, 3]
  noise: float  # Median distance of border pixels from the model.
  plain_share: float

  @property
  def threshold(self) -> float:
    return max(_MIN_THRESHOLD, 3 * self.noise)

  def surface(self, shape: tuple[int, int]) -> np.ndarray:
    """The background less its level, float32 [H, W, 3]."""
    rows = np.arange(shape[0], dtype=np.float32)[:, None]
    columns = np.arange(shape[1], dtype=np.float32)[None]
    basis = _basis(*np.broadcast_arrays(rows, columns), shape)
    return basis @ self.coefficients.astype(np.float32)


def _basis(rows, columns, shape) -> np.ndarray:
  y = 2 * rows / max(1, shape[0] - 1) - 1
  x = 2 * columns / max(1, shape[1] - 1) - 1
  # No constant: the levels hold it.
  return np.stack([x, y, x * x, x * y, y * y], axis=-1)


def _border(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Rows and columns of the pixels of the border, thinned out evenly."""
  width = max(2, round(0.03 * min(shape)))
  ring = np.ones(shape, bool)
  ring[width:-width, width:-width] = False
  rows, columns = np.nonzero(ring)
  step = -(-len(rows) // _MAX_BORDER_SAMPLES)
  return rows[::step], columns[::step]


def _fit(rgb: np.ndarray) -> _Model | None:
  shape = rgb.shape[1:3]
  rows, columns = _border(shape)
  samples = rgb[:, rows, columns].astype(np.float64)  # [F, R, 3]
  basis = _basis(rows, columns, shape)
  levels = np.median(samples, axis=1)
  # The median over the clip drops an object that touches the border at times.
  pattern = np.median(samples - levels[:, None], axis=0)
  coefficients, constant = _robust_fit(basis, pattern)
  surface = basis @ coefficients
  levels = np.median(samples - surface, axis=1)
  distance = np.linalg.norm(samples - surface - levels[:, None], axis=-1)
  noise = float(np.median(distance))
  model = _Model(coefficients, levels, noise, 0.0)
  share = float((distance < model.threshold).mean())
  if noise > _MAX_NOISE or share < _MIN_PLAIN_SHARE:
    return None
  return dataclasses.replace(model, plain_share=share)


def _robust_fit(
  basis: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Least absolute deviations by reweighting: coefficients, constant."""
  design = np.concatenate([basis, np.ones((len(basis), 1))], axis=1)
  weights = np.ones(len(basis))
  for _ in range(15):
    weighted = design * weights[:, None]
    # A touch of damping: a border may say nothing of some term.
    normal = weighted.T @ design + 1e-6 * len(basis) * np.eye(design.shape[1])
    solution = np.linalg.solve(normal, weighted.T @ values)
    residual = np.linalg.norm(values - design @ solution, axis=1)
    weights = 1 / np.maximum(residual, 0.5)
  return solution[:-1], solution[-1]


def _refit(model: _Model, rgb: np.ndarray) -> _Model:
  """Fits again to a sample of all the background found, not the border only."""
  shape = rgb.shape[1:3]
  step = max(1, round(np.sqrt(shape[0] * shape[1] / 4000)))
  frames = np.unique(np.linspace(0, len(rgb) - 1, 6).astype(int))
  thin = model.surface(shape)[::step, ::step]
  bases, values = [], []
  for index in frames:
    difference = rgb[index, ::step, ::step] - thin - model.levels[index]
    near = np.linalg.norm(difference, axis=-1) < model.threshold
    rows, columns = np.nonzero(_joined_to_border(near))
    rows, columns = rows * step, columns * step
    bases.append(_basis(rows, columns, shape))
    values.append(rgb[index, rows, columns] - model.levels[index])
  coefficients, _ = _robust_fit(np.concatenate(bases), np.concatenate(values))
  rows, columns = _border(shape)
  surface = _basis(rows, columns, shape) @ coefficients
  levels = np.median(rgb[:, rows, columns] - surface, axis=1)
  return dataclasses.replace(model, coefficients=coefficients, levels=levels)


def _flood(distance: np.ndarray, threshold: float) -> np.ndarray:
  """Pixels like the background and connected to the border, bool [H, W]."""
  nearby = ndimage.maximum_filter(distance, 2 * _RINGING_REACH + 1)
  alike = distance < np.maximum(threshold, _RINGING * nearby)
  # Paths of one or two pixels are leaks through the outline.
  wide = ndimage.minimum_filter(alike, 3, mode="nearest")
  return ndimage.maximum_filter(_joined_to_border(wide), 3) & alike


def _joined_to_border(mask: np.ndarray) -> np.ndarray:
  labels, count = ndimage.label(mask)
  edge = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
  is_joined = np.zeros(count + 1, bool)
  is_joined[np.concatenate(edge)] = True
  is_joined[0] = False
  return is_joined[labels]


def _matte(frame, difference, threshold, colours, alpha) -> None:
  """Writes colours [H, W, 3] and alpha [H, W] of one frame, where not 0."""
  distance = np.linalg.norm(difference, axis=-1)
  mask = ~_flood(distance, threshold)
  mask = _without_specks(mask, distance, threshold)
  if not mask.any():
    return
  # Coarse chroma blurs an outline over four pixels.
  band = max(4, round(0.005 * max(mask.shape)))
  region = _bounding_slices(mask, margin=2 * band)
  mask, distance = mask[region], distance[region]
  inner = ndimage.binary_erosion(mask, iterations=band, border_value=1)
  reference = _reference_distance(distance, mask, inner, band)
  share = np.clip(distance / np.maximum(reference, 1e-6), 0, 1)
  share = np.where(mask, np.where(inner, 1, share), 0)[..., None]
  # c = share * f + (1 - share) * b, solved for f; damped where share is low.
  added = difference[region] * (1 / np.maximum(share, 0.3) - 1)
  own = np.clip(np.rint(frame[region] + added), 0, 255)
  colours[region] = np.where(share > 0, own, 255).astype(np.uint8)
  alpha[region] = np.rint(255 * share[..., 0]).astype(np.uint8)


def _bounding_slices(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
  slices = []
  for axis in (1, 0):
    inside = np.flatnonzero(mask.any(axis=axis))
    low, high = inside[0] - margin, inside[-1] + 1 + margin
    slices.append(slice(max(0, int(low)), int(high)))
  return tuple(slices)


def _reference_distance(distance, mask, inner, band) -> np.ndarray:
  """How far the object's own colour is from the background's, per pixel."""
  # Thin parts have no inside: their strongest pixel stands for it.
  peak = ndimage.maximum_filter(distance * mask, 2 * band + 1)
  if not inner.any():
    return peak
  away, (rows, columns) = ndimage.distance_transform_edt(
    ~inner, return_indices=True
  )
  return np.where(away <= 2 * band, distance[rows, columns], peak)


def _without_specks(mask, distance, threshold) -> np.ndarray:
  """Drops components that are tiny, or small and faint."""
  labels, count = ndimage.label(mask, np.ones((3, 3)))
  if not count:
    return mask
  area = np.bincount(labels.ravel(), minlength=count + 1) / mask.size
  peak = ndimage.maximum(distance, labels, np.arange(count + 1))
  keep = (area > _SPECK) & ((area > 10 * _SPECK) | (peak > 2 * threshold))
  keep[0] = False
  return keep[labels]
