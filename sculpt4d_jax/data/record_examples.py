"""One training example of a record: a random stretch of time, a random view.

What is drawn serves all frames of the example alike - the mirror, the direction
of time, the colours, the place in the picture - so that nothing flickers that
did not flicker in the object.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from sculpt4d_jax.data import asset_records
from sculpt4d_jax.data import dataset_index
from sculpt4d_jax.data import record_files
from sculpt4d_jax.data import record_views

CONTENTS = (
    "geometry", "samples", "queries", "images", "depth", "posterior", "features"
)
# The reach of an object that was turned: as preparation leaves it.
_EXTENT = 0.95
_MIRROR = np.array([-1.0, 1.0, 1.0])


@dataclasses.dataclass(frozen=True)
class ExampleConfig:
  """What is read of a record, and how it is varied.

  Attributes:
    contents: Of `CONTENTS`.
    num_frames: Frames F' of an example.
    consecutive: Whether they follow each other; otherwise any frames, in order.
    num_parts: Parts of the surface that are read; 0 reads all.
    num_uniform: Uniform surface points, drawn from the parts read; 0 takes all
      of these.
    num_sharp: The same of points on sharp edges, where `num_uniform` is given.
    num_samples: Distance samples a frame; 0 takes all of the parts read.
    turn_to_camera: Whether the object is turned about y, so that the camera
      stands in front of it, and made smaller where it would leave its cube.
    max_elevation: Views from further above or below are left out, radians. A
      clip without another one keeps its lowest.
    image_size: Pixels S of a picture's side.
    border_ratio: Smallest and largest share of the picture that the object
      leaves free, drawn once an example.
    mirror: Whether left and right are swapped half the time.
    reverse_time: Whether time runs backwards half the time.
    colour_jitter: Brightness, contrast and saturation vary by +- this.
    posterior: Name of the encoder whose posteriors are read.
    features: Name of the image encoder whose features are read.
  """

  contents: tuple[str, ...] = ("geometry", "images")
  num_frames: int = 16
  consecutive: bool = True
  num_parts: int = 1
  num_uniform: int = 0
  num_sharp: int = 0
  num_samples: int = 0
  turn_to_camera: bool = False
  max_elevation: float = math.pi / 2
  image_size: int = 512
  border_ratio: tuple[float, float] = (0.1, 0.25)
  mirror: bool = True
  reverse_time: bool = True
  colour_jitter: float = 0.1
  posterior: str = ""
  features: str = ""

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
    if min(self.num_uniform, self.num_sharp, self.num_samples) < 0:
      raise ValueError(
          "num_uniform, num_sharp and num_samples must not be negative."
      )
    for kind in ("posterior", "features"):
      if kind in self.contents and not getattr(self, kind):
        raise ValueError(
            f"Reading {kind} takes a name: that of a folder that"
            " launch.precompute_latents wrote."
        )


@dataclasses.dataclass(frozen=True)
class _Folder:
  """A data set, opened."""

  num_frames: int
  uniform_share: float
  shards: record_files.ShardReader
  posteriors: record_files.ShardReader
  features: record_files.ShardReader


def _open(index, config) -> _Folder:
  settings = index.settings
  if config.num_frames > settings["num_frames"]:
    raise asset_records.RecordError(
        f"num_frames={config.num_frames} exceeds the"
        f" {settings['num_frames']} of the clips in {index.folder}."
    )
  num_points = settings["num_uniform"] + settings["num_sharp"]
  return _Folder(
      settings["num_frames"],
      settings["num_uniform"] / num_points,
      record_files.ShardReader(index.folder / "shards"),
      record_files.ShardReader(
          index.folder / "posteriors" / config.posterior
      ),
      record_files.ShardReader(index.folder / "features" / config.features),
  )


class ExampleReader:
  """Reads examples of the clips of one or more data sets; may be pickled."""

  def __init__(
      self,
      indexes: dataset_index.DatasetIndex | Sequence[dataset_index.DatasetIndex],
      split: str,
      config: ExampleConfig,
  ):
    """Reads a split of data sets.

    Raises:
      RecordError: Their clips have fewer frames than an example.
    """
    if isinstance(indexes, dataset_index.DatasetIndex):
      indexes = (indexes,)
    self._config = config
    self._clips = []
    for index in indexes:
      folder = _open(index, config)
      self._clips += [(folder, clip) for clip in index.splits[split]]
    # By clip: its cameras, and how it is turned for each.
    self._cameras: dict[int, np.ndarray] = {}
    self._poses: dict[int, np.ndarray] = {}

  def __len__(self) -> int:
    return len(self._clips)

  def clip(self, row: int) -> dataset_index.IndexedClip:
    """What the index says of a clip."""
    return self._clips[row][1]

  def views(self, row: int) -> list[int]:
    """The views that examples of a clip are drawn from."""
    count = len(self.clip(row).entries["view"])
    if self._config.max_elevation >= math.pi / 2:
      return list(range(count))
    eyes = self.cameras(row)[:, :3, 3]
    steep = np.abs(np.arctan2(eyes[:, 1], np.hypot(eyes[:, 0], eyes[:, 2])))
    chosen = np.flatnonzero(steep <= self._config.max_elevation)
    return chosen.tolist() or [int(steep.argmin())]

  def cameras(self, row: int) -> np.ndarray:
    """Camera-to-world transforms of all views [views, 4, 4]."""
    if row not in self._cameras:
      folder, clip = self._clips[row]
      self._cameras[row] = np.stack([
          _entry(folder, clip, "view", view)["camera_to_world"]
          for view in range(len(clip.entries["view"]))
      ])
    return self._cameras[row]

  def poses(self, row: int) -> np.ndarray:
    """How a clip is turned and scaled for each of its views [views, 3, 3].

    Multiples of rotations: points x become x @ pose.T, distances grow by the
    cube root of its determinant.
    """
    if not self._config.turn_to_camera:
      views = len(self.clip(row).entries["view"])
      return np.broadcast_to(np.eye(3), (views, 3, 3))
    if row not in self._poses:
      folder, clip = self._clips[row]
      # Farthest points: as far out as the object reaches, nearly.
      outmost = _entry(folder, clip, "queries", 0)["surface"][..., :3]
      outmost = outmost.reshape(-1, 3).astype(np.float64)
      self._poses[row] = np.stack([
          _facing(camera[:3, 3], outmost) for camera in self.cameras(row)
      ])
    return self._poses[row]

  def read(self, row: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Reads an example.

    Args:
      row: Number of the clip.
      rng: Everything that is drawn comes from it.

    Returns:
      For geometry: `surface` [F', P, 7] (position, normal, sharp label; the
      uniform rows first) and `samples` [F', Q', 4], for samples these alone.
      For queries: `queries` [F', N, 7]. For images: `images` uint8
      [F', S, S, 3] on white, `camera_to_world` [4, 4], of the object as it
      was prepared unless it is turned, and `fov_degrees` [1]. For depth:
      `depth` [F', S, S] and `normal` [F', S, S, 3], of the same view and
      crop. For posterior: `mean` and `log_variance` [F', N, C]. For features:
      `context` [F', I, D]. Always: `clip`, the row, and `frames` [F'].

    Raises:
      RecordError: An entry is damaged or missing.
    """
    config = self._config
    frames = self._draw_frames(self._clips[row][0], rng)
    # Drawn whether or not they are used, so that examples of the same seed
    # agree whatever is read.
    mirrored = bool(rng.random() < 0.5) and config.mirror
    if rng.random() < 0.5 and config.reverse_time:
      frames = frames[::-1]
    # Not rng.spawn: it counts its children, and a reader lends its generators.
    rngs = [np.random.default_rng(x) for x in rng.integers(2**62, size=3)]
    view = int(rngs[1].choice(self.views(row)))
    return self._make(row, frames, view, mirrored, rngs)

  def read_variant(
      self, row: int, view: int, mirrored: bool, rng: np.random.Generator
  ) -> dict[str, np.ndarray]:
    """Reads a given view of all frames, mirrored or not; see `read`."""
    frames = np.arange(self._clips[row][0].num_frames)
    rngs = [np.random.default_rng(x) for x in rng.integers(2**62, size=3)]
    return self._make(row, frames, view, mirrored, rngs)

  def _make(self, row, frames, view, mirrored, rngs):
    config = self._config
    folder, clip = self._clips[row]
    part_rng, view_rng, choice_rng = rngs
    example = {"clip": np.int64(row), "frames": frames}
    if {"geometry", "samples"} & set(config.contents):
      geometry = self._geometry(folder, clip, frames, part_rng)
      if "geometry" not in config.contents:
        del geometry["surface"]
      example |= geometry
    if "queries" in config.contents:
      entry = _entry(folder, clip, "queries", 0)
      example["queries"] = _rows(entry["surface"][frames], entry["is_sharp"])
    if {"images", "depth"} & set(config.contents):
      example |= self._view(folder, clip, frames, view, view_rng)
    if config.turn_to_camera:
      example = _turn(example, self.poses(row)[view])
    if mirrored:
      example = _mirror(example)
    # Made for the turned and mirrored object.
    if "posterior" in config.contents:
      variant = (view, mirrored, choice_rng.random())
      example |= _posterior(folder, clip, frames, variant, config)
    if "features" in config.contents:
      example |= _features(folder, clip, frames, (view, mirrored), config)
    return example

  def _draw_frames(self, folder, rng) -> np.ndarray:
    total, count = folder.num_frames, self._config.num_frames
    if self._config.consecutive:
      return np.arange(count) + rng.integers(total - count + 1)
    return np.sort(rng.choice(total, count, replace=False))

  def _geometry(self, folder, clip, frames, rng) -> dict[str, np.ndarray]:
    config = self._config
    total = len(clip.entries["geometry"])
    count = config.num_parts or total
    if count > total:
      raise asset_records.RecordError(
          f"num_parts={count} exceeds the {total} parts of {clip.clip}."
      )
    parts = np.sort(rng.choice(total, count, replace=False))
    entries = [
        _entry(folder, clip, "geometry", part) for part in parts.tolist()
    ]
    middle = round(len(entries[0]["is_sharp"]) * folder.uniform_share)
    groups = []
    for side, wanted in (
        (slice(None, middle), config.num_uniform),
        (slice(middle, None), config.num_sharp),
    ):
      rows = np.concatenate(
          [
              _rows(e["surface"][frames][:, side], e["is_sharp"][side])
              for e in entries
          ],
          axis=1,
      )
      if config.num_uniform:
        rows = _draw_rows(rows, wanted, rng, clip, "points")
      groups.append(rows)
    samples = np.concatenate([e["samples"][frames] for e in entries], axis=1)
    if config.num_samples:
      samples = _draw_rows(samples, config.num_samples, rng, clip, "samples")
    return {
        "surface": np.concatenate(groups, axis=1),
        "samples": samples.astype(np.float32),
    }

  def _view(self, folder, clip, frames, number, rng) -> dict[str, np.ndarray]:
    config = self._config
    view = _entry(folder, clip, "view", number)
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
      buffers = _entry(folder, clip, "buffers", number)
      example |= _buffers(buffers, frames, box, config.image_size)
    return example


def _entry(folder, clip, kind, part) -> dict[str, np.ndarray]:
  position = clip.entries[kind][part]
  return asset_records.decode(folder.shards.read(clip.shard, position), kind)


def _draw_rows(rows, count, rng, clip, what) -> np.ndarray:
  """Some rows [F, count, ...] of all [F, P, ...], the same in all frames."""
  total = rows.shape[1]
  if count > total:
    raise asset_records.RecordError(
        f"{count} {what} are asked for, but the parts that are read of"
        f" {clip.clip} have {total}; read more parts."
    )
  return rows[:, rng.choice(total, count, replace=False)]


def posterior_part(
    contents: Mapping[str, Any], view: int, mirrored: bool, choice: int
) -> int:
  """Number of a posterior among those of its clip.

  Args:
    contents: What the shard's table of contents says: the `views` that there
      are, none if it is the same for all; how many `mirrors` and `choices`.
    view: That the object is turned to.
    mirrored: Whether it is.
    choice: Which draw of the query rows.
  """
  place = contents["views"].index(view) if contents["views"] else 0
  return (place * contents["mirrors"] + mirrored) * contents["choices"] + choice


def _posterior(folder, clip, frames, variant, config):
  view, mirrored, fraction = variant
  found = _derived(folder.posteriors, clip, "posterior", config.posterior)
  details = found["details"]
  _check_mirrors(details, mirrored, "posteriors", config.posterior)
  part = posterior_part(
      details, view, mirrored, int(fraction * details["choices"])
  )
  entry = asset_records.decode(
      folder.posteriors.read(clip.shard, found["entries"]["posterior"][part]),
      "posterior",
  )
  return {name: x[frames] for name, x in entry.items()}


def _features(folder, clip, frames, variant, config):
  view, mirrored = variant
  found = _derived(folder.features, clip, "features", config.features)
  _check_mirrors(found["details"], mirrored, "features", config.features)
  part = posterior_part(found["details"] | {"choices": 1}, view, mirrored, 0)
  entry = asset_records.decode(
      folder.features.read(clip.shard, found["entries"]["features"][part]),
      "features",
  )
  return {"context": entry["tokens"][frames]}


def _derived(reader, clip, kind, name):
  contents = reader.contents(clip.shard)
  if clip.clip not in contents:
    raise asset_records.RecordError(
        f"{clip.clip} has no {kind} of {name!r}; make it with"
        " python -m launch.precompute_latents."
    )
  return contents[clip.clip]


def _check_mirrors(details, mirrored, kind, name):
  if mirrored and details["mirrors"] < 2:
    raise asset_records.RecordError(
        f"The {kind} of {name!r} are of the objects as they are: set"
        " mirror=False, or make them with mirrors."
    )


def _rows(surface: np.ndarray, is_sharp: np.ndarray) -> np.ndarray:
  """Rows [F, P, 7]: position, normal, label."""
  label = np.broadcast_to(
      is_sharp.astype(np.float32), surface.shape[:2]
  )[..., None]
  return np.concatenate([surface.astype(np.float32), label], axis=-1)


def _facing(eye: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Turns an eye to the front, and keeps points [P, 3] in their cube."""
  azimuth = math.atan2(eye[0], eye[2])
  sine, cosine = math.sin(azimuth), math.cos(azimuth)
  turn = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
  reach = np.abs(points @ turn.T).max()
  return turn * min(1.0, _EXTENT / reach)


def _turn(
    example: Mapping[str, np.ndarray], pose: np.ndarray
) -> dict[str, np.ndarray]:
  """The example with its object turned and scaled by a pose [3, 3]."""
  result = dict(example)
  scale = np.cbrt(np.linalg.det(pose))
  moved, turned = pose.T.astype(np.float32), (pose / scale).T.astype(np.float32)
  for name in ("surface", "queries"):
    if name in result:
      rows = result[name]
      result[name] = np.concatenate(
          [rows[..., :3] @ moved, rows[..., 3:6] @ turned, rows[..., 6:]], -1
      )
  if "samples" in result:
    rows = result["samples"]
    result["samples"] = np.concatenate(
        [rows[..., :3] @ moved, rows[..., 3:] * np.float32(scale)], -1
    )
  if "depth" in result:
    result["depth"] = result["depth"] * np.float32(scale)
  if "normal" in result:
    result["normal"] = result["normal"] @ turned
  if "camera_to_world" in result:
    camera = result["camera_to_world"].copy()
    camera[:3, :3] = (pose / scale) @ camera[:3, :3]
    camera[:3, 3] = pose @ camera[:3, 3]
    result["camera_to_world"] = camera
  return result


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
