"""Training examples of records: a random window of time, a random view.

All frames of an example share its random draws (mirror, direction of time,
colours, crop), so that augmentation adds no flicker.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from sculpt4d_jax.data.loading import pictures as example_pictures
from sculpt4d_jax.data.loading import poses as example_poses
from sculpt4d_jax.data.loading import precomputed
from sculpt4d_jax.data.preparation import views as record_views
from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.data.records import schema
from sculpt4d_jax.data.records import shards as record_files
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import placement

CONTENTS = (
  "geometry",
  "samples",
  "queries",
  "images",
  "masks",
  "depth",
  "posterior",
  "features",
)


@dataclasses.dataclass(frozen=True)
class ExampleConfig:
  """The parts of a record that are read, and their augmentation.

  Attributes:
    contents: Kinds of content to read, from `CONTENTS`.
    num_frames: Number of frames F' of an example.
    consecutive: Whether frames are consecutive; otherwise any frames, in order.
    num_parts: Number of parts of the surface that are read; 0 reads all.
    num_uniform: Number of uniform surface points, drawn from the parts read; 0
      takes all.
    num_sharp: Number of points on sharp edges, used if `num_uniform` is given.
    num_samples: Number of distance samples in a frame; 0 takes all of the parts
      read.
    turn_to_camera: Whether the object is rotated about y, so that the camera is
      in front of it, and shrunk where it would leave its cube.
    picture_frame: Whether it is placed in the picture's frame instead; see
      `placement.py`.
    max_elevation: Largest elevation of a view above or below the horizon,
      radians. A clip without such a view keeps its lowest.
    image_size: Side S of the pictures, pixels.
    border_ratio: Smallest and largest margin around the object, as a fraction
      of the image side; drawn once for an example.
    mirror: Whether left and right are swapped half the time.
    reverse_time: Whether time runs backwards half the time.
    colour_jitter: Largest relative change of brightness, contrast and
      saturation.
    posterior: Name of the encoder whose posteriors are read.
    features: Name of the image encoder whose features are read.
    cache: Folder on a disk that shards of a store are copied to; see
      `shards.ShardReader`.
  """

  contents: tuple[str, ...] = ("geometry", "images")
  num_frames: int = 16
  consecutive: bool = True
  num_parts: int = 1
  num_uniform: int = 0
  num_sharp: int = 0
  num_samples: int = 0
  turn_to_camera: bool = False
  picture_frame: bool = False
  max_elevation: float = math.pi / 2
  image_size: int = 512
  border_ratio: tuple[float, float] = (0.1, 0.25)
  mirror: bool = True
  reverse_time: bool = True
  colour_jitter: float = 0.1
  posterior: str = ""
  features: str = ""
  cache: str = ""

  def __post_init__(self) -> None:
    unknown = set(self.contents) - set(CONTENTS)
    if unknown or not self.contents:
      raise UserError(f"contents={self.contents} must be some of {CONTENTS}.")
    if self.picture_frame and not self.turn_to_camera:
      raise UserError("picture_frame=True needs turn_to_camera=True.")
    low, high = self.border_ratio
    if not 0 <= low <= high < 0.9:
      raise UserError(f"border_ratio={self.border_ratio} must lie in [0, 0.9).")
    if self.num_frames < 1 or self.num_parts < 0 or self.image_size < 1:
      raise UserError(
        "num_frames and image_size must be positive and num_parts not negative."
      )
    if min(self.num_uniform, self.num_sharp, self.num_samples) < 0:
      raise UserError(
        "num_uniform, num_sharp and num_samples must not be negative."
      )
    for kind in ("posterior", "features"):
      if kind in self.contents and not getattr(self, kind):
        raise UserError(
          f"Reading {kind} takes a name: that of a folder of latents that were"
          " computed before."
        )


@dataclasses.dataclass(frozen=True)
class _Folder:
  """An open data set."""

  num_frames: int
  uniform_share: float
  shards: record_files.ShardReader
  posteriors: record_files.ShardReader
  features: record_files.ShardReader


def _open(index: dataset_index.DatasetIndex, config: ExampleConfig) -> _Folder:
  settings = index.settings
  if config.num_frames > settings["num_frames"]:
    raise schema.RecordError(
      f"num_frames={config.num_frames} exceeds the"
      f" {settings['num_frames']} of the clips in {index.folder}."
    )
  num_points = settings["num_uniform"] + settings["num_sharp"]
  return _Folder(
    settings["num_frames"],
    settings["num_uniform"] / num_points,
    record_files.ShardReader(index.folder / "shards", config.cache),
    record_files.ShardReader(
      index.folder / "posteriors" / config.posterior, config.cache
    ),
    record_files.ShardReader(
      index.folder / "features" / config.features, config.cache
    ),
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
    # Clip -> its cameras, and the object's pose for each. Kept in memory: a
    # camera is stored in one entry with the pictures of its view.
    self._cameras: dict[int, np.ndarray] = {}
    self._poses: dict[int, list[placement.Placement]] = {}

  def __len__(self) -> int:
    return len(self._clips)

  def clip(self, row: int) -> dataset_index.IndexedClip:
    """The index entry of a clip."""
    return self._clips[row][1]

  def views(self, row: int) -> list[int]:
    """The views that examples of a clip are drawn from."""
    count = len(self.clip(row).entries["view"])
    # Without a limit no camera is read.
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
      self._cameras[row] = np.stack(
        [
          _entry(folder, clip, "view", view)["camera_to_world"]
          for view in range(len(clip.entries["view"]))
        ]
      )
    return self._cameras[row]

  def poses(self, row: int) -> list[placement.Placement]:
    """How a clip's object is placed for each of its views."""
    if not self._config.turn_to_camera:
      return [placement.UPRIGHT] * len(self.clip(row).entries["view"])
    if row not in self._poses:
      folder, clip = self._clips[row]
      # Farthest-point samples reach nearly as far out as the object.
      outmost = _entry(folder, clip, "queries", 0)["surface"][..., :3]
      outmost = outmost.reshape(-1, 3).astype(np.float64)
      self._poses[row] = [
        example_poses.in_picture(camera, outmost)
        if self._config.picture_frame
        else example_poses.facing(camera[:3, 3], outmost)
        for camera in self.cameras(row)
      ]
    return self._poses[row]

  def read(self, row: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Reads an example.

    Args:
      row: Number of the clip.
      rng: Source of all random draws.

    Returns:
      For geometry: `surface` [F', P, 7] (position, normal, sharp label; the
      uniform rows first) and `samples` [F', Q', 4], with `is_near` bool [Q'];
      for samples these alone.
      For queries: `queries` [F', N, 7]. For images: `images` uint8
      [F', S, S, 3] on white, `camera_to_world` [4, 4], of the object as it
      was prepared unless it is turned, and `fov_degrees` [1]. For masks:
      `masks` uint8 [F', S, S], 255 on the object. For depth:
      `depth` [F', S, S] and `normal` [F', S, S, 3], of the same view and
      crop. For posterior: `mean` and `log_variance` [F', N, C]. For features:
      `context` [F', I, D]. Always: `clip`, the row, and `frames` [F'].

    Raises:
      RecordError: An entry is damaged or missing.
    """
    config = self._config
    frames = self._draw_frames(self._clips[row][0], rng)
    # Drawn whether or not they are used, so that examples of one seed agree
    # whatever is read.
    mirrored = bool(rng.random() < 0.5) and config.mirror
    if rng.random() < 0.5 and config.reverse_time:
      frames = frames[::-1]
    # Not rng.spawn, whose result depends on how often it was called before.
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

  def _make(
    self,
    row: int,
    frames: np.ndarray,
    view: int,
    mirrored: bool,
    rngs: Sequence[np.random.Generator],
  ) -> dict[str, np.ndarray]:
    config = self._config
    folder, clip = self._clips[row]
    # Separate generators: reading another kind of content does not change the
    # draws of the rest.
    part_rng, view_rng, choice_rng = rngs
    example = {"clip": np.int64(row), "frames": frames}
    if {"geometry", "samples"} & set(config.contents):
      geometry = self._geometry(folder, clip, frames, part_rng)
      if "geometry" not in config.contents:
        del geometry["surface"]
      example |= geometry
    if "queries" in config.contents:
      entry = _entry(folder, clip, "queries", 0)
      example["queries"] = _rows((entry["surface"][frames], entry["is_sharp"]))
    if {"images", "masks", "depth"} & set(config.contents):
      example |= self._view(folder, clip, frames, view, view_rng)
    # Turned first: the poses are those of cameras that are not mirrored.
    if config.turn_to_camera:
      example = example_poses.place(example, self.poses(row)[view])
    if mirrored:
      example = example_poses.mirror(example)
    # Posteriors and features were computed for the turned and mirrored object.
    if "posterior" in config.contents:
      variant = (view, mirrored, choice_rng.random())
      example |= precomputed.posterior(folder.posteriors, clip, frames, variant)
    if "features" in config.contents:
      variant = (view, mirrored)
      example |= precomputed.features(folder.features, clip, frames, variant)
    return example

  def _draw_frames(
    self, folder: _Folder, rng: np.random.Generator
  ) -> np.ndarray:
    total, count = folder.num_frames, self._config.num_frames
    if self._config.consecutive:
      return np.arange(count) + rng.integers(total - count + 1)
    return np.sort(rng.choice(total, count, replace=False))

  def _geometry(
    self,
    folder: _Folder,
    clip: dataset_index.IndexedClip,
    frames: np.ndarray,
    rng: np.random.Generator,
  ) -> dict[str, np.ndarray]:
    config = self._config
    total = len(clip.entries["geometry"])
    count = config.num_parts or total
    if count > total:
      raise schema.RecordError(
        f"num_parts={count} exceeds the {total} parts of {clip.clip}."
      )
    # In the order of the file, which is read forwards.
    parts = np.sort(rng.choice(total, count, replace=False))
    entries = [
      _entry(folder, clip, "geometry", part) for part in parts.tolist()
    ]
    # Rows of a part are uniform ones first, then sharp ones. The label cannot
    # tell them apart: a mesh without sharp edges has none set.
    #
    #   stored   part 0: [uniform | sharp]    part 1: [uniform | sharp]
    #   result   [uniform of 0 | uniform of 1 | sharp of 0 | sharp of 1]
    #
    # The autoencoder picks its queries from both sides of the middle.
    middle = round(len(entries[0]["is_sharp"]) * folder.uniform_share)
    groups = []
    for side, wanted in (
      (slice(None, middle), config.num_uniform),
      (slice(middle, None), config.num_sharp),
    ):
      surface = np.concatenate([e["surface"][:, side] for e in entries], axis=1)
      label = np.concatenate([e["is_sharp"][side] for e in entries])
      if config.num_uniform:
        drawn = _draw_rows(len(label), wanted, rng, clip, "points")
        surface, label = surface[:, drawn], label[drawn]
      groups.append((surface[frames], label))
    # Near samples and samples of the cube alternate by part, so that they are
    # told apart by their label, not by their place.
    samples = np.concatenate([e["samples"][frames] for e in entries], axis=1)
    is_near = np.concatenate([e["is_near"] for e in entries]).astype(bool)
    if config.num_samples:
      rows = _draw_rows(is_near.size, config.num_samples, rng, clip, "samples")
      samples, is_near = samples[:, rows], is_near[rows]
    return {
      "surface": _rows(*groups),
      "samples": samples.astype(np.float32),
      "is_near": is_near,
    }

  def _view(
    self,
    folder: _Folder,
    clip: dataset_index.IndexedClip,
    frames: np.ndarray,
    number: int,
    rng: np.random.Generator,
  ) -> dict[str, np.ndarray]:
    config = self._config
    view = _entry(folder, clip, "view", number)
    pictures = np.stack(
      [
        record_views.decode_picture(
          schema.unpack(view["pictures"], view["ends"], frame)
        )
        for frame in frames.tolist()
      ]
    )
    # Drawn whatever is read, so that masks alone are cut as images would be.
    border = rng.uniform(*config.border_ratio)
    gains = 1 + config.colour_jitter * rng.uniform(-1, 1, 3)
    # One box for all frames: the object moves within it, as in a real video.
    box = example_pictures.square(pictures[..., 3], border)
    example: dict[str, np.ndarray] = {}
    if {"images", "masks"} & set(config.contents):
      cut = np.stack(
        [example_pictures.crop(p, box, config.image_size) for p in pictures]
      )
    if "masks" in config.contents:
      example["masks"] = cut[..., 3]
    if "images" in config.contents:
      example["images"] = example_pictures.on_white(cut, gains)
      # The camera of the whole picture, before it is cut.
      example["camera_to_world"] = view["camera_to_world"]
      example["fov_degrees"] = view["fov_degrees"]
    if "depth" in config.contents:
      buffers = _entry(folder, clip, "buffers", number)
      example |= example_pictures.buffers(
        buffers, frames, box, config.image_size
      )
    return example


def _entry(
  folder: _Folder, clip: dataset_index.IndexedClip, kind: str, part: int
) -> dict[str, np.ndarray]:
  position = clip.entries[kind][part]
  return schema.decode(folder.shards.read(clip.shard, position), kind)


def _draw_rows(
  total: int,
  count: int,
  rng: np.random.Generator,
  clip: dataset_index.IndexedClip,
  what: str,
) -> np.ndarray:
  """Draws rows, the same for all frames."""
  if count > total:
    raise schema.RecordError(
      f"{count} {what} are requested, but the parts that are read of"
      f" {clip.clip} have {total}; read more parts."
    )
  return rng.choice(total, count, replace=False)


def _rows(*groups: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
  """Joins surfaces [F, P', 6] and labels [P'] to rows [F, P, 7]."""
  num_rows = sum(len(label) for _, label in groups)
  rows = np.empty((len(groups[0][0]), num_rows, 7), np.float32)
  begin = 0
  for surface, label in groups:  # No concatenation: a surface has 112 MB.
    end = begin + len(label)
    rows[:, begin:end, :6] = surface
    rows[:, begin:end, 6] = label
    begin = end
  return rows
