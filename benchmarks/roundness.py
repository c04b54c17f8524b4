r"""Tells how close the meshes of a sample are to a ball.

  sculpt4d sample world.mp4 -o out/earth
  python -m benchmarks.roundness out/earth

Takes folders or files of sampled clips. For each frame, the IoU with the ball
that has the volume and the centre of mass of the mesh, on a grid; printed is
the mean, the lowest, and the sides of the meshes' boxes over the balls'
diameters. For clips of objects that are known to be round, such as a turning
planet, of which there is no true mesh.
"""

from collections.abc import Sequence
import dataclasses
import pathlib

from absl import app
import numpy as np

from launch import program
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.geometry.mesh import TriangleMesh
from sculpt4d_jax.io.meshes import sequence_input

_RESOLUTION = 96


@dataclasses.dataclass(frozen=True)
class Roundness:
  """How one mesh compares with its ball.

  Attributes:
    iou: Intersection over union with the ball, in [0, 1].
    sides: Sides of the mesh's box over the ball's diameter [3].
  """

  iou: float
  sides: np.ndarray


def measure(mesh: TriangleMesh) -> Roundness:
  """Compares a closed mesh in [-1, 1]^3 with the ball of its volume."""
  points = geometry_metrics.grid_points(_RESOLUTION)
  inside = geometry_metrics.grid_occupancy(mesh, _RESOLUTION)
  if not inside.any():
    return Roundness(0.0, np.zeros(3))
  # Centre and volume of the cells, so that a ball itself has an IoU of 1.
  centre = points[inside].mean(0)
  cell = (2.0 / _RESOLUTION) ** 3
  radius = (inside.sum() * cell * 3 / (4 * np.pi)) ** (1 / 3)
  ball = np.linalg.norm(points - centre, axis=1) < radius
  used = mesh.vertices[np.unique(mesh.faces)]
  return Roundness(
    geometry_metrics.intersection_over_union(inside, ball),
    (used.max(0) - used.min(0)) / (2 * radius),
  )


def main(argv: Sequence[str]) -> None:
  """Runs the program."""
  if len(argv) < 2:
    raise app.UsageError("Expected folders or files of sampled clips.")
  for name in argv[1:]:
    meshes = sequence_input.read(pathlib.Path(name)).meshes
    found = [measure(mesh) for mesh in meshes]
    ious = np.array([each.iou for each in found])
    sides = np.mean([each.sides for each in found], 0)
    print(
      f"{name}: {len(found)} frames, IoU with a ball {ious.mean():.3f}, lowest"
      f" {ious.min():.3f}; sides over its diameter"
      f" {', '.join(f'{side:.2f}' for side in sides)}"
    )


if __name__ == "__main__":
  program.run(main, positional=True)
