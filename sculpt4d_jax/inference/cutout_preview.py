"""A picture of a cut-out: the frames, and the model's input made from them."""

import numpy as np
from PIL import Image

from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths

NAME = "cutout.png"
_MAX_COLUMNS = 8
_TILE = 224  # Pixels.
_PAGE = (238, 236, 232)


def write(folder: paths.PathLike, clip: pipeline.Clip) -> paths.PathLike:
  """Writes cutout.png: input frames above, the cropped object below.

  Args:
    folder: Output folder; made if missing.
    clip: A clip as the model gets it.

  Returns:
    The picture's path.

  Raises:
    atomic.OutputError: The file cannot be written.
  """
  path = paths.of(folder) / NAME
  with atomic.atomic_path(path) as temporary:
    Image.fromarray(draw(clip)).save(temporary)
  return path


def draw(clip: pipeline.Clip, max_columns: int = _MAX_COLUMNS) -> np.ndarray:
  """The picture, uint8 [height, width, 3].

  Args:
    clip: A clip as the model gets it.
    max_columns: Largest number of frames shown; longer clips are subsampled
      evenly.
  """
  count = len(clip.images)
  columns = np.unique(
    np.linspace(0, count - 1, min(count, max_columns)).astype(int)
  )
  rows = []
  for frames in (clip.source.frames[..., :3], clip.images):
    rows.append(np.hstack([_tile(frames[index]) for index in columns]))
  return np.vstack(rows)


def _tile(frame: np.ndarray) -> np.ndarray:
  tile = Image.new("RGB", (_TILE, _TILE), _PAGE)
  picture = Image.fromarray(np.ascontiguousarray(frame))
  # Small ones are enlarged: the model's input may have 64 pixels a side.
  scale = (_TILE - 8) / max(picture.size)
  picture = picture.resize(
    [max(1, round(side * scale)) for side in picture.size],
    Image.Resampling.LANCZOS,
  )
  left, top = ((_TILE - side) // 2 for side in picture.size)
  tile.paste(picture, (left, top))
  return np.asarray(tile)
