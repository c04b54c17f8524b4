"""Prepares a sequence for registration: one box, and matching targets."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import cleanup
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry.registration import checks
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.geometry.registration import surfaces

TriangleMesh = mesh_lib.TriangleMesh

BOX_SIDE = 2.0
_SPECK = 0.01  # Parts below this share of the largest part's area.
_OVERSAMPLING = 4  # Points of a target per matched point.


@dataclasses.dataclass(frozen=True)
class Frames:
  """A sequence in units in which its box's longest side is 2.

  Attributes:
    meshes: One mesh a frame; a frame may be empty.
    targets: Matching targets; None in frames without a surface.
    references: Meshes for the checks; None in frames without a surface.
    centre: Centre of the box, in the input's units [3].
    scale: Factor from the input's units.
  """

  meshes: tuple[TriangleMesh, ...]
  targets: tuple[surfaces.Target | None, ...]
  references: tuple[checks.Reference | None, ...]
  centre: np.ndarray
  scale: float

  @classmethod
  def of(
    cls,
    meshes: Sequence[TriangleMesh],
    settings: settings_lib.GraphSettings,
    seed: int = 0,
  ) -> "Frames":
    """Prepares a sequence.

    Args:
      meshes: One mesh a frame.
      settings: Settings; they give the number of matched points.
      seed: Randomness of the points.

    Raises:
      ValueError: No frame has a surface, or a position is not finite.
    """
    for index, mesh in enumerate(meshes):
      if not np.isfinite(mesh.vertices).all():
        raise UserError(f"frame {index} has positions that are not finite.")
    used = [m.vertices[np.unique(m.faces)] for m in meshes if not m.is_empty]
    if not used:
      raise UserError("none of the frames has a surface to register.")
    corners = np.concatenate([[v.min(0), v.max(0)] for v in used])
    low, high = corners.min(0).astype(float), corners.max(0).astype(float)
    side = float((high - low).max())
    if side <= 0:
      raise UserError("all frames lie in one point; there is no surface.")
    centre, scale = (low + high) / 2, BOX_SIDE / side
    inside = tuple(
      TriangleMesh((m.vertices - centre) * scale, m.faces) for m in meshes
    )
    rng = np.random.default_rng(seed)
    targets = tuple(_target(mesh, settings, rng) for mesh in inside)
    references = tuple(checks.Reference.of(mesh) for mesh in inside)
    return cls(inside, targets, references, centre, scale)

  def __len__(self) -> int:
    return len(self.meshes)

  def usable(self) -> list[int]:
    """Indices of the frames with a surface."""
    return [i for i, target in enumerate(self.targets) if target is not None]

  def from_input(self, vertices: np.ndarray) -> np.ndarray:
    """Positions [..., 3] in the units of this class."""
    return (np.asarray(vertices, np.float64) - self.centre) * self.scale

  def to_input(self, vertices: np.ndarray) -> np.ndarray:
    """Positions [..., 3] in the input's units."""
    return vertices / self.scale + self.centre

  def part(self, first: int, last: int) -> "Frames":
    """Only the frames first..last, in the same units."""
    chosen = slice(first, last + 1)
    return dataclasses.replace(
      self,
      meshes=self.meshes[chosen],
      targets=self.targets[chosen],
      references=self.references[chosen],
    )

  def num_parts(self, index: int) -> int:
    """Number of connected parts of a frame, without specks."""
    mesh = self.meshes[index]
    if mesh.is_empty:
      return 0
    areas = np.linalg.norm(mesh.face_cross_products(), axis=1)
    parts = np.bincount(cleanup.face_components(mesh), areas)
    return int((parts >= _SPECK * parts.max()).sum())

  def area(self, index: int) -> float:
    """Area of a frame's surface."""
    cross = self.meshes[index].face_cross_products().astype(np.float64)
    return float(np.linalg.norm(cross, axis=1).sum() / 2)


def _target(
  mesh: TriangleMesh,
  settings: settings_lib.GraphSettings,
  rng: np.random.Generator,
) -> surfaces.Target | None:
  if not mesh.has_area:
    return None
  count = _OVERSAMPLING * settings.num_samples
  return surfaces.Target(
    mesh.vertices, mesh.faces, count, settings.normal_scale, rng
  )
