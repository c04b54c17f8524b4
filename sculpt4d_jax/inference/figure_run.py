"""A figure of mesh sequences from files: times by views, the clip above."""

from collections.abc import Sequence

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import preview
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.matting import crop
from sculpt4d_jax.io.meshes import sequence_input

_MAX_COLUMNS = 64
_MAX_TILE = 2048


def draw(
  sources: Sequence[paths.PathLike],
  log: run_log.RunLog,
  *,
  video: paths.PathLike | None = None,
  matte: str = "auto",
  columns: int = 6,
  tile_size: int = 256,
  views: Sequence[tuple[float, float]] = preview.VIEWS,
) -> np.ndarray:
  """Draws sequences below one another at the same times.

  Args:
    sources: Folders of meshes, animated GLB or USD files.
    log: Log that times the stages.
    video: Clip for the first row, cut out and cropped as in sampling; None
      leaves the row out.
    matte: Way to cut out the object.
    columns: Number of times, at even distances, the first and the last among
      them; fewer if a sequence has fewer frames.
    tile_size: Side of a picture, pixels.
    views: Azimuth and elevation of each sequence's rows, degrees.

  Returns:
    The sheet, uint8 [h, w, 3].

  Raises:
    UserError: A number is out of range, or a file cannot be used.
  """
  for name, value, low, high in (
    ("columns", columns, 1, _MAX_COLUMNS),
    ("size", tile_size, 16, _MAX_TILE),
  ):
    if not low <= value <= high:
      raise UserError(f"--{name}={value}: expected {low} to {high}.")
  with log.stage("read meshes", len(sources)) as bar:
    sequences = []
    for source in sources:
      sequences.append(sequence_input.read(source).meshes)
      bar.update()
  columns = min(columns, *map(len, sequences))
  pictures = None
  if video is not None:
    clip = pipeline.read_clip(
      video,
      log,
      num_frames=len(sequences[0]),
      image_size=tile_size,
      matte=matte,
    )
    if len(clip.images) != len(sequences[0]):
      raise UserError(
        f"The clip has {len(clip.images)} frames and {sources[0]} has"
        f" {len(sequences[0])}: give the clip that it was made from."
      )
    pictures = crop.crop_clip(clip.foreground.frames, tile_size).images
  sheets = []
  with log.stage("draw", len(sequences)) as bar:
    for meshes in sequences:
      sheets.append(
        preview.contact_sheet(
          meshes,
          None if sheets else pictures,
          max_columns=columns,
          tile_size=tile_size,
          views=views,
        )
      )
      bar.update()
  return np.concatenate(sheets)


def parse_views(text: str) -> tuple[tuple[float, float], ...]:
  """Views from a text such as "0,0 60,20": azimuth and elevation, degrees.

  Raises:
    UserError: It is something else.
  """
  try:
    views = tuple(
      (float(azimuth), float(elevation))
      for azimuth, elevation in (view.split(",") for view in text.split())
    )
    if not views or not np.isfinite(views).all():
      raise ValueError("There are no views, or not all are numbers.")
  except ValueError as error:
    raise UserError(
      f"--views={text!r}: expected AZIMUTH,ELEVATION in degrees, and a space"
      ' between views, as "0,0 60,20".'
    ) from error
  return views
