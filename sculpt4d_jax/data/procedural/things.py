"""Procedural families of rigid things: balls, blocks, vessels, furniture, plants.

They turn, and some bounce or slide, but do not change their shape. Creatures
alone teach a model that everything has a body with limbs: it would take a round
outline for a creature that faces the camera. `solids` includes them if a
configuration sets things.
"""

import numpy as np

from sculpt4d_jax.data.procedural import body as body_lib
from sculpt4d_jax.data.procedural import creatures
from sculpt4d_jax.data.procedural import parts
from sculpt4d_jax.data.procedural import rotations
from sculpt4d_jax.data.procedural.body import Body

Array = np.ndarray

_UPRIGHT = (0.0, 1.0, 0.0)


class _Rigid:
  """Collects parts in a thing's own axes and moves them as one."""

  def __init__(self, rng: np.random.Generator, phase: Array, body: Body):
    body.smoothness = 0.02
    self._body = body
    axis = np.array(_UPRIGHT)
    if rng.uniform() < 0.3:  # It rolls or tumbles.
      axis = parts.direction(rng)
    speed = rng.choice([-1.0, 1.0]) * rng.uniform(0.2, 1.0)
    self._turn = rotations.rotation_about(axis, speed * phase)
    hop = rng.uniform(0.0, 0.4) * (rng.uniform() < 0.3)
    slide = rng.uniform(0.0, 0.3) * (rng.uniform() < 0.3)
    self._place = np.stack(
      [slide * np.sin(phase), hop * np.abs(np.sin(phase)), 0 * phase], -1
    )

  def _at(self, point: Array) -> Array:
    return self._turn @ np.asarray(point, np.float64) + self._place

  def cone(
    self, start: Array, end: Array, start_radius: float, end_radius: float
  ) -> None:
    self._body.cone(self._at(start), self._at(end), start_radius, end_radius)

  def ball(self, centre: Array, radius: float) -> None:
    # As of `Body.ball`, but its axis moves with the thing.
    half = body_lib.BALL_HALF_AXIS
    self.cone(centre - half, centre + half, radius, radius)

  def box(self, centre: Array, half_size: Array, rounding: float) -> None:
    self._body.box(
      self._at(centre), self._turn, np.asarray(half_size), rounding
    )


def ball(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A ball with round patches that rise from it by a fiftieth."""
  thing = _Rigid(rng, phase, body)
  thing.ball(np.zeros(3), 1.0)
  for _ in range(rng.integers(0, 11)):
    radius = rng.uniform(0.6, 0.93)
    thing.ball(parts.direction(rng) * (1.02 - radius), radius)


def block(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A rounded box, some with panels of another colour."""
  thing = _Rigid(rng, phase, body)
  half = rng.uniform(0.3, 1.0, 3)
  rounding = rng.uniform(0.03, 0.3)
  thing.box(np.zeros(3), half, rounding)
  for axis in range(int(rng.integers(0, 4))):
    panel = half * rng.uniform(0.4, 0.8)
    panel[axis] = half[axis] + 0.02
    thing.box(np.zeros(3), panel, 0.02)


def lump(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """Thick pieces grown together, as of a fruit, a stone or a simple toy."""
  thing = _Rigid(rng, phase, body)
  body.smoothness = rng.uniform(0.05, 0.2)
  for _ in range(rng.integers(2, 6)):
    start = parts.direction(rng) * rng.uniform(0.0, 0.5)
    end = start + parts.direction(rng) * rng.uniform(0.1, 0.6)
    thing.cone(start, end, *rng.uniform(0.3, 0.7, 2))


def vessel(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A turned body, as of a bottle, a lamp or a cup, some with a handle."""
  thing = _Rigid(rng, phase, body)
  count = int(rng.integers(2, 6))
  radii = rng.uniform(0.15, 0.6, count)
  heights = np.concatenate([[0.0], rng.uniform(0.2, 0.6, count - 1).cumsum()])
  points = np.stack([0 * heights, heights, 0 * heights], -1)
  for low, high in zip(range(count - 1), range(1, count)):
    thing.cone(points[low], points[high], radii[low], radii[high])
  if rng.uniform() < 0.4:
    low, high = np.sort(rng.uniform(0.0, heights[-1], 2))
    high = max(high, low + 0.25)
    reach = radii.max() + rng.uniform(0.15, 0.35)
    corners = np.array(
      [[0, low, 0], [reach, low, 0], [reach, high, 0], [0, high, 0]]
    )
    thick = rng.uniform(0.04, 0.08)
    for start, end in zip(corners[:-1], corners[1:]):
      thing.cone(start, end, thick, thick)


def furniture(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A plate on four legs, half of them with a back: tables and chairs."""
  thing = _Rigid(rng, phase, body)
  wide, deep = rng.uniform(0.35, 0.8, 2)
  thick, height = rng.uniform(0.04, 0.1), rng.uniform(0.4, 1.0)
  leg, splay = rng.uniform(0.04, 0.09), rng.uniform(0.0, 0.15)
  thing.box(np.array([0.0, height, 0.0]), np.array([wide, thick, deep]), 0.04)
  for x in (-1, 1):
    for z in (-1, 1):
      top = np.array([x * (wide - leg), height, z * (deep - leg)])
      foot = top + np.array([x * splay, -height, z * splay])
      thing.cone(top, foot, leg, leg)
  if rng.uniform() < 0.5:
    tall = rng.uniform(0.25, 0.5)
    thing.box(
      np.array([0.0, height + tall, thick - deep]),
      np.array([wide, tall, thick]),
      0.04,
    )


def plant(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A stem with a crown of balls, some in a pot."""
  thing = _Rigid(rng, phase, body)
  body.smoothness = 0.04
  tall, thick = rng.uniform(0.3, 1.0), rng.uniform(0.05, 0.12)
  top = np.array([0.0, tall, 0.0])
  thing.cone(np.zeros(3), top, thick * 1.3, thick)
  for _ in range(rng.integers(2, 8)):
    lean = (
      parts.direction(rng) * np.array([1.0, 0.6, 1.0]) * rng.uniform(0.1, 0.4)
    )
    thing.ball(top + lean, rng.uniform(0.15, 0.4))
  if rng.uniform() < 0.5:
    wide = rng.uniform(0.2, 0.35)
    thing.cone(np.zeros(3), np.array([0.0, -0.25, 0.0]), wide, wide * 0.7)


FAMILIES: dict[str, creatures.Family] = {
  "ball": ball,
  "block": block,
  "furniture": furniture,
  "lump": lump,
  "plant": plant,
  "vessel": vessel,
}
