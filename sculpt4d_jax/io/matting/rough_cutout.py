"""Rough cut-outs for natural footage, where nothing better is at hand.

`moving_object` compares a clip from a still camera with its median over time.
`distinct_object` models the colours of the background and of what stands out
from it by two Gaussian mixtures and asks each pixel which it resembles, in
the manner of GrabCut with an edge-aware filter in the place of graph cuts.
Both serve to give some object rather than none: a matting network does far
better.

Sources: Rother et al., GrabCut, 2004; He et al., Guided Image Filtering, 2010.
"""

import dataclasses

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage import color

_MOTION_SIDE = 384  # Working size of the longer side, pixels.
_COLOUR_SIDE = 160
_MIN_MOVING_FRAMES = 5
_MIN_MOTION = 18.0  # Distance of 8-bit RGB from the median frame.
_MAX_STILL_NOISE = 6.0
_MIN_OBJECT_SHARE = 0.7  # Of the changed pixels.
_NUM_COMPONENTS = 5
_NUM_ROUNDS = 3
_MAX_SAMPLES = 3000


@dataclasses.dataclass(frozen=True)
class Cutout:
  """Alpha uint8 [F, height, width] and the confidence in it, in [0, 1]."""

  alpha: np.ndarray
  confidence: float


def moving_object(rgb: np.ndarray) -> Cutout | None:
  """Cuts out what moves before a still camera.

  Args:
    rgb: uint8 [F, height, width, 3].

  Returns:
    The cut-out; None where the camera moves, the clip is short, or what moves
    is not one compact object that leaves its place within the clip.
  """
  if len(rgb) < _MIN_MOVING_FRAMES:
    return None
  frames = _shrink(rgb, _MOTION_SIDE).astype(np.float32)
  frames = ndimage.gaussian_filter(frames, (0, 0.7, 0.7, 0))
  background = np.median(frames, axis=0)
  distance = np.linalg.norm(frames - background, axis=-1)
  border = ~_inner_box(background.shape[:2], 0.06)
  noise = np.median(distance)
  threshold = max(_MIN_MOTION, 4 * noise)
  is_still = (distance[:, border] < threshold).mean() > 0.85
  if noise > _MAX_STILL_NOISE or not is_still:
    return None  # The camera moves, or the scene does.
  masks = np.stack([_compact(d > threshold) for d in distance])
  coverage = masks.mean(axis=(1, 2))
  is_shown = (coverage > 0.002) & (coverage < 0.5)
  if is_shown.mean() < 0.6 or not _is_real(frames, background, masks, is_shown):
    return None
  masks[~is_shown] = False
  changed = distance[is_shown] > threshold
  share = (changed & masks[is_shown]).sum() / changed.sum()
  if share < _MIN_OBJECT_SHARE:
    return None  # Much moves: the camera, before an even backdrop.
  return Cutout(_refine(rgb, masks.astype(np.float32)), 0.5 * float(share))


def distinct_object(rgb: np.ndarray) -> Cutout:
  """Cuts out what differs in colour from the frames' border.

  Assumes that little of the border shows the object. The mixtures are fitted
  to the whole clip, starting from what cannot be reached from the border
  along even colours.

  Args:
    rgb: uint8 [F, height, width, 3].
  """
  colours = color.rgb2lab(_shrink(rgb, _COLOUR_SIDE)).astype(np.float32)
  colours = ndimage.gaussian_filter(colours, (0, 0.8, 0.8, 0))
  rng = np.random.default_rng(0)
  border = np.broadcast_to(
    ~_inner_box(colours.shape[1:3], 0.05), colours.shape[:3]
  )
  salience = _barrier_salience(colours)
  prior = 4 * salience - 2  # Log-odds.
  probability = salience
  for _ in range(_NUM_ROUNDS):
    inside = (probability > 0.5) & ~border
    outside = (probability < 0.3) | border
    if inside.sum() < 50:
      return Cutout(np.zeros(rgb.shape[:3], np.uint8), 0.0)
    odds = _log_odds(colours, inside, outside, rng) + prior
    probability = 1 / (1 + np.exp(-odds))
    probability = np.stack(
      [
        _guided_filter(lab[..., 0] / 100, p, 3, 1e-3)
        for lab, p in zip(colours, probability)
      ]
    )
  centre = _centre_weight(colours.shape[1:3])
  masks = np.stack([_compact(p > 0.5, centre) for p in probability])
  soft = ndimage.gaussian_filter(masks.astype(np.float32), (0, 0.7, 0.7))
  return Cutout(_refine(rgb, soft), 0.2)


def _barrier_salience(colours: np.ndarray) -> np.ndarray:
  """How hard each pixel is to reach from the border, in [0, 1], [F, H, W].

  The barrier of a path is the range of values along it, its greatest less its
  least; a pixel's is the smallest barrier of all paths to the border, found
  by sweeps in four directions. Texture raises it less than an outline does.

  Source: Zhang et al., Minimum Barrier Salient Object Detection at 80 FPS,
  2015.
  """
  total = np.zeros(colours.shape[:3], np.float32)
  for channel in range(3):
    total += _barrier(colours[..., channel])
  total *= 0.5 + 0.5 * _centre_weight(colours.shape[1:3])
  high = np.percentile(total, 98, axis=(1, 2), keepdims=True)
  ratio = np.clip(total / np.maximum(high, 1e-6), 0, 1)
  # A steeper curve about the middle between background and object.
  return 1 / (1 + np.exp(-10 * (ratio - 0.5)))


def _barrier(values: np.ndarray) -> np.ndarray:
  """Minimum barrier distance to the border, [F, H, W]."""
  cost = np.full(values.shape, np.inf, np.float32)
  for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):
    cost[edge] = 0
  low, high = values.copy(), values.copy()
  for _ in range(3):
    for axis in (1, 2):
      for step in (1, -1):
        views = [
          np.moveaxis(array, axis, 0)[::step]
          for array in (values, cost, low, high)
        ]
        _sweep(*views)
  return cost


def _sweep(values, cost, low, high) -> None:
  """Lets every line take over the path of the line before, in place."""
  for line in range(1, len(values)):
    new_low = np.minimum(low[line - 1], values[line])
    new_high = np.maximum(high[line - 1], values[line])
    barrier = new_high - new_low
    better = (barrier < cost[line]) & np.isfinite(cost[line - 1])
    cost[line] = np.where(better, barrier, cost[line])
    low[line] = np.where(better, new_low, low[line])
    high[line] = np.where(better, new_high, high[line])


def _centre_weight(shape: tuple[int, int]) -> np.ndarray:
  """1 in the middle, falling towards the corners."""
  y = np.linspace(-1, 1, shape[0])[:, None]
  x = np.linspace(-1, 1, shape[1])[None]
  return np.exp(-1.5 * (x * x + y * y)).astype(np.float32)


def _shrink(rgb: np.ndarray, side: int) -> np.ndarray:
  scale = side / max(rgb.shape[1:3])
  if scale >= 1:
    return rgb
  size = tuple(max(1, round(s * scale)) for s in (rgb.shape[2], rgb.shape[1]))
  return np.stack(
    [
      np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BOX))
      for f in rgb
    ]
  )


def _inner_box(shape: tuple[int, int], border: float) -> np.ndarray:
  inner = np.zeros(shape, bool)
  width = max(2, round(border * min(shape)))
  inner[width:-width, width:-width] = True
  return inner


def _compact(mask: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
  """The main component, and others of at least a fifth of its size."""
  mask = ndimage.binary_closing(mask, iterations=2) | mask
  mask = ndimage.binary_opening(mask, iterations=1)
  mask = ndimage.binary_fill_holes(mask)
  labels, count = ndimage.label(mask)
  if not count:
    return mask
  size = np.bincount(labels.ravel(), minlength=count + 1)
  score = size.astype(np.float64)
  if weight is not None:
    # Central components first: at the border the background is caught, too.
    score = np.bincount(labels.ravel(), weight.ravel(), count + 1)
  score[0] = 0
  keep = (score >= 0.2 * score.max()) & (score > 0)
  return keep[labels]


def _is_real(frames, background, masks, is_shown) -> bool:
  """Whether the masks show objects, not the places that objects left.

  What stays in its place for half of the clip is part of the median itself,
  and then differs where it is NOT. At the outline of a true object the frame
  has edges and the background has none; at such a ghost it is the other way.
  """
  behind = _edges(background)
  ratios = []
  for frame, mask in zip(frames[is_shown], masks[is_shown]):
    outline = mask ^ ndimage.binary_erosion(mask)
    outline = ndimage.binary_dilation(outline)
    ratios.append(
      _edges(frame)[outline].mean() / (behind[outline].mean() + 1.0)
    )
  centres = np.array([ndimage.center_of_mass(m) for m in masks[is_shown]])
  travel = np.linalg.norm(np.ptp(centres, axis=0))
  diameter = np.sqrt(masks[is_shown].mean() * masks[0].size)
  return np.median(ratios) > 1.3 and travel > 0.5 * diameter


def _edges(picture: np.ndarray) -> np.ndarray:
  grey = picture.mean(axis=-1)
  return np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))


def _log_odds(colours, inside, outside, rng) -> np.ndarray:
  """Log-likelihood of object minus that of background, clipped."""
  flat = colours.reshape(-1, 3)
  mixtures = []
  for region in (inside, outside):
    members = np.flatnonzero(region)
    chosen = rng.choice(members, min(_MAX_SAMPLES, len(members)), replace=False)
    mixtures.append(_fit_mixture(flat[chosen], rng))
  odds = _log_density(flat, mixtures[0]) - _log_density(flat, mixtures[1])
  return np.clip(odds, -6, 6).reshape(colours.shape[:3])


def _fit_mixture(samples: np.ndarray, rng: np.random.Generator):
  """Expectation maximisation of a Gaussian mixture with full covariances."""
  count = min(_NUM_COMPONENTS, len(samples))
  centres = samples[rng.choice(len(samples), count, replace=False)]
  distance = np.linalg.norm(samples[:, None] - centres, axis=-1)
  shares = np.eye(count)[distance.argmin(axis=1)]
  for _ in range(10):
    totals = shares.sum(axis=0) + 1e-6
    means = shares.T @ samples / totals[:, None]
    offsets = samples[:, None] - means
    covariances = np.einsum("nk,nki,nkj->kij", shares, offsets, offsets)
    # Lab units squared; keeps one-colour components from collapsing.
    covariances = covariances / totals[:, None, None] + 4.0 * np.eye(3)
    mixture = (np.log(totals / totals.sum()), means, covariances)
    joint = _log_joint(samples, mixture)
    joint -= joint.max(axis=1, keepdims=True)
    shares = np.exp(joint)
    shares /= shares.sum(axis=1, keepdims=True)
  return mixture


def _log_joint(samples: np.ndarray, mixture) -> np.ndarray:
  logs = []
  for log_weight, mean, covariance in zip(*mixture):
    factor = np.linalg.cholesky(np.linalg.inv(covariance))
    scaled = (samples - mean) @ factor
    log_scale = np.log(np.diag(factor)).sum()
    squares = np.einsum("ni,ni->n", scaled, scaled)
    logs.append(log_weight + log_scale - 0.5 * squares)
  return np.stack(logs, axis=1)


def _log_density(samples: np.ndarray, mixture) -> np.ndarray:
  return np.logaddexp.reduce(_log_joint(samples, mixture), axis=1)


def _refine(rgb: np.ndarray, soft: np.ndarray) -> np.ndarray:
  """Brings small soft masks to full size with edges where the frame's are."""
  height, width = rgb.shape[1:3]
  radius = max(2, round(0.01 * max(height, width)))
  alpha = np.empty(rgb.shape[:3], np.uint8)
  for index, (frame, mask) in enumerate(zip(rgb, soft)):
    large = Image.fromarray(mask).resize(
      (width, height), Image.Resampling.BILINEAR
    )
    guide = frame.mean(axis=-1, dtype=np.float32) / 255
    filtered = _guided_filter(guide, np.asarray(large), radius, 1e-3)
    # Steeper than the filter leaves it: a mesh wants an edge, not a veil.
    sharp = np.clip((filtered - 0.5) * 3 + 0.5, 0, 1)
    alpha[index] = np.rint(255 * sharp)
  return alpha


def _guided_filter(guide, target, radius, epsilon) -> np.ndarray:
  """Smooths `target` except across edges of `guide`, both [H, W]."""

  def mean(values):
    return ndimage.uniform_filter(values, 2 * radius + 1)

  guide, target = guide.astype(np.float32), target.astype(np.float32)
  mean_guide, mean_target = mean(guide), mean(target)
  covariance = mean(guide * target) - mean_guide * mean_target
  variance = mean(guide * guide) - mean_guide**2
  slope = covariance / (variance + epsilon)
  return mean(slope) * guide + mean(mean_target - slope * mean_guide)
