"""Collects the parts of a procedural object and scales them to the cube."""

from collections.abc import Sequence

import numpy as np

from sculpt4d_jax.data.procedural import rotations
from sculpt4d_jax.geometry import signed_distance

NUM_CONES = 12
NUM_BOXES = 4
# Smaller than the cube, because blends extend beyond the parts' bounds.
EXTENT = 0.95
# A ball is a short cone, as a cone needs a direction: half of its axis.
BALL_HALF_AXIS = np.array([0.0, 0.02, 0.0])

_Cone = tuple[np.ndarray, np.ndarray, np.ndarray]  # Start, end, radii.
# Centre, rotation, half size, rounding.
_Box = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Body:
  """Collects the parts of an animation and normalises them."""

  def __init__(self, num_frames: int):
    self.num_frames = num_frames
    self.cones: list[_Cone] = []
    self.boxes: list[_Box] = []
    self.smoothness = 0.05

  @property
  def cones_left(self) -> int:
    """Number of cones that there is room for."""
    return NUM_CONES - len(self.cones)

  @property
  def boxes_left(self) -> int:
    """Number of boxes that there is room for."""
    return NUM_BOXES - len(self.boxes)

  def cone(
    self,
    start: np.ndarray,
    end: np.ndarray,
    start_radius: np.ndarray | float,
    end_radius: np.ndarray | float,
  ) -> np.ndarray:
    """Adds a round cone between two points [F, 3] or [3]."""
    start, end = (self._per_frame(x, 3) for x in (start, end))
    radii = np.stack(
      [self._per_frame(x) for x in (start_radius, end_radius)], -1
    )
    self.cones.append((start, end, radii))
    return end

  def ball(self, centre: np.ndarray, radius: np.ndarray | float) -> None:
    """Adds a ball; `centre` [F, 3], `radius` [F] or numbers."""
    centre = self._per_frame(centre, 3)
    half = BALL_HALF_AXIS
    self.cone(centre - half, centre + half, radius, radius)

  def box(
    self,
    centre: np.ndarray,
    rotation: np.ndarray,
    half_size: np.ndarray,
    rounding: np.ndarray | float,
  ) -> None:
    """Adds a box; `rotation` [F, 3, 3], its columns the box's axes."""
    rotation = np.broadcast_to(rotation, (self.num_frames, 3, 3))
    half_size = self._per_frame(half_size, 3)
    rounding = np.minimum(self._per_frame(rounding), half_size.min(-1) * 0.9)
    self.boxes.append(
      (self._per_frame(centre, 3), rotation, half_size, rounding)
    )

  def move(self, rotation: np.ndarray, place: np.ndarray) -> None:
    """Turns all parts about the origin by [F, 3, 3], then shifts them [F, 3]."""
    rotation = np.broadcast_to(rotation, (self.num_frames, 3, 3))

    def moved(point: np.ndarray) -> np.ndarray:
      return np.einsum("fij,fj->fi", rotation, point) + place

    self.cones = [(moved(s), moved(e), r) for s, e, r in self.cones]
    self.boxes = [
      (moved(c), rotation @ r, half, rounding)
      for c, r, half, rounding in self.boxes
    ]

  def _per_frame(
    self, value: np.ndarray | float, width: int | None = None
  ) -> np.ndarray:
    shape = (self.num_frames,) if width is None else (self.num_frames, width)
    return np.broadcast_to(np.asarray(value, np.float64), shape)

  def solid(self, yaw: float) -> signed_distance.Solid:
    """All parts, turned by yaw and brought into the cube."""
    turn = rotations.rotation_about([0, 1, 0], yaw)
    cones = [(s @ turn.T, e @ turn.T, r) for s, e, r in self.cones]
    boxes = [(c @ turn.T, turn @ r, h, e) for c, r, h, e in self.boxes]
    low, high = _bounds(cones, boxes)
    scale = 2 * EXTENT / (high - low).max()
    centre = (low + high) / 2
    cone_arrays = _cone_arrays(cones, centre, scale, self.num_frames)
    box_arrays = _box_arrays(boxes, centre, scale, self.num_frames)
    smoothness = np.full(self.num_frames, self.smoothness * scale, np.float32)
    return signed_distance.Solid(*cone_arrays, *box_arrays, smoothness)


def _bounds(
  cones: Sequence[_Cone], boxes: Sequence[_Box]
) -> tuple[np.ndarray, np.ndarray]:
  """The box of all parts in all frames: its low and high corners."""
  lows, highs = [], []
  for start, end, radii in cones:
    for point, radius in ((start, radii[:, :1]), (end, radii[:, 1:])):
      lows.append((point - radius).min(0))
      highs.append((point + radius).max(0))
  for centre, rotation, half_size, _ in boxes:
    reach = np.einsum("fij,fj->fi", np.abs(rotation), half_size)
    lows.append((centre - reach).min(0))
    highs.append((centre + reach).max(0))
  return np.min(lows, 0), np.max(highs, 0)


def _cone_arrays(
  cones: Sequence[_Cone], centre: np.ndarray, scale: float, num_frames: int
) -> tuple[np.ndarray, ...]:
  origin = np.zeros((num_frames, NUM_CONES, 3), np.float32)
  rotation = np.tile(np.eye(3, dtype=np.float32), (num_frames, NUM_CONES, 1, 1))
  length = np.ones((num_frames, NUM_CONES), np.float32)
  radii = np.full(
    (num_frames, NUM_CONES, 2), signed_distance.ABSENT, np.float32
  )
  for part, (start, end, part_radii) in enumerate(cones):
    axis = end - start
    span = np.maximum(np.linalg.norm(axis, axis=-1), 1e-3)
    # If one sphere contained the other, the side would have no tangent.
    gap = np.abs(part_radii[:, 0] - part_radii[:, 1])
    span = np.maximum(span, gap * 1.05)
    origin[:, part] = (start - centre) * scale
    rotation[:, part] = rotations.follow_axis(axis)
    length[:, part] = span * scale
    radii[:, part] = part_radii * scale
  return origin, rotation, length, radii


def _box_arrays(
  boxes: Sequence[_Box], centre: np.ndarray, scale: float, num_frames: int
) -> tuple[np.ndarray, ...]:
  origin = np.zeros((num_frames, NUM_BOXES, 3), np.float32)
  rotation = np.tile(np.eye(3, dtype=np.float32), (num_frames, NUM_BOXES, 1, 1))
  half_size = np.full((num_frames, NUM_BOXES, 3), 1e-3, np.float32)
  rounding = np.full(
    (num_frames, NUM_BOXES), signed_distance.ABSENT, np.float32
  )
  half_size += rounding[..., None]  # Inner size 0.
  for part, (box_centre, box_rotation, box_half, box_rounding) in enumerate(
    boxes
  ):
    origin[:, part] = (box_centre - centre) * scale
    rotation[:, part] = box_rotation
    half_size[:, part] = box_half * scale
    rounding[:, part] = box_rounding * scale
  return origin, rotation, half_size, rounding
