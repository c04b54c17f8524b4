"""Aligns a mesh of another size, position and orientation with a surface.

Iterated closest points with scale, from the 24 directions of a cube: a user's
mesh may be in centimetres, lie on its side or face the other way. The start
with the smallest mean distance of both surfaces is refined.

Source: Besl and McKay, A Method for Registration of 3-D Shapes, 1992; Umeyama,
Least-Squares Estimation of Transformation Parameters Between Two Point
Patterns, 1991.
"""

import dataclasses
import itertools

import numpy as np
from scipy import spatial

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry.registration import rotations

_SCALE_RANGE = (0.5, 2.0)  # Relative to the ratio of the surfaces' sizes.


@dataclasses.dataclass(frozen=True)
class Similarity:
  """x -> scale * turn @ x + shift.

  Attributes:
    turn: Rotation [3, 3].
    shift: Translation [3].
    scale: Factor.
    distance: Mean distance of the two surfaces after the transform.
  """

  turn: np.ndarray
  shift: np.ndarray
  scale: float
  distance: float = np.inf

  def apply(self, points: np.ndarray) -> np.ndarray:
    """The points [P, 3], moved."""
    return self.scale * points @ self.turn.T + self.shift


def align(
  points: np.ndarray,
  target: np.ndarray,
  *,
  num_steps: int = 12,
  num_refined: int = 3,
) -> Similarity:
  """Finds the similarity that takes points onto a target.

  Args:
    points: Points on the moving surface [P, 3], by area.
    target: Points on the other surface [Q, 3], by area.
    num_steps: Steps from each direction.
    num_refined: Directions that are refined, by four times the steps.

  Raises:
    ValueError: The points of one side have no extent.
  """
  spreads = [
    np.linalg.norm(p - p.mean(0), axis=1).mean() for p in (points, target)
  ]
  if min(spreads) <= 0:
    raise UserError("a mesh without extent cannot be aligned.")
  size = spreads[1] / spreads[0]
  tree = spatial.cKDTree(target)
  found = []
  for turn in cube_rotations():
    shift = target.mean(0) - size * turn @ points.mean(0)
    start = Similarity(turn, shift, size)
    found.append(_iterate(start, points, target, tree, size, num_steps))
  found.sort(key=lambda similarity: similarity.distance)
  refined = [
    _iterate(start, points, target, tree, size, 4 * num_steps)
    for start in found[:num_refined]
  ]
  return min(refined, key=lambda similarity: similarity.distance)


def cube_rotations() -> list[np.ndarray]:
  """The 24 rotations that map a cube onto itself; the first is the identity."""
  found = []
  for order in itertools.permutations(range(3)):
    for signs in itertools.product((1.0, -1.0), repeat=3):
      turn = np.zeros((3, 3))
      turn[range(3), order] = signs
      if np.linalg.det(turn) > 0:
        found.append(turn)
  return found


def _iterate(
  start: Similarity,
  points: np.ndarray,
  target: np.ndarray,
  tree: spatial.cKDTree,
  size: float,
  num_steps: int,
) -> Similarity:
  current = start
  for _ in range(num_steps):
    moved = current.apply(points)
    there, rows = tree.query(moved)
    back, ids = spatial.cKDTree(moved).query(target)
    current = dataclasses.replace(
      _fit(
        np.concatenate([points, points[ids]]),
        np.concatenate([target[rows], target]),
        size,
      ),
      distance=float(there.mean() + back.mean()) / 2,
    )
  moved = current.apply(points)
  there, back = tree.query(moved)[0], spatial.cKDTree(moved).query(target)[0]
  distance = float(there.mean() + back.mean()) / 2
  return dataclasses.replace(current, distance=distance)


def _fit(source: np.ndarray, goal: np.ndarray, size: float) -> Similarity:
  centre, middle = source.mean(0), goal.mean(0)
  offsets = source - centre
  turn = rotations.nearest(((goal - middle).T @ offsets)[None])[0]
  turned = offsets @ turn.T
  scale = (turned * (goal - middle)).sum() / max((offsets**2).sum(), 1e-30)
  scale = float(np.clip(scale, *(bound * size for bound in _SCALE_RANGE)))
  return Similarity(turn, middle - scale * turn @ centre, scale)
