"""Motion and body parts that families of figures share.

In its own axes a figure looks along +x and stands upright along +y.
"""

from collections.abc import Sequence

import numpy as np

from sculpt4d_jax.data.procedural import parts
from sculpt4d_jax.data.procedural import rotations
from sculpt4d_jax.data.procedural.body import Body

Array = np.ndarray

# Cycles of motion in a clip, against those of other families.
_RATES = (0.5, 1.0, 1.0, 1.5, 2.5)


class Motion:
  """The rhythm of a figure: how fast and how far its joints swing.

  Attributes:
    phase: Angle of the cycle in every frame [F], radians.
    along: Time in every frame [F], from 0 to 1.
    strength: Factor of all swings: figures that idle hardly move.
  """

  def __init__(self, rng: np.random.Generator, phase: Array):
    self._rng = rng
    self.phase = phase[0] + rng.choice(_RATES) * (phase - phase[0])
    self.along = np.arange(len(phase)) / max(len(phase) - 1, 1)
    self.strength = 0.2 if rng.uniform() < 0.2 else rng.uniform(0.5, 1.2)

  def wave(self, shift: float = 0.0) -> Array:
    """A swing [F] between minus and plus the figure's strength."""
    return self.strength * np.sin(self.phase + shift)

  def joint(self, low: float, high: float, swing: float) -> Array:
    """An angle [F] about a middle in [low, high], with its own rhythm."""
    shift = self._rng.uniform(0, 2 * np.pi)
    swing = swing * self._rng.uniform()
    return self._rng.uniform(low, high) + swing * self.wave(shift)

  def finish(self, body: Body) -> None:
    """Carries the whole figure: it stays, turns, jumps, lunges or falls."""
    rng, phase = self._rng, self.phase
    place = np.zeros((len(phase), 3))
    rotation = np.eye(3)
    kind = rng.choice(
      ["stays", "jumps", "lunges", "falls", "turns"],
      p=[0.45, 0.15, 0.15, 0.15, 0.1],
    )
    if kind == "jumps":
      place[:, 1] = rng.uniform(0.1, 0.8) * np.maximum(np.sin(phase), 0)
    elif kind == "lunges":
      place[:, 0] = rng.uniform(0.0, 0.4) * np.sin(phase)
      rotation = rotations.rotation_about(
        [0, 0, 1], rng.uniform(0.1, 0.5) * np.sin(phase + rng.uniform(0, 6))
      )
    elif kind == "falls":
      # Slowly at first; some are on the ground from the start.
      fallen = np.clip(self.along * rng.uniform(1, 3) - 0.2, 0, 1) ** 2
      fallen = np.maximum(fallen, float(rng.uniform() < 0.25))
      axis = parts.direction(rng) * np.array([1.0, 0.0, 1.0])
      angle = rng.uniform(1.2, 1.6) * fallen
      rotation = rotations.rotation_about(axis + [1e-3, 0, 0], angle)
    elif kind == "turns":
      angle = rng.uniform(0.3, 1.5) * np.sin(phase)
      rotation = rotations.rotation_about([0, 1, 0], angle)
    body.move(rotation, place)


def down(angle: Array, side: Array | float = 0.0) -> Array:
  """Directions [F, 3] at an angle forward of straight down, leaning sideways."""
  return parts.point(
    angle,
    np.sin(angle) * np.cos(side),
    -np.cos(angle) * np.cos(side),
    np.sin(side),
  )


def up(angle: Array, side: Array | float = 0.0) -> Array:
  """Directions [F, 3] at an angle above the horizon, leaning sideways."""
  return parts.point(
    angle,
    np.cos(angle) * np.cos(side),
    np.sin(angle),
    np.cos(angle) * np.sin(side),
  )


def chain(
  body: Body,
  root: Array,
  steps: Sequence[Array],
  radii: Sequence[float],
) -> Array:
  """Cones from joint to joint; returns the last joint [F, 3].

  Args:
    body: Takes the cones.
    root: First joint [F, 3].
    steps: From each joint to the next [F, 3].
    radii: Radii of the joints, one more than there are steps.
  """
  for step, start, end in zip(steps, radii[:-1], radii[1:]):
    root = body.cone(root, root + step, start, end)
  return root


def head(
  rng: np.random.Generator, body: Body, centre: Array, size: float
) -> None:
  """A head that is a ball, a box or a cone."""
  shape = rng.uniform()
  if shape < 0.5:
    body.ball(centre, size)
  elif shape < 0.7:
    half = size * rng.uniform(0.6, 1.0, 3)
    body.box(centre, np.eye(3), half, size * rng.uniform(0.1, 0.5))
  else:
    tall = np.array([0.0, size * rng.uniform(0.2, 0.6), 0.0])
    body.cone(
      centre - tall, centre + tall, size * rng.uniform(0.5, 0.9), size * 0.8
    )


def arms(
  rng: np.random.Generator,
  motion: Motion,
  body: Body,
  chest: Array,
  sizes: tuple[float, float, float],
) -> list[Array]:
  """Two arms; returns the hands [F, 3] each.

  Args:
    rng: Source of random numbers.
    motion: The figure's motion.
    body: Takes the cones.
    chest: Place between the shoulders [F, 3].
    sizes: Girth at the shoulders, radius of a limb, length of an arm.
  """
  girth, limb, length = sizes
  length = length * rng.uniform(0.6, 1.1) / 2
  # They hang, are spread, reach forward, or each does something else.
  pose = rng.choice(
    ["hang", "spread", "reach", "any"], p=[0.45, 0.2, 0.15, 0.2]
  )
  low, high, out = {
    "hang": (-0.2, 0.3, 0.3),
    "spread": (-0.3, 0.5, 1.4),
    "reach": (0.9, 1.6, 0.2),
    "any": (-0.5, 2.6, 0.8),
  }[pose]
  raised = rng.uniform(low, high)
  thick = limb * rng.uniform(0.6, 1.2)
  hands = []
  for side in (-1, 1):
    if pose == "any":
      raised, out = rng.uniform(low, high), rng.uniform(0.0, 1.4)
    swing = raised + 0.5 * motion.wave(np.pi if side < 0 else 0.0)
    bend = rng.uniform(0.0, 1.0) + 0.2 * motion.wave()
    lean = side * (out + 0.2 * motion.wave(1.0))
    root = chest + parts.point(swing, 0, 0, side * girth * 0.95)
    hands.append(
      chain(
        body,
        root,
        [length * down(swing, lean), length * down(swing + bend, lean * 0.9)],
        [thick, thick * 0.9, thick * rng.uniform(0.7, 1.5)],
      )
    )
  return hands


def neck_and_head(
  rng: np.random.Generator,
  motion: Motion,
  body: Body,
  chest: Array,
  girth: float,
) -> None:
  """A neck of any length, a skull with a muzzle, and ears or horns."""
  long = rng.uniform() < 0.3
  length = girth + (rng.uniform(0.3, 0.8) if long else rng.uniform(0.0, 0.3))
  lift = motion.joint(-0.4, 1.4, 0.5)
  sway = 0.2 * motion.wave(2.0)
  skull = chest + length * up(lift, sway)
  size = rng.uniform(0.08, 0.28)
  body.cone(chest, skull, girth * rng.uniform(0.4, 0.8), size * 0.7)
  nose = motion.joint(-0.8, 0.2, 0.3)
  muzzle = skull + size * rng.uniform(0.5, 2.0) * up(nose, sway)
  body.cone(skull, muzzle, size, size * rng.uniform(0.3, 0.8))
  if rng.uniform() < 0.6:
    tall, wide = size * rng.uniform(0.5, 2.0), size * rng.uniform(0.15, 0.5)
    for side in (-1, 1):
      root = skull + parts.point(lift, 0, size * 0.6, side * size * 0.5)
      out = rng.uniform(0.0, 1.0)
      tip = root + tall * parts.point(lift, -0.2, 1 - 0.5 * out, side * out)
      forward = parts.point(lift, 1.0, 0, 0.1)
      parts.blade(body, root, tip, forward, wide, 0.03)


def tail(
  rng: np.random.Generator,
  motion: Motion,
  body: Body,
  root: Array,
  girth: float,
  count: int,
) -> None:
  """A tail of `count` cones, from a stump to longer than the body."""
  length = rng.uniform(0.05, 0.9) / count
  thick = girth * rng.uniform(0.2, 0.8)
  lift, sway = motion.joint(-1.0, 0.9, 0.3), rng.uniform(0.1, 0.8)
  steps = [
    -length * up(-lift * (1 - 0.4 * n), sway * motion.wave(-0.9 * n))
    for n in range(count)
  ]
  taper = np.linspace(1.0, rng.uniform(0.2, 1.0), count + 1)
  chain(body, root, steps, thick * taper)
