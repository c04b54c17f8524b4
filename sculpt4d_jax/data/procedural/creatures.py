"""Procedural families with features of real characters.

They have thin limbs, long tails, wings, fins and asymmetric bodies, with
different colours for the parts. `solids` includes them if a configuration sets
variety.
"""

from collections.abc import Callable

import numpy as np

from sculpt4d_jax.data.procedural import parts
from sculpt4d_jax.data.procedural.body import Body

Array = np.ndarray


Family = Callable[[np.random.Generator, Array, Body], None]


def bird(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A body with two wings that beat, a tail plate and thin legs."""
  body.smoothness = 0.03
  length, girth = rng.uniform(0.4, 0.7), rng.uniform(0.13, 0.2)
  pitch = rng.uniform(-0.2, 0.6)
  chest = parts.point(phase, length / 2, 0.05 * np.sin(phase), 0)
  hip = chest - length * parts.point(phase, np.cos(pitch), np.sin(pitch), 0)
  body.cone(hip, chest, girth * 0.6, girth)
  head = chest + parts.point(phase, 0.18, 0.16 + 0.03 * np.sin(phase), 0)
  body.ball(head, girth * rng.uniform(0.6, 0.9))
  body.cone(head, head + parts.point(phase, 0.2, -0.03, 0), 0.05, 0.02)
  span, width = rng.uniform(0.5, 0.9), rng.uniform(0.1, 0.2)
  beat = rng.uniform(0.0, 0.5) + rng.uniform(0.3, 0.9) * np.sin(phase)
  middle = (hip + chest) / 2
  forward = parts.point(phase, 1.0, 0.0, 0.0)
  for side in (-1, 1):
    root = middle + parts.point(phase, 0, girth * 0.4, side * girth * 0.7)
    tip = root + span * parts.point(
      phase, -0.15, np.sin(beat), side * np.cos(beat)
    )
    parts.blade(body, root, tip, forward, width, 0.03)
  tail = hip - parts.point(
    phase, rng.uniform(0.2, 0.4), 0.05 * np.sin(phase), 0
  )
  parts.blade(body, hip, tail, parts.point(phase, 0, 0, 1.0), 0.1, 0.025)
  if rng.uniform() < 0.7:
    for side in (-1, 1):
      knee = middle + parts.point(phase, 0.05, -girth - 0.1, side * 0.08)
      swing = 0.1 * side * np.sin(phase)
      body.cone(knee + parts.point(phase, 0, 0.12, 0), knee, 0.05, 0.03)
      body.cone(knee, knee + parts.point(phase, swing, -0.25, 0), 0.03, 0.03)


def fish(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A body that waves from side to side, with fins."""
  body.smoothness = 0.03
  girth, bend = rng.uniform(0.14, 0.3), rng.uniform(0.15, 0.5)
  point = parts.point(phase, 0.5, 0, 0)
  centres = [point]
  radii = girth * np.array([0.6, 1.0, 0.9, 0.55, 0.25])
  for index in range(4):
    angle = bend * np.sin(phase - 0.9 * index) * (0.3 + 0.3 * index)
    end = point - 0.3 * parts.point(phase, np.cos(angle), 0, np.sin(angle))
    body.cone(point, end, radii[index], radii[index + 1])
    point = end
    centres.append(end)
  up = parts.point(phase, 0, 1.0, 0)
  angle = 1.6 * bend * np.sin(phase - 4.0)
  tip = point - rng.uniform(0.2, 0.35) * parts.point(
    phase, np.cos(angle), 0, np.sin(angle)
  )
  parts.blade(body, point, tip, up, rng.uniform(0.12, 0.28), 0.03)
  if rng.uniform() < 0.8:
    top = centres[2] + parts.point(phase, 0, girth * 0.8, 0)
    tip = top + rng.uniform(0.12, 0.3) * parts.point(phase, -0.4, 1.0, 0)
    parts.blade(body, top, tip, centres[1] - centres[2], 0.12, 0.025)
  for side in (-1, 1):
    root = centres[1] + parts.point(phase, 0, -0.3 * girth, side * 0.8 * girth)
    flap = 0.5 + 0.4 * np.sin(2 * phase)
    tip = root + rng.uniform(0.15, 0.3) * parts.point(
      phase, -0.4, -0.3 * flap, side * flap
    )
    parts.blade(body, root, tip, up, 0.06, 0.025)


def lizard(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A long low body on thin legs with a tail that waves."""
  body.smoothness = 0.03
  height, girth = rng.uniform(0.2, 0.45), rng.uniform(0.1, 0.18)
  hip = parts.point(phase, -0.35, height, 0.04 * np.sin(phase))
  chest = parts.point(phase, 0.3, height + 0.03 * np.sin(2 * phase), 0)
  body.cone(hip, chest, girth, girth * 0.9)
  lift, nod = rng.uniform(0.0, 0.9), 0.15 * np.sin(phase)
  neck = chest + rng.uniform(0.2, 0.6) * parts.point(
    phase, np.cos(lift), np.sin(lift), nod
  )
  body.cone(chest, neck, girth * 0.7, girth * 0.5)
  snout = neck + parts.point(phase, rng.uniform(0.12, 0.3), -0.04, nod)
  body.cone(neck, snout, girth * 0.8, girth * 0.4)
  leg = rng.uniform(0.035, 0.06)
  for end, gait in ((hip, 0.0), (chest, np.pi)):
    for side in (-1, 1):
      step = np.sin(phase + gait + (np.pi if side > 0 else 0))
      root = end + parts.point(phase, 0, -0.2 * girth, side * girth * 0.8)
      foot = root + parts.point(phase, 0.22 * step, -height, side * 0.1)
      body.cone(root, foot, leg * 1.4, leg)
  point, wave = hip, rng.uniform(0.2, 0.7)
  count = 4
  for index in range(count):
    angle = wave * np.sin(phase - 0.9 * index)
    end = point - rng.uniform(0.18, 0.26) * parts.point(
      phase, np.cos(angle), 0.25, np.sin(angle)
    )
    thick = girth * (1 - index / count)
    body.cone(point, end, thick * 0.7, thick * 0.5)
    point = end


def spindly(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A figure with thin limbs, a big head, and something in one hand."""
  body.smoothness = 0.03
  leg, torso = rng.uniform(0.4, 0.7), rng.uniform(0.25, 0.45)
  limb, girth = rng.uniform(0.035, 0.06), rng.uniform(0.1, 0.17)
  hip = parts.point(phase, 0, leg, 0) + parts.point(
    phase, 0, 0.03 * np.sin(2 * phase), 0
  )
  lean = rng.uniform(-0.2, 0.4)
  chest = hip + torso * parts.point(phase, np.sin(lean), np.cos(lean), 0)
  body.cone(hip, chest, girth * rng.uniform(0.7, 1.2), girth)
  head = rng.uniform(0.12, 0.26)
  top = chest + parts.point(
    phase, 0.04, girth + head * 0.8, 0.05 * np.sin(phase)
  )
  body.ball(top, head)
  swing = rng.uniform(0.2, 0.9)
  for side in (-1, 1):
    step = swing * np.sin(phase + (np.pi if side > 0 else 0))
    root = hip + parts.point(phase, 0, 0, side * girth * 0.6)
    knee = root + leg / 2 * parts.point(phase, np.sin(step), -np.cos(step), 0)
    body.cone(root, knee, limb * 1.3, limb)
    shin = step - 0.4 - 0.3 * np.cos(phase)
    foot = knee + leg / 2 * parts.point(phase, np.sin(shin), -np.cos(shin), 0)
    body.cone(knee, foot, limb, limb)
  hands = []
  for side in (-1, 1):
    # The arms do different things.
    raised = rng.uniform(-0.4, 2.4) + rng.uniform(0, 0.8) * np.sin(
      phase + rng.uniform(0, 6.28)
    )
    out = rng.uniform(0.1, 0.8)
    root = chest + parts.point(phase, 0, 0.02, side * girth)
    hand = root + rng.uniform(0.4, 0.6) * parts.point(
      phase,
      np.sin(raised) * np.cos(out),
      -np.cos(raised) * np.cos(out),
      side * np.sin(out),
    )
    body.cone(root, hand, limb * 1.1, limb)
    hands.append((root, hand))
  if rng.uniform() < 0.6:
    root, hand = hands[rng.integers(2)]
    reach = hand - root
    tip = hand + rng.uniform(0.5, 1.2) * parts.point(
      phase, reach[:, 0], 0.1 + np.abs(reach[:, 1]), reach[:, 2]
    )
    if rng.uniform() < 0.5:
      body.cone(hand, tip, 0.03, 0.03)
    else:
      parts.blade(body, hand, tip, parts.point(phase, 1.0, 0.2, 0), 0.07, 0.025)


FAMILIES: dict[str, Family] = {
  "bird": bird,
  "fish": fish,
  "lizard": lizard,
  "spindly": spindly,
}


def colours(rng: np.random.Generator, num_parts: int) -> Array:
  """RGB in [0, 1] of parts [K, 3]: a few distinct colours."""
  palette = rng.uniform(0.08, 1.0, (int(rng.integers(2, 5)), 3))
  shades = palette[rng.integers(len(palette), size=num_parts)]
  return np.clip(shades + rng.normal(0, 0.05, shades.shape), 0.05, 1.0).astype(
    np.float32
  )
