"""Separates pixels that differ in colour from the frames' border.

A fallback for natural footage, which assumes that the object covers little of
the border. The border colours of all frames are clustered; pixels far from all
clusters and near the middle are probably the object. OpenCV's GrabCut then
segments all frames together, with one colour model for the clip.

OpenCV is part of the optional extra "matting".

Source: Rother et al., GrabCut, 2004.
"""

import types

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage import color
from skimage import filters

from sculpt4d_jax.io.matting import clusters
from sculpt4d_jax.io.matting import cutout
from sculpt4d_jax.io.video.frames import VideoFrames

_GUESS_SIDE = 160  # Working sizes of the longer side, pixels.
_CUT_SIDE = 256
_NUM_CLUSTERS = 8
_NUM_ROUNDS = 3
_MAX_SAMPLES = 4000
_SPREAD = 4.0  # Lab units added to the spread of a cluster.
_CONFIDENCE = 0.2


def cut_out(video: VideoFrames, argument: str) -> cutout.Cutout:
  """See `methods.py`; takes no argument."""
  del argument
  cv2 = _import_cv2()
  rgb = video.frames[..., :3]
  odds = _odds(color.rgb2lab(shrink(rgb, _GUESS_SIDE)).astype(np.float32))
  if odds is None:
    raise cutout.NotApplicable(
      "nothing in it differs in colour from the border of its frames"
    )
  masks = grab(cv2, shrink(rgb, _CUT_SIDE), odds)
  alpha = np.stack([soft_mask(mask, rgb.shape[1:3]) for mask in masks])
  return cutout.from_alpha(video, alpha, _CONFIDENCE)


def shrink(rgb: np.ndarray, side: int) -> np.ndarray:
  """Frames [F, H, W, 3] whose longer side is `side` at most."""
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


def soft_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """A mask [h, w] at full size, uint8 [H, W], with an edge two pixels wide."""
  picture = Image.fromarray(mask.astype(np.uint8) * 255)
  large = picture.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
  scale = max(1.0, shape[1] / mask.shape[1])
  steep = (np.asarray(large, np.float32) - 127.5) * scale / 1.5 + 127.5
  return np.rint(np.clip(steep, 0, 255)).astype(np.uint8)


def grab(
  cv2: types.ModuleType, rgb: np.ndarray, odds: np.ndarray
) -> np.ndarray:
  """GrabCut of all frames as one tall picture, bool [F, h, w]."""
  count, height, width = rgb.shape[:3]
  guess = np.stack(
    [
      np.asarray(Image.fromarray(o).resize((width, height))) > 0
      for o in ndimage.gaussian_filter(odds, (0, 1, 1))
    ]
  )
  labels = np.where(guess, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
  labels[:, _edge((height, width), 0.03)] = cv2.GC_BGD
  if not guess.any():
    return guess
  tall = np.ascontiguousarray(labels.reshape(count * height, width))
  picture = cv2.cvtColor(
    np.ascontiguousarray(rgb.reshape(count * height, width, 3)),
    cv2.COLOR_RGB2Lab,
  )
  cv2.setRNGSeed(0)
  models = np.zeros((1, 65)), np.zeros((1, 65))
  cv2.grabCut(picture, tall, None, *models, _NUM_ROUNDS, cv2.GC_INIT_WITH_MASK)
  is_object = (tall == cv2.GC_FGD) | (tall == cv2.GC_PR_FGD)
  return is_object.reshape(count, height, width)


def _odds(lab: np.ndarray) -> np.ndarray | None:
  """Log-odds of object against ground, float [F, h, w]."""
  lab = ndimage.gaussian_filter(lab, (0, 0.8, 0.8, 0))
  border = np.broadcast_to(_edge(lab.shape[1:3], 0.05), lab.shape[:3])
  rng = np.random.default_rng(0)
  centre = _centre_weight(lab.shape[1:3])
  far = _distance(lab, border, rng)
  salience = np.minimum(far, np.quantile(far, 0.98)) * (0.4 + 0.6 * centre)
  inside = (salience > filters.threshold_otsu(salience)) & ~border
  odds = None
  for _ in range(_NUM_ROUNDS):
    outside = ~ndimage.binary_dilation(inside, np.ones((1, 5, 5))) | border
    if inside.sum() < 50 or outside.sum() < 50:
      return None
    ground = _distance(lab, outside, rng)
    own = _distance(lab, inside, rng)
    odds = np.clip(ground - own, -4, 4) + centre - 0.7
    inside = (ndimage.median_filter(odds, (1, 5, 5)) > 0) & ~border
  return odds.astype(np.float32)


def _distance(
  lab: np.ndarray, members: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Distance from the nearest colour cluster, in units of its spread."""
  samples = lab[members]
  if len(samples) > _MAX_SAMPLES:
    samples = samples[rng.choice(len(samples), _MAX_SAMPLES, replace=False)]
  centres, labels = clusters.find(samples, _NUM_CLUSTERS, rng)
  result = np.full(lab.shape[:3], np.inf, np.float32)
  for index, centre in enumerate(centres):
    own = samples[labels == index]
    if len(own) < 5:
      continue
    spread = own.std(axis=0) + _SPREAD
    apart = np.sqrt((((lab - centre) / spread) ** 2).sum(axis=-1))
    result = np.minimum(result, apart)
  return result


def _edge(shape: tuple[int, int], part: float) -> np.ndarray:
  """The frame's border, bool [h, w]."""
  edge = np.ones(shape, bool)
  width = max(2, round(part * min(shape)))
  edge[width:-width, width:-width] = False
  return edge


def _centre_weight(shape: tuple[int, int]) -> np.ndarray:
  """1 in the middle, falling towards the corners."""
  y = np.linspace(-1, 1, shape[0])[:, None]
  x = np.linspace(-1, 1, shape[1])[None]
  return np.exp(-1.5 * (x * x + y * y)).astype(np.float32)


def _import_cv2() -> types.ModuleType:
  try:
    import cv2
  except ImportError as error:
    raise cutout.NotApplicable(
      'cutting out by colour needs OpenCV, the extra "matting": pip install'
      ' "sculpt4d-jax[matting]"'
    ) from error
  return cv2
