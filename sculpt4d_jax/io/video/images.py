"""Still pictures, folders of them and animated pictures, read with Pillow.

Every picture becomes 8-bit RGBA: palettes and keyed colours are resolved to
alpha, 16-bit greys are scaled down, and the EXIF orientation is applied.
"""

from collections.abc import Iterator, Sequence
import contextlib
import pathlib
import re

from absl import logging
import numpy as np
from PIL import Image
from PIL import ImageOps

from sculpt4d_jax.io.video import frames as video_frames
from sculpt4d_jax.io.video.frames import InputError
from sculpt4d_jax.io.video.frames import VideoFrames

SUFFIXES = frozenset(
  ".png .jpg .jpeg .webp .bmp .tif .tiff .gif .ppm .pgm .avif".split()
)
# Pillow also opens formats that are not pictures (MPEG, EPS).
_FORMATS = "PNG JPEG MPO GIF WEBP BMP TIFF PPM AVIF".split()
# Formats with animations, and TIFF with pages. A phone's JPEG (MPO) has a
# second "frame" too, but that is its brightness map.
_ANIMATED_FORMATS = frozenset(["GIF", "WEBP", "PNG", "AVIF"])
# Their delays are known only after decoding a frame.
_LATE_DELAYS = frozenset(["WEBP", "AVIF"])
_TIFF_KIND = 254  # Tag NewSubfileType; bit 0 marks a smaller copy.
# Delay that browsers use for a GIF without one.
_DEFAULT_DELAY = 0.1


def is_picture(path: pathlib.Path) -> bool:
  """Whether Pillow recognises the file as a picture, perhaps a damaged one."""
  try:
    with Image.open(path, formats=_known_formats()):
      return True
  except Image.UnidentifiedImageError:
    return False
  except Exception:  # Readers of damaged files raise many types.
    return True


def read_picture(
  path: pathlib.Path,
  *,
  num_frames: int | None,
  start: float | None,
  end: float | None,
  fps: float,
  max_side: int,
) -> VideoFrames:
  """Reads one picture (F = 1) or the frames of an animated one."""
  with _open(path) as image:
    video_frames.check_size(*image.size, path.name)
    pages = _pages(image)
    if len(pages) == 1:
      image.seek(pages[0])
      frames = _to_rgba(image, max_side)[None]
      return video_frames.make_video_frames(frames, np.zeros(1), path.stem, fps)
    delays = [_delay(image, page, 1 / fps) for page in pages]
    timestamps = np.cumsum([0.0] + delays[:-1])
    chosen = video_frames.select_frames(
      timestamps, num_frames, start, end, path.name
    )
    width, height = video_frames.fit_size(*image.size, max_side)
    video_frames.check_memory(len(chosen), width, height, path.name)
    frames = []
    for index in chosen:
      image.seek(pages[index])
      frames.append(_to_rgba(image, max_side))
  return video_frames.make_video_frames(
    np.stack(frames),
    timestamps[chosen],
    path.stem,
    1.0 / float(np.mean(delays)),
  )


def read_folder(
  folder: pathlib.Path,
  *,
  num_frames: int | None,
  start: float | None,
  end: float | None,
  fps: float,
  max_side: int,
) -> VideoFrames:
  """Reads a folder's pictures in natural order (frame2 before frame10).

  Hidden files and files without a picture's suffix are ignored.

  Raises:
    InputError: No picture, one that does not decode, or sizes that differ.
  """
  entries = sorted(folder.iterdir(), key=lambda p: natural_key(p.name))
  paths = [
    path
    for path in entries
    if path.suffix.lower() in SUFFIXES
    and not path.name.startswith(".")
    and path.is_file()
  ]
  if not entries:
    raise InputError(f"The folder {folder} is empty; put its frames in it.")
  if not paths:
    raise InputError(
      f"The folder {folder} has {len(entries)} entries but no picture"
      f" ({', '.join(sorted(SUFFIXES))})."
    )
  chosen = video_frames.select_frames(
    np.arange(len(paths)) / fps, num_frames, start, end, folder.name
  )
  width, height = _common_size([paths[i] for i in chosen])
  video_frames.check_size(width, height, paths[0].name)
  video_frames.check_memory(
    len(chosen), *video_frames.fit_size(width, height, max_side), folder.name
  )
  frames = []
  for index in chosen:
    with _open(paths[index]) as image:
      frames.append(_to_rgba(image, max_side))
  return video_frames.make_video_frames(
    np.stack(frames), chosen / fps, folder.resolve().name, fps
  )


def natural_key(name: str) -> list:
  """Sort key under which runs of digits compare as numbers."""
  parts = re.split(r"(\d+)", name.lower())
  return [(int(p), "") if p.isdigit() else (-1, p) for p in parts] + [name]


def resize_rgba(array: np.ndarray, width: int, height: int) -> np.ndarray:
  """Resizes uint8 [height, width, 4]; colours are weighted by alpha."""
  if array.shape[:2] == (height, width):
    return array
  # Pillow premultiplies RGBA for resampling, so colours under alpha 0 do not
  # bleed into edges.
  image = Image.fromarray(np.ascontiguousarray(array))
  return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _known_formats() -> Sequence[str]:
  Image.init()
  return [name for name in _FORMATS if name in Image.OPEN]


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[Image.Image]:
  try:
    with Image.open(path, formats=_known_formats()) as image:
      yield image
  except InputError:
    raise
  except MemoryError as error:
    raise InputError(
      f"{path} does not fit in memory as a picture; scale it down."
    ) from error
  except Exception as error:  # Readers raise many types.
    raise InputError(
      f"{path} does not decode as a picture ({error}); it may be damaged or"
      " of another kind."
    ) from error


def _pages(image: Image.Image) -> list[int]:
  """Numbers of the pictures in a file that are frames of its animation."""
  count = getattr(image, "n_frames", 1)
  if image.format == "TIFF":
    return _tiff_pages(image, count)
  if image.format not in _ANIMATED_FORMATS:
    return [0]
  # A PNG may have an extra picture for programs without animation support.
  first = 1 if getattr(image, "default_image", False) and count > 1 else 0
  return list(range(first, count))


def _tiff_pages(image: Image.Image, count: int) -> list[int]:
  """Pages of the first page's size; others are thumbnails or unrelated."""
  size = image.size
  pages = []
  for page in range(count):
    image.seek(page)
    if image.size == size and not image.tag_v2.get(_TIFF_KIND, 0) & 1:
      pages.append(page)
  if len(pages) not in (0, count):
    logging.warning(
      "%s has %d pages; the %d of the first one's size are used.",
      pathlib.Path(image.filename).name,
      count,
      len(pages),
    )
  image.seek(0)
  return pages or [0]


def _delay(image: Image.Image, page: int, default: float) -> float:
  """Duration of a frame, seconds."""
  if image.format == "TIFF":
    return default
  image.seek(page)
  if image.format in _LATE_DELAYS:
    image.load()
  milliseconds = image.info.get("duration") or 0
  return milliseconds / 1000 if milliseconds > 0 else _DEFAULT_DELAY


def _common_size(paths: Sequence[pathlib.Path]) -> tuple[int, int]:
  """The common displayed size of all pictures; only headers are read."""
  sizes = []
  for path in paths:
    with _open(path) as image:
      width, height = image.size
      is_turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
      sizes.append((height, width) if is_turned else (width, height))
    if sizes[-1] != sizes[0]:
      raise InputError(
        f"The pictures differ in size: {paths[0].name} is"
        f" {sizes[0][0]}x{sizes[0][1]}, {path.name} is"
        f" {sizes[-1][0]}x{sizes[-1][1]}; all frames of a clip need one"
        " size."
      )
  return sizes[0]


def _to_rgba(image: Image.Image, max_side: int) -> np.ndarray:
  # Rotated per frame: rotating the image would make an animation unseekable.
  turned = ImageOps.exif_transpose(image)
  if turned.mode.startswith("I") or turned.mode == "F":
    turned = _deep_grey_to_8_bit(turned)
  array = np.asarray(turned.convert("RGBA"))
  width, height = video_frames.fit_size(*turned.size, max_side)
  return resize_rgba(array, width, height)


def _deep_grey_to_8_bit(image: Image.Image) -> Image.Image:
  """16-bit grey (mode I) or [0, 1] floats (mode F); Pillow would clip both."""
  values = np.asarray(image, np.float64)
  values = values / 257 if image.mode.startswith("I") else values * 255
  return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
