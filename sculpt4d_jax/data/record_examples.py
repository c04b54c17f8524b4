"""One training example of a record: a random stretch of time, a random view.

What is drawn serves all frames of the example alike - the mirror, the direction
of time, the colours, the place in the picture - so that nothing flickers that
did not flicker in the object.
"""

from collections.abc import Mapping
import dataclasses
import io

import numpy as np
from PIL import Image

from sculpt4d_jax.data import asset_records
from sculpt4d_jax.data import dataset_index
from sculpt4d_jax.data import record_files
from sculpt4d_jax.data import record_views

CONTENTS = ("geometry", "queries", "images", "depth", "posterior")
_MIRROR = np.array([-1.0, 1.0, 1.0])


@dataclasses.dataclass(frozen=True)
class ExampleConfig:
  """What is read of a record, and how it is varied.

  Attributes:
    contents: Of `CONTENTS`.
    num_frames: Frames F' of an example.
    consecutive: Whether they follow each other; otherwise any frames, in order.
    num_parts: Parts of the surface that are read; 0 reads all.
    num_samples: Distance samples a frame; 0 takes all of the parts read.
    image_size: Pixels S of a picture's side.
    border_ratio: Smallest and largest share of the picture that the object
      leaves free, drawn once an example.
    mirror: Whether left and right are swapped half the time.
    reverse_time: Whether time runs backwards half the time.
    colour_jitter: Brightness, contrast and saturation vary by +- this.
    posterior: Name of the encoder whose posteriors are read.
  """

  contents: tuple[str, ...] = ("geometry", "images")
  num_frames: int = 16
  consecutive: bool = True
  num_parts: int = 1
  num_samples: int = 0
  image_size: int = 512
  border_ratio: tuple[float, float] = (0.1, 0.25)
  mirror: bool = True
  reverse_time: bool = True
  colour_jitter: float = 0.1
  posterior: str = ""

  def __post_init__(self):
    unknown = set(self.contents) - set(CONTENTS)
    if unknown or not self.contents:
      raise ValueError(
          f"contents={self.contents} must be some of {CONTENTS}."
      )
    low, high = self.border_ratio
    if not 0 <= low <= high < 0.9:
      raise ValueError(
          f"border_ratio={self.border_ratio} must lie in [0, 0.9)."
      )
    if self.num_frames < 1 or self.num_parts < 0 or self.image_size < 1:
      raise ValueError(
          "num_frames and image_size must be positive and num_parts not"
          " negative."
      )
    if "posterior" in self.contents and self.mirror:
      raise ValueError(
          "Posteriors are of the object as it is: set mirror=False to read"
          " them."
      )


class ExampleReader:
  """Reads examples of a data set's clips; may be pickled."""

  def __init__(
      self,
      index: dataset_index.DatasetIndex,
      split: str,
      config: ExampleConfig,
  ):
    """Reads a split of a data set.

    Raises:
      RecordError: Its clips have fewer frames than an example.
    """
    self._clips = index.splits[split]
    self._config = config
    settings = index.settings
    self._num_frames = settings["num_frames"]
    self._uniform_share = settings["num_uniform"] / (
        settings["num_uniform"] + settings["num_sharp"]
    )
    if config.num_frames > self._num_frames:
      raise asset_records.RecordError(
          f"num_frames={config.num_frames} exceeds the {self._num_frames} of the"
          " data set's clips."
      )
    self._reader = record_files.ShardReader(index.folder / "shards")
    self._posteriors = record_files.ShardReader(
        index.folder / "posteriors" / config.posterior
    )

  def read(self, row: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Reads an example.

    Args:
      row: Number of the clip.
      rng: Everything that is drawn comes from it.

    Returns:
      For geometry: `surface` [F', P, 7] (position, normal, sharp label; the
      uniform rows first) and `samples` [F', Q', 4]. For queries: `queries`
      [F', N, 7]. For images: `images` uint8 [F', S, S, 3] on white,
      `camera_to_world` [4, 4] and `fov_degrees` [1]. For depth: `depth`
      [F', S, S] and `normal` [F', S, S, 3], of the same view and crop. For
      posterior: `mean` and `log_variance` [F', N, C]. Always: `clip`, the
      row, and `frames` [F'].

    Raises:
      RecordError: An entry is damaged or missing.
    """
    clip, config = self._clips[row], self._config
    frames = self._draw_frames(rng)
    # Drawn whether or not they are used, so that examples of the same seed
    # agree whatever is read.
    mirrored = bool(rng.random() < 0.5) and config.mirror
    if rng.random() < 0.5 and config.reverse_time:
      frames = frames[::-1]
    # Not rng.spawn: it counts its children, and a reader lends its generators.
    part_rng, view_rng = (
        np.random.default_rng(seed) for seed in rng.integers(2**62, size=2)
    )
    example = {"clip": np.int64(row), "frames": frames}
    if "geometry" in config.contents:
      example |= self._geometry(clip, frames, part_rng)
    if "queries" in config.contents:
      entry = self._entry(clip, "queries", 0)
      example["queries"] = _rows(entry["surface"][frames], entry["is_sharp"])
    if {"images", "depth"} & set(config.contents):
      example |= self._view(clip, frames, view_rng)
    if "posterior" in config.contents:
      example |= self._posterior(clip, frames)
    return _mirror(example) if mirrored else example

  def _draw_frames(self, rng) -> np.ndarray:
    total, count = self._num_frames, self._config.num_frames
    if self._config.consecutive:
      return np.arange(count) + rng.integers(total - count + 1)
    return np.sort(rng.choice(total, count, replace=False))

  def _entry(self, clip, kind, part) -> dict[str, np.ndarray]:
    position = clip.entries[kind][part]
    return asset_records.decode(self._reader.read(clip.shard, position), kind)

  def _geometry(self, clip, frames, rng) -> dict[str, np.ndarray]:
    total = len(clip.entries["geometry"])
    count = self._config.num_parts or total
    if count > total:
      raise asset_records.RecordError(
          f"num_parts={count} exceeds the {total} parts of {clip.clip}."
      )
    parts = np.sort(rng.choice(total, count, replace=False))
    entries = [self._entry(clip, "geometry", part) for part in parts.tolist()]
    middle = round(len(entries[0]["is_sharp"]) * self._uniform_share)
    groups = []
    for side in (slice(None, middle), slice(middle, None)):
      groups += [
          _rows(e["surface"][frames][:, side], e["is_sharp"][side])
          for e in entries
      ]
    samples = np.concatenate([e["samples"][frames] for e in entries], axis=1)
    wanted = self._config.num_samples
    if wanted > samples.shape[1]:
      raise asset_records.RecordError(
          f"num_samples={wanted} exceeds the {samples.shape[1]} samples of the"
          f" parts that are read of {clip.clip}; read more parts."
      )
    if wanted:
      samples = samples[:, rng.choice(samples.shape[1], wanted, replace=False)]
    return {
        "surface": np.concatenate(groups, axis=1),
        "samples": samples.astype(np.float32),
    }

  def _posterior(self, clip, frames) -> dict[str, np.ndarray]:
    contents = self._posteriors.contents(clip.shard)
    if clip.clip not in contents:
      raise asset_records.RecordError(
          f"{clip.clip} has no posterior of {self._config.posterior!r}; run"
          " python -m launch.encode_data."
      )
    position = contents[clip.clip]["entries"]["posterior"][0]
    entry = asset_records.decode(
        self._posteriors.read(clip.shard, position), "posterior"
    )
    return {name: x[frames].astype(np.float32) for name, x in entry.items()}

  def _view(self, clip, frames, rng) -> dict[str, np.ndarray]:
    config = self._config
    number = int(rng.integers(len(clip.entries["view"])))
    view = self._entry(clip, "view", number)
    pictures = np.stack([
        record_views.decode_picture(
            asset_records.unpack(view["pictures"], view["ends"], frame)
        )
        for frame in frames.tolist()
    ])
    border = rng.uniform(*config.border_ratio)
    gains = 1 + config.colour_jitter * rng.uniform(-1, 1, 3)
    box = _square(pictures[..., 3], border)
    example: dict[str, np.ndarray] = {}
    if "images" in config.contents:
      images = [_crop(p, box, config.image_size) for p in pictures]
      example["images"] = _on_white(np.stack(images), gains)
      example["camera_to_world"] = view["camera_to_world"]
      example["fov_degrees"] = view["fov_degrees"]
    if "depth" in config.contents:
      buffers = self._entry(clip, "buffers", number)
      example |= _buffers(buffers, frames, box, config.image_size)
    return example


def _rows(surface: np.ndarray, is_sharp: np.ndarray) -> np.ndarray:
  """Rows [F, P, 7]: position, normal, label."""
  label = np.broadcast_to(
      is_sharp.astype(np.float32), surface.shape[:2]
  )[..., None]
  return np.concatenate([surface.astype(np.float32), label], axis=-1)


def _mirror(example: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The example in a mirror across x = 0."""
  result = dict(example)
  for name in ("surface", "queries"):
    if name in result:
      signs = np.concatenate([_MIRROR, _MIRROR, [1.0]]).astype(np.float32)
      result[name] = result[name] * signs
  if "samples" in result:
    signs = np.concatenate([_MIRROR, [1.0]]).astype(np.float32)
    result["samples"] = result["samples"] * signs
  for name in ("images", "depth", "normal"):
    if name in result:
      result[name] = np.ascontiguousarray(result[name][:, :, ::-1])
  if "normal" in result:
    result["normal"] = result["normal"] * _MIRROR.astype(np.float32)
  if "camera_to_world" in result:
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    result["camera_to_world"] = flip @ result["camera_to_world"] @ flip
  return result


def _square(alpha: np.ndarray, border: float) -> tuple[float, ...]:
  """One square around the object in all frames: left, top, right, bottom."""
  rows = np.flatnonzero(alpha.any(axis=(0, 2)))
  columns = np.flatnonzero(alpha.any(axis=(0, 1)))
  if not len(rows):
    return (0.0, 0.0, float(alpha.shape[2]), float(alpha.shape[1]))
  top, bottom = rows[0], rows[-1] + 1
  left, right = columns[0], columns[-1] + 1
  half = max(bottom - top, right - left) / 2 / (1 - border)
  x, y = (left + right) / 2, (top + bottom) / 2
  return (x - half, y - half, x + half, y + half)


def _crop(
    pixels: np.ndarray,
    box: tuple[float, ...],
    size: int,
    resample: Image.Resampling = Image.Resampling.BOX,
) -> np.ndarray:
  """A square of a picture at another size; nothing lies beyond its sides."""
  outside = int(np.ceil(max(0.0, -box[0], -box[1], box[2] - pixels.shape[1],
                            box[3] - pixels.shape[0])))
  margin = ((outside, outside), (outside, outside)) + ((0, 0),) * (
      pixels.ndim - 2
  )
  shifted = tuple(x + outside for x in box)
  image = Image.fromarray(np.pad(pixels, margin))
  if image.mode == "RGBA":
    # Colours are averaged by how much of them is seen.
    image = image.convert("RGBa")
  image = image.resize((size, size), resample, box=shifted)
  return np.asarray(image.convert("RGBA") if image.mode == "RGBa" else image)


def _on_white(rgba: np.ndarray, gains: np.ndarray) -> np.ndarray:
  """Jittered colours on white, uint8 [F, S, S, 3]."""
  alpha = rgba[..., 3:].astype(np.float32) / 255
  rgb = rgba[..., :3].astype(np.float32) / 255
  brightness, contrast, saturation = gains.astype(np.float32)
  grey = rgb.mean(-1, keepdims=True)
  rgb = grey + (rgb - grey) * saturation
  rgb = np.clip(((rgb - 0.5) * contrast + 0.5) * brightness, 0, 1)
  return np.round(255 * (rgb * alpha + 1 - alpha)).astype(np.uint8)


def _buffers(entry, frames, box, size) -> dict[str, np.ndarray]:
  near, far = entry["depth_range"].tolist()
  depths, normals = [], []
  for frame in frames.tolist():
    content = asset_records.unpack(entry["depth"], entry["depth_ends"], frame)
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
      steps = np.asarray(image).astype(np.int32)
    # Depths and normals of different surfaces have no average.
    steps = _crop(steps, box, size, Image.Resampling.NEAREST)
    depths.append(record_views.depth_of_steps(steps, near, far))
    content = asset_records.unpack(entry["normal"], entry["normal_ends"], frame)
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
      pixels = np.asarray(image.convert("RGB"))
    pixels = _crop(pixels, box, size, Image.Resampling.NEAREST)
    normal = pixels.astype(np.float32) / 127.5 - 1
    normals.append(np.where(steps[..., None] > 0, normal, 0))
  return {"depth": np.stack(depths), "normal": np.stack(normals)}
