"""Where an object stands in its cube: rotated, scaled and moved.

Objects may be stored upright, in the frame they were made in, or as a camera
sees them. In the picture's frame the camera looks level along -z and the
middle of the picture is the middle of the cube, so a pixel tells x and y:

     upright                    in the picture's frame
        y                          y
        |   o camera               |
        |  /                       |
     ---+---- z                 ---+---o---- z
        |                          | camera

What a picture leaves open, how steeply the camera looks down, then has no
influence on the shape; `models/view_head.py` predicts it.
"""

from typing import NamedTuple

import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax.geometry import mesh as mesh_lib

Float = array_types.Float

# Largest coordinate of an object that was placed, as after preparation.
EXTENT = 0.95


class Placement(NamedTuple):
  """A similarity: points x become x @ linear.T + shift.

  Attributes:
    linear: A rotation times a positive scale [3, 3].
    shift: Translation [3].
  """

  linear: np.ndarray
  shift: np.ndarray

  @property
  def scale(self) -> float:
    """Factor of all lengths."""
    return float(np.cbrt(np.linalg.det(self.linear)))

  @property
  def rotation(self) -> np.ndarray:
    """The rotation alone [3, 3]."""
    return self.linear / self.scale

  def inverse(self) -> "Placement":
    """The way back."""
    linear = np.linalg.inv(self.linear)
    return Placement(linear, -linear @ self.shift)

  def points(self, points: np.ndarray) -> np.ndarray:
    """Points [..., 3], in their own precision."""
    linear, shift = (x.astype(points.dtype) for x in self)
    return points @ linear.T + shift

  def mesh(self, mesh: mesh_lib.TriangleMesh) -> mesh_lib.TriangleMesh:
    """A mesh, placed."""
    return mesh_lib.TriangleMesh(self.points(mesh.vertices), mesh.faces)

  def directions(self, directions: np.ndarray) -> np.ndarray:
    """Unit vectors [..., 3], in their own precision."""
    return directions @ self.rotation.T.astype(directions.dtype)

  def surface(self, rows: np.ndarray) -> np.ndarray:
    """Rows of position, normal and anything else [..., 6 + n]."""
    return np.concatenate(
      [
        self.points(rows[..., :3]),
        self.directions(rows[..., 3:6]),
        rows[..., 6:],
      ],
      -1,
    )

  def samples(self, rows: np.ndarray) -> np.ndarray:
    """Rows of position and signed distance [..., 4]."""
    distance = rows[..., 3:] * rows.dtype.type(self.scale)
    return np.concatenate([self.points(rows[..., :3]), distance], -1)


# Changes nothing.
UPRIGHT = Placement(np.eye(3), np.zeros(3))


def within(placement: Placement, points: np.ndarray) -> Placement:
  """A placement made smaller where points [P, 3] would leave their cube."""
  scale = min(1.0, EXTENT / np.abs(placement.points(points)).max())
  return Placement(placement.linear * scale, placement.shift * scale)


def in_picture(
  axes: Float[np.ndarray, "3 3"], centre: Float[np.ndarray, "2"]
) -> Placement:
  """Places an upright object as a picture shows it.

  Args:
    axes: Unit vectors of the camera in its rows: right, up, backward.
    centre: Middle of the picture on the plane through the origin that faces
      the camera, (right, up).
  """
  axes = np.asarray(axes, np.float64)
  return Placement(axes, -np.array([*centre, 0.0], np.float64))
