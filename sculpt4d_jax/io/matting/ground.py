"""A model of the ground behind an object, fitted to the border of the frames.

A ground is one to three surfaces (a wall, a floor, bars), each colour(f, x, y)
= level(f) + q(x, y): q is one quadratic in the pixel position for the whole
clip (vignettes, studio gradients), level(f) follows exposure and fades. The
first surface is fitted robustly to the entire border; if a large part of the
border remains and contains a corner of the frame or two opposite sides, it is
not an object that reaches into the frame, and another surface is fitted to it.

Distances are Euclidean, of 8-bit RGB.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np
from scipy import ndimage

from sculpt4d_jax.io.matting import clusters

MIN_THRESHOLD = 4.0
# Above this median distance the border is textured, not plain.
MAX_NOISE = 6.0
# Below it, noise of camera and encoder need not be smoothed.
_LITTLE_NOISE = 1.2
_MAX_SIGMA = 2.0  # Pixels.
_MIN_PLAIN_SHARE = 0.7
_ALL_BUT_OBJECT = 0.93  # Share of the border.
_MAX_SURFACES = 3
_MIN_SURFACE_SHARE = 0.06  # Of the border.
_MAX_BORDER_SAMPLES = 4000
_MEETING_REACH = 7  # Pixels over which two surfaces mix.
# Compression causes ringing around an edge of about this share of its height.
_RINGING = 0.1
_RINGING_REACH = 8  # Pixels; a transform block.


@dataclasses.dataclass(frozen=True)
class Surface:
  """One plain part of the ground.

  Attributes:
    coefficients: Coefficients of the quadratic, [6, 3]; see `_basis`.
    levels: Colour of each frame, [F, 3].
  """

  coefficients: np.ndarray
  levels: np.ndarray

  def pattern(self, shape: tuple[int, int]) -> np.ndarray:
    """The quadratic without the level, float32 [H, W, 3]."""
    rows = np.arange(shape[0], dtype=np.float32)[:, None]
    columns = np.arange(shape[1], dtype=np.float32)[None]
    basis = _basis(*np.broadcast_arrays(rows, columns), shape)
    return basis @ self.coefficients.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Ground:
  """The ground of a clip.

  Attributes:
    surfaces: The first one covers most of the border.
    noise: Median distance of border pixels from the ground, smoothed frames.
    raw_noise: The same without smoothing.
    plain_share: Share of the border that fits the ground.
    sigma: Pixels by which frames are smoothed before they are compared.
  """

  surfaces: tuple[Surface, ...]
  noise: float
  raw_noise: float
  plain_share: float
  sigma: float

  @property
  def threshold(self) -> float:
    """Distance up to which a pixel counts as ground."""
    return max(MIN_THRESHOLD, 3 * self.noise)

  def smooth(self, frame: np.ndarray) -> np.ndarray:
    """A frame [H, W, 3] with its noise smoothed away, float32."""
    frame = frame.astype(np.float32)
    if not self.sigma:
      return frame
    return ndimage.gaussian_filter(frame, (self.sigma, self.sigma, 0))


def fit(rgb: np.ndarray) -> Ground | None:
  """Fits the ground of uint8 [F, H, W, 3]; None where it is not plain."""
  shape = rgb.shape[1:3]
  places = border(shape)
  samples = rgb[:, places[0], places[1]].astype(np.float64)  # [F, R, 3]
  ground = _fit_ground(samples, places, shape)
  sigma = 0.0
  if ground.raw_noise > _LITTLE_NOISE:
    sigma = float(np.clip(ground.raw_noise / 3, 0.8, _MAX_SIGMA))
    samples = _smooth_samples(rgb, places, sigma)
    smooth = _fit_ground(samples, places, shape)
    ground = dataclasses.replace(
      smooth, raw_noise=ground.raw_noise, sigma=sigma
    )
  if ground.noise > MAX_NOISE or ground.plain_share < _MIN_PLAIN_SHARE:
    return None
  return ground


def _fit_ground(
  samples: np.ndarray,
  places: tuple[np.ndarray, np.ndarray],
  shape: tuple[int, int],
) -> Ground:
  """One surface through all of the border, or several through its parts."""
  first = _fit_surface(samples, *places, shape)
  whole = _with_more_surfaces(first, samples, places, shape)
  if whole.plain_share > _ALL_BUT_OBJECT:
    return whole
  members = _largest_colour(samples)
  rows, columns = (axis[members] for axis in places)
  first = _fit_surface(samples[:, members], rows, columns, shape, is_flat=True)
  parts = _with_more_surfaces(first, samples, places, shape)
  return parts if parts.plain_share > whole.plain_share + 0.02 else whole


def _largest_colour(samples: np.ndarray) -> np.ndarray:
  """Border pixels of the commonest colour, bool [R]."""
  typical = np.median(samples, axis=0)
  rng = np.random.default_rng(0)
  centres, labels = clusters.find(typical, 4, rng)
  # Centres of one gradient belong together.
  largest = np.bincount(labels, minlength=len(centres)).argmax()
  near = np.linalg.norm(centres - centres[largest], axis=-1) < 40
  return near[labels]


def _with_more_surfaces(
  first: Surface,
  samples: np.ndarray,
  places: tuple[np.ndarray, np.ndarray],
  shape: tuple[int, int],
) -> Ground:
  surfaces = [first]
  distance = _distance(first, samples, *places, shape)
  ground = _measured(surfaces, distance)
  while len(surfaces) < _MAX_SURFACES:
    another = _another_surface(
      distance, ground.threshold, samples, *places, shape
    )
    if another is None:
      break
    surfaces.append(another)
    distance = np.minimum(distance, _distance(another, samples, *places, shape))
    ground = _measured(surfaces, distance)
  return ground


def _measured(surfaces: Sequence[Surface], distance: np.ndarray) -> Ground:
  noise = _noise(distance)
  ground = Ground(tuple(surfaces), noise, noise, 0.0, 0.0)
  share = float((distance < ground.threshold).mean())
  return dataclasses.replace(ground, plain_share=share)


def refit(ground: Ground, rgb: np.ndarray) -> Ground:
  """Fits the first surface again to all of it that is found in the frames."""
  shape = rgb.shape[1:3]
  step = max(1, round(np.sqrt(shape[0] * shape[1] / 4000)))
  frames = np.unique(np.linspace(0, len(rgb) - 1, 6).astype(int))
  surface = ground.surfaces[0]
  pattern = surface.pattern(shape)[::step, ::step]
  bases, values = [], []
  for index in frames:
    picture = ground.smooth(rgb[index])[::step, ::step]
    difference = picture - pattern - surface.levels[index]
    near = lengths(difference) < ground.threshold
    rows, columns = np.nonzero(joined_to_border(near))
    bases.append(_basis(rows * step, columns * step, shape))
    values.append(picture[rows, columns] - surface.levels[index])
  if not sum(map(len, values)):
    return ground
  coefficients, _ = _robust_fit(np.concatenate(bases), np.concatenate(values))
  if len(ground.surfaces) == 1:
    rows, columns = border(shape)
    samples = rgb[:, rows, columns]
    values = samples - _basis(rows, columns, shape) @ coefficients
    levels = np.median(values, axis=1)
    first = Surface(coefficients, levels)
  else:
    return ground
  return dataclasses.replace(ground, surfaces=(first, *ground.surfaces[1:]))


def difference(
  ground: Ground,
  patterns: Sequence[np.ndarray],
  frame: np.ndarray,
  index: int,
) -> tuple[np.ndarray, np.ndarray]:
  """A frame minus the surface nearest to each pixel's colour.

  Args:
    ground: The model.
    patterns: `Surface.pattern` of its surfaces.
    frame: Float [H, W, 3], smoothed or not.
    index: Number of the frame.

  Returns:
    The difference, float32 [H, W, 3], and the distance from the ground, [H, W].
  """
  differences = [
    (frame - pattern - surface.levels[index]).astype(np.float32)
    for surface, pattern in zip(ground.surfaces, patterns)
  ]
  distances = [lengths(d) for d in differences]
  nearest, distance = differences[0], distances[0]
  for other, far in zip(differences[1:], distances[1:]):
    is_nearer = far < distance
    nearest = np.where(is_nearer[..., None], other, nearest)
    distance = np.minimum(far, distance)
  if len(differences) > 1:
    mixed = _mixed_distance(differences, distances, ground.threshold)
    distance = np.minimum(distance, mixed)
  return nearest, distance


def lengths(colours: np.ndarray) -> np.ndarray:
  """Lengths of vectors [..., 3]: NumPy's norm, in a tenth of its time."""
  squares = colours * colours
  return np.sqrt(squares[..., 0] + squares[..., 1] + squares[..., 2])


def alike(distance: np.ndarray, threshold: float) -> np.ndarray:
  """Pixels that may be ground, also next to a strong edge, bool [H, W].

  Args:
    distance: Distances from the ground, [H, W].
    threshold: Distance up to which a pixel away from edges counts as ground.
  """
  nearby = ndimage.maximum_filter(distance, 2 * _RINGING_REACH + 1)
  return distance < np.maximum(threshold, _RINGING * nearby)


def _mixed_distance(
  differences: Sequence[np.ndarray],
  distances: Sequence[np.ndarray],
  threshold: float,
) -> np.ndarray:
  """Distance from mixtures of two surfaces, where both are close by."""
  result = np.full(distances[0].shape, np.inf, np.float32)
  size = 2 * _MEETING_REACH + 1
  near = [ndimage.maximum_filter(d < threshold, size) for d in distances]
  for i, first in enumerate(differences):
    for j in range(i):
      step = first - differences[j]  # From surface i to surface j.
      length = np.maximum((step**2).sum(axis=-1), 1e-6)
      share = np.clip((first * step).sum(axis=-1) / length, 0, 1)
      apart = lengths(first - share[..., None] * step)
      # Sharpening and compression overshoot a little.
      apart = np.where(near[i] & near[j], 0.6 * apart, np.inf)
      result = np.minimum(result, apart)
  return result


def border(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  """Rows and columns of the pixels of the border, thinned out evenly."""
  width = max(2, round(0.03 * min(shape)))
  ring = np.ones(shape, bool)
  ring[width:-width, width:-width] = False
  rows, columns = np.nonzero(ring)
  step = -(-len(rows) // _MAX_BORDER_SAMPLES)
  return rows[::step], columns[::step]


def joined_to_border(mask: np.ndarray) -> np.ndarray:
  """Components of a mask [H, W] that touch the border of the frame."""
  labels, count = ndimage.label(mask)
  edge = (labels[0], labels[-1], labels[:, 0], labels[:, -1])
  is_joined = np.zeros(count + 1, bool)
  is_joined[np.concatenate(edge)] = True
  is_joined[0] = False
  return is_joined[labels]


def _smooth_samples(
  rgb: np.ndarray, places: tuple[np.ndarray, np.ndarray], sigma: float
) -> np.ndarray:
  rows, columns = places
  smoothed = [
    ndimage.gaussian_filter(f.astype(np.float32), (sigma, sigma, 0))
    for f in rgb
  ]
  return np.stack([f[rows, columns] for f in smoothed]).astype(np.float64)


def _noise(distance: np.ndarray) -> float:
  """Typical distance of ground pixels, with the heavy tails of compression."""
  # At least a fifth of the border is ground; the rest may be far away. For
  # noise that is normal in three channels, the median is 1.55 times this
  # quantile.
  usual = 1.55 * float(np.quantile(distance, 0.2))
  inliers = distance[distance < max(MIN_THRESHOLD, 5 * usual)]
  if not inliers.size:
    return usual
  tail = float(np.quantile(inliers, 0.98)) / 2.5
  median = float(np.median(inliers))
  return max(median, min(tail, 2 * median))


def _basis(
  rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
  y = 2 * rows / max(1, shape[0] - 1) - 1
  x = 2 * columns / max(1, shape[1] - 1) - 1
  # No constant term: `levels` holds it.
  return np.stack([x, y, x * x, x * y, y * y], axis=-1)


def _distance(
  surface: Surface,
  samples: np.ndarray,
  rows: np.ndarray,
  columns: np.ndarray,
  shape: tuple[int, int],
) -> np.ndarray:
  """Distance of border samples [F, R, 3] from a surface, [F, R]."""
  pattern = _basis(rows, columns, shape) @ surface.coefficients
  return lengths(samples - pattern - surface.levels[:, None])


def _fit_surface(
  samples: np.ndarray,
  rows: np.ndarray,
  columns: np.ndarray,
  shape: tuple[int, int],
  is_flat: bool = False,
) -> Surface:
  basis = _basis(rows, columns, shape)
  levels = np.median(samples, axis=1)
  # The median over frames ignores an object that touches the border at times.
  pattern = np.median(samples - levels[:, None], axis=0)
  if is_flat:  # Too small for curvature.
    coefficients = np.zeros((basis.shape[1], 3))
    coefficients[:2], _ = _robust_fit(basis[:, :2], pattern)
  else:
    coefficients, _ = _robust_fit(basis, pattern)
  levels = np.median(samples - basis @ coefficients, axis=1)
  return Surface(coefficients, levels)


def _another_surface(
  distance: np.ndarray,
  threshold: float,
  samples: np.ndarray,
  rows: np.ndarray,
  columns: np.ndarray,
  shape: tuple[int, int],
) -> Surface | None:
  """A surface through the rest of the border, if that can be ground."""
  left = (distance > threshold).mean(axis=0) > 0.7  # [R]
  if left.mean() < _MIN_SURFACE_SHARE:
    return None
  seeds = left & _anchored(left, rows, columns, shape)
  if seeds.sum() < 3:
    return None
  colour = np.median(samples[:, seeds].reshape(-1, 3), axis=0)
  typical = np.median(samples, axis=0)
  # Pixels similar to the corner; the others may be the object.
  alike = left & (np.linalg.norm(typical - colour, axis=-1) < 60)
  if alike.mean() < _MIN_SURFACE_SHARE:
    return None
  surface = _fit_surface(
    samples[:, alike], rows[alike], columns[alike], shape, is_flat=True
  )
  again = _distance(surface, samples, rows, columns, shape)[:, alike]
  return surface if (again < threshold).mean() > 0.7 else None


def _anchored(
  left: np.ndarray,
  rows: np.ndarray,
  columns: np.ndarray,
  shape: tuple[int, int],
) -> np.ndarray:
  """Border pixels that distinguish a surface from an object at the border.

  Objects reach into the frame from one side; a floor, a wall or a strip
  contains corners, or two opposite sides.
  """
  y = (rows + 0.5) / shape[0] - 0.5
  x = (columns + 0.5) / shape[1] - 0.5
  edge = 0.47
  anchored = np.zeros(len(rows), bool)
  for up in (-1, 1):
    for right in (-1, 1):
      corner = (up * y > edge) & (right * x > edge)
      if corner.any() and left[corner].mean() > 0.5:
        anchored |= corner
  for along, across in ((x, y), (y, x)):
    sides = [
      (sign * along > edge) & (np.abs(across) < edge) for sign in (-1, 1)
    ]
    if all(side.any() and left[side].mean() > 0.5 for side in sides):
      anchored |= sides[0] | sides[1]
  return anchored


def _robust_fit(
  basis: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Least absolute deviations by reweighting: coefficients, constant."""
  design = np.concatenate([basis, np.ones((len(basis), 1))], axis=1)
  weights = np.ones(len(basis))
  for _ in range(15):
    weighted = design * weights[:, None]
    # Slight damping, because the border may not determine every term.
    normal = weighted.T @ design + 1e-6 * len(basis) * np.eye(design.shape[1])
    solution = np.linalg.solve(normal, weighted.T @ values)
    residual = lengths(values - design @ solution)
    weights = 1 / np.maximum(residual, 0.5)
  return solution[:-1], solution[-1]
