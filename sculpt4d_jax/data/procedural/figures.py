"""Procedural families built and moved as animated characters of games are.

People, animals on four and on two legs, flyers, swimmers, crawlers and blobs.
Their proportions are drawn from wide ranges, wider than those of any one
character: heads up to half of a body, necks and tails of any length, legs as
thin as sticks or as thick as pillars. They walk, run, idle, jump, lunge and
fall over. `solids` includes them if a configuration sets figures.

In its own axes a figure looks along +x and stands upright along +y.
"""

import numpy as np

from sculpt4d_jax.data.procedural import anatomy
from sculpt4d_jax.data.procedural import creatures
from sculpt4d_jax.data.procedural import parts
from sculpt4d_jax.data.procedural import rotations
from sculpt4d_jax.data.procedural.body import Body

Array = np.ndarray

# Share of figures without colours, as models without textures are.
_PALE = 0.3


def person(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A figure on two legs with a trunk, two arms, and things worn or held."""
  motion = anatomy.Motion(rng, phase)
  body.smoothness = rng.uniform(0.01, 0.05)
  leg, trunk = rng.uniform(0.2, 0.8), rng.uniform(0.25, 0.6)
  girth, limb = rng.uniform(0.1, 0.3), rng.uniform(0.04, 0.13)
  stance, crouch = girth * rng.uniform(0.4, 0.9), rng.uniform(0.0, 0.7) ** 2
  stride, apart = rng.uniform(0.1, 0.8), rng.uniform(0.0, 0.25)
  hip = parts.point(phase, 0, leg, 0)
  hip[:, 1] += 0.04 * motion.wave() - 0.5 * leg * (1 - np.cos(crouch))
  lean = motion.joint(-0.2, 0.5, 0.2)
  chest = hip + trunk * parts.point(phase, np.sin(lean), np.cos(lean), 0)
  if rng.uniform() < 0.75:
    body.cone(hip, chest, girth * rng.uniform(0.6, 1.4), girth)
  else:
    half = np.array([trunk / 2, girth * rng.uniform(0.5, 1.0), girth])
    turn = parts.plate(chest - hip, parts.point(phase, -1.0, 0, 0))
    body.box((hip + chest) / 2, turn, half, girth * 0.2)
  for side in (-1, 1):
    step = stride * motion.wave(0.0 if side < 0 else np.pi)
    bend = crouch + stride * 0.5 * (
      motion.strength + motion.wave(1.5 if side < 0 else 1.5 + np.pi)
    )
    root = hip + parts.point(phase, 0, 0, side * stance)
    foot = anatomy.chain(
      body,
      root,
      [
        leg / 2 * anatomy.down(step + bend * 0.5, side * apart),
        leg / 2 * anatomy.down(step - bend * 0.5, side * apart * 0.5),
      ],
      [limb * rng.uniform(1.0, 1.6), limb, limb * rng.uniform(0.8, 1.3)],
    )
    if rng.uniform() < 0.7:
      toe = foot + parts.point(phase, limb * rng.uniform(1.0, 2.0), 0, 0)
      body.cone(foot, toe, limb, limb * 0.8)
  hands = anatomy.arms(rng, motion, body, chest, (girth, limb, trunk))
  size = rng.uniform(0.09, 0.36)
  neck = girth * 0.4 + size * rng.uniform(0.6, 0.9)
  nod = motion.joint(-0.2, 0.3, 0.3)
  head = chest + neck * parts.point(phase, np.sin(nod), np.cos(nod), 0)
  anatomy.head(rng, body, head, size)
  if rng.uniform() < 0.4:  # Hair, a hat or a helmet.
    half = size * rng.uniform([0.7, 0.2, 0.7], [1.3, 0.6, 1.3])
    body.box(head + [0, size * 0.8, 0], np.eye(3), half, size * 0.2)
  if rng.uniform() < 0.25 and body.boxes_left:  # Something on the back.
    half = girth * rng.uniform([0.3, 0.5, 0.5], [0.7, 1.2, 1.0])
    body.box(chest - [girth * 1.2, trunk * 0.3, 0], np.eye(3), half, 0.04)
  if rng.uniform() < 0.3 and body.boxes_left:
    hand = hands[rng.integers(2)]
    tip = hand + rng.uniform(0.2, 0.8) * anatomy.up(
      motion.joint(-0.5, 1.5, 0.3)
    )
    parts.blade(
      body,
      hand,
      tip,
      parts.point(phase, 0.1, 1.0, 0),
      rng.uniform(0.02, 0.12),
      rng.uniform(0.02, 0.05),
    )
  motion.finish(body)


def beast(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """An animal on four legs: a dog, a cow, a long-necked or an armoured one."""
  motion = anatomy.Motion(rng, phase)
  body.smoothness = rng.uniform(0.01, 0.06)
  height, length = rng.uniform(0.2, 0.8), rng.uniform(0.4, 1.1)
  girth, leg = rng.uniform(0.12, 0.38), rng.uniform(0.03, 0.12)
  hip = parts.point(phase, -length / 2, height + 0.03 * motion.wave(), 0)
  tilt = motion.joint(-0.1, 0.3, 0.15)
  chest = hip + length * anatomy.up(tilt)
  body.cone(hip, chest, girth * rng.uniform(0.7, 1.1), girth)
  anatomy.neck_and_head(rng, motion, body, chest, girth)
  stride = rng.uniform(0.1, 0.7)
  two_segments = rng.uniform() < 0.6
  gallops = rng.uniform() < 0.3
  for end, gait in ((hip, 0.0), (chest, np.pi / 2)):
    for side in (-1, 1):
      shift = gait + (0.3 if gallops else np.pi) * (side > 0)
      step = stride * motion.wave(shift)
      root = end + parts.point(phase, 0, -girth * 0.3, side * girth * 0.7)
      reach = np.maximum(end[:, 1:2] - girth * 0.3, 0.1)
      if two_segments:
        bend = 0.2 + stride * 0.6 * (motion.strength + motion.wave(shift + 1.5))
        steps = [
          reach / 2 * anatomy.down(step + bend / 2),
          reach / 2 * anatomy.down(step - bend / 2),
        ]
        radii = [leg * rng.uniform(1.2, 2.0), leg, leg]
      else:
        steps, radii = [reach * anatomy.down(step)], [leg * 1.3, leg]
      anatomy.chain(body, root, steps, radii)
  anatomy.tail(rng, motion, body, hip, girth, 1 if two_segments else 3)
  motion.finish(body)


def strider(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A body balanced on two bent legs: dinosaurs, birds that walk, machines."""
  motion = anatomy.Motion(rng, phase)
  body.smoothness = rng.uniform(0.01, 0.05)
  height, length = rng.uniform(0.3, 0.8), rng.uniform(0.2, 0.7)
  girth, leg = rng.uniform(0.12, 0.4), rng.uniform(0.03, 0.1)
  hip = parts.point(phase, 0, height + 0.04 * motion.wave(), 0)
  chest = hip + length * anatomy.up(motion.joint(-0.2, 1.0, 0.15))
  body.cone(hip, chest, girth * rng.uniform(0.8, 1.2), girth * 0.9)
  anatomy.neck_and_head(rng, motion, body, chest, girth * 0.8)
  stride, bend = rng.uniform(0.1, 0.7), rng.uniform(0.2, 0.9)
  for side in (-1, 1):
    step = stride * motion.wave(0.0 if side < 0 else np.pi)
    root = hip + parts.point(phase, 0, 0, side * girth * 0.7)
    anatomy.chain(
      body,
      root,
      [
        height * 0.5 * anatomy.down(step + bend),
        height * 0.5 * anatomy.down(step - bend),
        parts.point(phase, leg * rng.uniform(1.0, 3.0), -0.02, 0),
      ],
      [leg * rng.uniform(1.2, 2.5), leg, leg, leg * 0.8],
    )
  anatomy.tail(rng, motion, body, hip, girth, int(rng.integers(1, 3)))
  winged = rng.uniform() < 0.4
  for side in (-1, 1):
    root = chest + parts.point(phase, 0, 0, side * girth * 0.8)
    reach = rng.uniform(0.15, 0.5)
    swing = motion.joint(-0.4, 1.2, 0.4)
    arm = reach * anatomy.down(swing, side * rng.uniform(0.1, 0.9))
    if winged and body.boxes_left:
      back = parts.point(phase, -1.0, 0.2, 0)
      parts.blade(body, root, root + arm, back, reach * 0.4, 0.03)
    elif body.cones_left:
      body.cone(root, root + arm, leg, leg * 0.8)
  motion.finish(body)


def flyer(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A bee, a bat or a bird in the air: a body, two or four wings, legs."""
  motion = anatomy.Motion(rng, phase)
  body.smoothness = rng.uniform(0.01, 0.05)
  length, girth = rng.uniform(0.1, 0.7), rng.uniform(0.1, 0.4)
  tail = parts.point(phase, 0, 0.05 * motion.wave(), 0)
  chest = tail + length * anatomy.up(motion.joint(-0.3, 1.3, 0.2))
  body.cone(tail, chest, girth * rng.uniform(0.4, 1.1), girth)
  size = girth * rng.uniform(0.4, 1.0)
  head = chest + (girth * 0.5 + size) * anatomy.up(motion.joint(-0.5, 0.8, 0.1))
  anatomy.head(rng, body, head, size)
  if rng.uniform() < 0.6:  # A beak, or a sting.
    root, turn = (head, 1.0) if rng.uniform() < 0.5 else (tail, -1.0)
    reach = turn * (size + rng.uniform(0.05, 0.2))
    body.cone(
      root, root + reach * anatomy.up(0.0 * phase - 0.1), size * 0.4, 0.02
    )
  span, width = rng.uniform(0.3, 1.0), rng.uniform(0.08, 0.3)
  swept = rng.uniform(-0.6, 0.3)
  beat = motion.joint(-0.2, 0.8, 0.2) + rng.uniform(0.2, 0.9) * motion.wave()
  folds, segments = rng.uniform(-0.8, 0.8), int(rng.integers(1, 3))
  segments = min(segments, body.boxes_left // 2)
  for side in (-1, 1):
    root = chest + parts.point(phase, 0, girth * 0.3, side * girth * 0.7)
    for n in range(segments):
      angle = beat * (1 + n * folds)
      tip = root + span / segments * parts.point(
        phase, swept, np.sin(angle), side * np.cos(angle)
      )
      forward = parts.point(phase, 1.0, 0.05, 0)
      parts.blade(body, root, tip, forward, width * (1 - 0.3 * n), 0.03)
      root = tip
  if rng.uniform() < 0.6:
    leg = rng.uniform(0.025, 0.08)
    for place in np.linspace(0.2, 0.8, int(rng.integers(1, 4))):
      for side in (-1, 1):
        root = tail + place * (chest - tail)
        root = root + parts.point(phase, 0, -girth * 0.6, side * girth * 0.5)
        swing = motion.joint(-0.6, 0.6, 0.3)
        body.cone(
          root, root + rng.uniform(0.1, 0.35) * anatomy.down(swing), leg, leg
        )
  motion.finish(body)


def swimmer(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A fish, a whale or a ray: it bends sideways, or up and down."""
  motion = anatomy.Motion(rng, phase)
  body.smoothness = rng.uniform(0.02, 0.05)
  is_fish = rng.uniform() < 0.6
  deep = rng.uniform() < 0.5  # A flat body, high or wide.
  length, girth = rng.uniform(0.3, 0.9), rng.uniform(0.1, 0.28)
  bend = rng.uniform(0.1, 0.6)
  taper = [0.7, 1.0, 0.7, rng.uniform(0.2, 0.5)]
  # Nearly along the axes: a plate needs a direction that is not its own.
  if is_fish:
    across, upright = (0, 0, 1.0), (0, 1.0, 0.01)
  else:
    across, upright = (0, 1.0, 0), (0, 0.01, 1.0)
  across, upright = (parts.point(phase, *x) for x in (across, upright))

  def backward(angle: Array) -> Array:
    """Directions [F, 3] at an angle across from straight back."""
    back = parts.point(phase, -1.0, 0, 0)
    return np.cos(angle)[:, None] * back + np.sin(angle)[:, None] * across

  steps = [
    length / 3 * backward(bend * (0.2 + 0.5 * n) * motion.wave(-0.9 * n))
    for n in range(3)
  ]
  joints = [parts.point(phase, 0, 0, 0)]
  for n, step in enumerate(steps):
    start, end = girth * taper[n], girth * taper[n + 1]
    joints.append(body.cone(joints[-1], joints[-1] + step, start, end))
  if deep:
    half = np.array([length * 0.3, girth * rng.uniform(1.2, 2.4), girth * 0.5])
    turn = parts.plate(joints[1] - joints[2], upright)
    body.box((joints[1] + joints[2]) / 2, turn, half, girth * 0.45)
  wag = backward(1.6 * bend * motion.wave(-3.5))
  tip = joints[-1] + rng.uniform(0.15, 0.4) * wag
  parts.blade(body, joints[-1], tip, upright, rng.uniform(0.1, 0.35), 0.03)
  if rng.uniform() < 0.5:
    top = joints[1] + girth * 0.7 * upright
    tip = top + rng.uniform(0.1, 0.35) * (
      upright + parts.point(phase, -0.6, 0, 0)
    )
    parts.blade(body, top, tip, parts.point(phase, 1.0, 0.01, 0.01), 0.12, 0.03)
  for side in (-1, 1):
    root = joints[1] + parts.point(phase, 0, -0.3 * girth, side * 0.8 * girth)
    flap = motion.joint(0.0, 0.8, 0.6)
    fin = parts.point(phase, -0.6, -np.sin(flap), side * np.cos(flap))
    reach = rng.uniform(0.1, 0.4)
    # Flat bodies have a box already: their fins are cones.
    body.cone(root, root + reach * fin, rng.uniform(0.03, 0.08), 0.02)
  motion.finish(body)


def crawler(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A low body on four to eight legs that stand out: crabs, spiders, frogs."""
  motion = anatomy.Motion(rng, phase)
  body.smoothness = rng.uniform(0.01, 0.05)
  height = rng.uniform(0.1, 0.5)
  half = rng.uniform([0.15, 0.08, 0.15], [0.5, 0.25, 0.5])
  middle = parts.point(phase, 0, height + 0.04 * motion.wave(), 0)
  if rng.uniform() < 0.5:
    pitch = rotations.rotation_about([0, 0, 1], 0.1 * motion.wave(1.0))
    body.box(middle, pitch, half, half.min() * rng.uniform(0.3, 0.9))
  else:
    ends = half[0] * parts.point(phase, 0.6, rng.uniform(0, 0.5), 0)
    body.cone(middle - ends, middle + ends, half[2], half[2] * 0.8)
  front = middle + parts.point(phase, half[0], 0, 0)
  if rng.uniform() < 0.5:
    anatomy.head(rng, body, front, rng.uniform(0.08, 0.25))
  pairs = int(rng.integers(2, 5))
  leg, reach = rng.uniform(0.03, 0.09), rng.uniform(0.2, 0.6)
  for n in range(pairs):
    place = (2 * n / (pairs - 1) - 1) * half[0] * 0.8
    for side in (-1, 1):
      swing = 0.4 * motion.wave(np.pi * (n % 2) + np.pi * (side > 0))
      root = middle + parts.point(phase, place, 0, side * half[2] * 0.8)
      foot = root + parts.point(
        phase, 0.3 * place + reach * np.sin(swing), -height, side * reach
      )
      body.cone(root, foot, leg * 1.3, leg)
  if rng.uniform() < 0.6:  # Claws, eyes on stalks, or jaws.
    rise, size = motion.joint(-0.3, 1.2, 0.5), rng.uniform(0.05, 0.15)
    for side in (-1, 1):
      if not body.cones_left:
        break
      root = front + parts.point(phase, 0, 0, side * half[2] * 0.7)
      tip = root + rng.uniform(0.1, 0.4) * anatomy.up(rise, side * 0.3)
      body.cone(root, tip, size * 0.5, size)
  motion.finish(body)


def blob(rng: np.random.Generator, phase: Array, body: Body) -> None:
  """A round or square body that squashes, with or without limbs and a cap."""
  motion = anatomy.Motion(rng, phase)
  body.smoothness = rng.uniform(0.01, 0.1)
  size = rng.uniform(0.3, 0.6)
  squash = 1 + 0.25 * rng.uniform() * motion.wave()
  leg = rng.uniform(0.0, 0.35) * (rng.uniform() < 0.5)
  base = parts.point(phase, 0, leg + size * squash, 0)
  shape = rng.uniform()
  if shape < 0.35:
    body.ball(base, size / np.sqrt(squash))
  elif shape < 0.7:
    top = base + parts.point(phase, 0, size * rng.uniform(0.2, 1.2) * squash, 0)
    taper = rng.uniform(0.3, 1.1)
    body.cone(base, top, size / np.sqrt(squash), size * taper)
  else:
    half = size * rng.uniform(0.5, 1.0, 3)
    turn = rotations.rotation_about([0, 0, 1], 0.2 * motion.wave(1.0))
    body.box(base, turn, half, rng.uniform(0.03, 0.15))
  if rng.uniform() < 0.5:  # A cap, a crown or leaves.
    crown = base + parts.point(phase, 0, size * squash, 0)
    if rng.uniform() < 0.5:
      wide = size * rng.uniform(0.3, 1.2)
      body.cone(crown, crown + [0, wide * 0.3, 0], wide, wide * 0.5)
    else:
      for side in (-1, 1):
        tip = crown + size * parts.point(phase, 0.1, 0.8, side * 0.5)
        parts.blade(
          body, crown, tip, parts.point(phase, 1.0, 0, 0), size * 0.2, 0.03
        )
  limb = rng.uniform(0.04, 0.12)
  if leg:
    for side in (-1, 1):
      step = 0.5 * motion.wave(np.pi * (side > 0))
      root = base + parts.point(phase, 0, -size * 0.8, side * size * 0.4)
      body.cone(
        root, root + (leg + 0.2 * size) * anatomy.down(step), limb, limb
      )
  if rng.uniform() < 0.5:
    anatomy.arms(rng, motion, body, base, (size * 0.9, limb, size * 1.5))
  if rng.uniform() < 0.5:
    for side in (-1, 1):
      eye = base + size * parts.point(phase, 0.85, 0.4, side * 0.35)
      body.ball(eye, size * rng.uniform(0.12, 0.25))
  motion.finish(body)


FAMILIES: dict[str, creatures.Family] = {
  "beast": beast,
  "blob": blob,
  "crawler": crawler,
  "flyer": flyer,
  "person": person,
  "strider": strider,
  "swimmer": swimmer,
}


# How often a family is drawn, against the others.
WEIGHTS = {
  "beast": 2.0,
  "blob": 0.7,
  "crawler": 0.7,
  "flyer": 1.0,
  "person": 2.5,
  "strider": 1.5,
  "swimmer": 1.0,
}


def colours(rng: np.random.Generator, num_parts: int) -> Array:
  """RGB in [0, 1] of parts [K, 3]; some figures are pale all over."""
  if rng.uniform() < _PALE:
    return np.full((num_parts, 3), rng.uniform(0.7, 0.95), np.float32)
  return creatures.colours(rng, num_parts)
