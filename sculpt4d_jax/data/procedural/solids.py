"""Procedural animated objects: articulated and deforming solids.

Each clip is a smooth union of round cones and rounded boxes that move for F
frames (`geometry/signed_distance.py`), so signed distance, temporal
correspondence and pictures are exact. Seven families cover typical
deformations: limbs that swing (quadruped, biped), a body that bends (tentacle),
arms that open (bloomer), hinges between boxes (machine), parts that swell
(bulger), parts that join and split (splitter).

Objects are upright (+y), with any yaw that keeps their motion visible to a
camera in front (+z). One box for the complete clip scales them to [-0.95,
0.95]^3.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import NamedTuple

import numpy as np

from sculpt4d_jax.data.procedural import body as body_lib
from sculpt4d_jax.data.procedural import creatures
from sculpt4d_jax.data.procedural import figures as figure_families
from sculpt4d_jax.data.procedural import rotations
from sculpt4d_jax.data.procedural import things as rigid
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import signed_distance


class _Kind(NamedTuple):
  """Families of varied clips, their colours and stream of random numbers."""

  families: Mapping[str, creatures.Family]
  colours: Callable[[np.random.Generator, int], np.ndarray]
  stream: int
  weights: Mapping[str, float] | None = None  # None draws all alike.


_CREATURES = _Kind(creatures.FAMILIES, creatures.colours, 0xC7EA)
_THINGS = _Kind(rigid.FAMILIES, creatures.colours, 0x7416)
_FIGURES = _Kind(
  figure_families.FAMILIES,
  figure_families.colours,
  0xF16E,
  figure_families.WEIGHTS,
)
# In the order in which they are drawn.
_KINDS = (_THINGS, _FIGURES, _CREATURES)
# Names of the families whose views, light and edges vary as well.
VARIED = frozenset().union(*(kind.families for kind in _KINDS))


@dataclasses.dataclass(frozen=True)
class SyntheticClip:
  """An animated solid.

  Attributes:
    solid: Parts at every frame: leaves have leading axis F.
    colours: RGB in [0, 1] of cones, then boxes [K + J, 3].
    family: Name of the family that made it.
    seed: Its seed: the same seed gives the same clip.
    whole: Parts at every frame of the clip that this one is cut from, which
      cameras are fitted to; None if nothing was cut.
  """

  solid: signed_distance.Solid
  colours: np.ndarray
  family: str
  seed: int
  whole: signed_distance.Solid | None = None

  @property
  def num_frames(self) -> int:
    """Number of frames F."""
    return len(self.solid.smoothness)


def make_clip(
  seed: int,
  num_frames: int,
  variety: float = 0.0,
  seconds: float = 1.0,
  things: float = 0.0,
  figures: float = 0.0,
) -> SyntheticClip:
  """Makes the clip of a seed; seeds are independent of each other.

  Args:
    seed: Any non-negative number.
    num_frames: Frames F, spread over the clip; at least 1.
    variety: Share of what is then left from the families of `creatures`, with
      any yaw and several colours.
    seconds: Length of the clip; motions repeat after one to 1.7 seconds.
    things: Share of clips from the families of `things`, drawn first.
    figures: Share of the other clips from the families of `figures`, drawn
      second.

  Returns:
    The clip.

  Raises:
    ValueError: num_frames is less than 1.
  """
  if num_frames < 1:
    raise UserError(f"num_frames={num_frames} must be at least 1.")
  for share, kind in zip((things, figures, variety), _KINDS):
    if np.random.default_rng([seed, kind.stream]).uniform() < share:
      return _varied_clip(seed, num_frames, seconds, kind)
  rng = np.random.default_rng([seed, 0x4D])
  names = sorted(_FAMILIES)
  family = names[rng.integers(len(names))]
  phase = _phase(rng, num_frames, seconds)
  body = body_lib.Body(num_frames)
  _FAMILIES[family](rng, phase, body)
  return SyntheticClip(
    solid=body.solid(yaw=rng.uniform(-0.9, 0.9)),
    colours=_colours(rng, len(body.cones), len(body.boxes)),
    family=family,
    seed=seed,
  )


def cut(clip: SyntheticClip, num_frames: int) -> SyntheticClip:
  """Some consecutive frames of a clip, from a place that its seed decides."""
  rng = np.random.default_rng([clip.seed, 0xC07])
  first = int(rng.integers(clip.num_frames - num_frames + 1))
  frames = slice(first, first + num_frames)
  solid = signed_distance.Solid(*(x[frames] for x in clip.solid))
  return dataclasses.replace(clip, solid=solid, whole=clip.solid)


def _varied_clip(
  seed: int, num_frames: int, seconds: float, kind: _Kind
) -> SyntheticClip:
  rng = np.random.default_rng([seed, kind.stream, 1])
  names = sorted(kind.families)
  if kind.weights is None:
    family = names[rng.integers(len(names))]
  else:
    weights = np.array([kind.weights[name] for name in names])
    family = str(rng.choice(names, p=weights / weights.sum()))
  body = body_lib.Body(num_frames)
  kind.families[family](rng, _phase(rng, num_frames, seconds), body)
  return SyntheticClip(
    solid=body.solid(yaw=rng.uniform(-np.pi, np.pi)),
    colours=kind.colours(rng, body_lib.NUM_CONES + body_lib.NUM_BOXES),
    family=family,
    seed=seed,
  )


def _phase(
  rng: np.random.Generator, num_frames: int, seconds: float = 1.0
) -> np.ndarray:
  """Angle of the motion in every frame [F]; most of a turn in a second."""
  times = np.arange(num_frames) / max(num_frames, 2) * seconds
  return 2 * np.pi * (rng.uniform(0.6, 1.0) * times + rng.uniform())


def _colours(
  rng: np.random.Generator, num_cones: int, num_boxes: int
) -> np.ndarray:
  """A base colour of the object and a shade of it for every part."""
  base = rng.uniform(0.35, 0.95, 3)
  shades = base + rng.normal(
    0, 0.12, (body_lib.NUM_CONES + body_lib.NUM_BOXES, 3)
  )
  del num_cones, num_boxes  # Absent parts have a colour, too.
  return np.clip(shades, 0.15, 1.0).astype(np.float32)


def _limb(
  body: body_lib.Body,
  root: np.ndarray,
  lengths: Sequence[float],
  angles: Sequence[np.ndarray],
  radii: Sequence[float],
  side: float,
) -> None:
  """A chain of cones hanging from `root`, bent by `angles` in the xy plane.

  Args:
    body: List that the parts are appended to.
    root: [F, 3].
    lengths: Length of each segment.
    angles: Angle of each segment from straight down, radians [F] each.
    radii: Radii of the joints, one more than there are segments.
    side: Sideways lean of each segment along z, radians.
  """
  for index, (length, angle) in enumerate(zip(lengths, angles)):
    step = np.stack(
      [
        np.sin(angle) * np.cos(side),
        -np.cos(angle) * np.cos(side),
        np.full_like(angle, np.sin(side)),
      ],
      -1,
    )
    root = body.cone(root, root + length * step, radii[index], radii[index + 1])


def _quadruped(
  rng: np.random.Generator, phase: np.ndarray, body: body_lib.Body
) -> None:
  height, length = rng.uniform(0.5, 0.8), rng.uniform(0.7, 1.1)
  girth, leg = rng.uniform(0.17, 0.28), rng.uniform(0.08, 0.12)
  bounce = 0.04 * np.sin(2 * phase)
  zero = np.zeros_like(phase)
  hip = np.stack([zero - length / 2, height + bounce, zero], -1)
  shoulder = np.stack([zero + length / 2, height + bounce, zero], -1)
  body.cone(hip, shoulder, girth * rng.uniform(0.8, 1.1), girth)
  nod = rng.uniform(0.3, 0.9) + 0.2 * np.sin(phase)
  neck = shoulder + 0.4 * np.stack([np.cos(nod), np.sin(nod), zero], -1)
  body.cone(shoulder, neck, girth * 0.7, girth * 0.5)
  body.cone(
    neck,
    neck + np.stack([zero + 0.22, zero - 0.06, zero], -1),
    girth * rng.uniform(0.6, 0.8),
    girth * 0.4,
  )
  swing = rng.uniform(0.4, 0.75)
  for end, gait in ((hip, 0.0), (shoulder, np.pi / 2)):
    for side in (-1, 1):
      step = phase + gait + (np.pi if side > 0 else 0.0)
      upper = swing * np.sin(step)
      lower = upper + 0.5 * np.cos(step) - 0.2
      root = end + np.array([0.0, -girth * 0.3, side * girth * 0.75])
      _limb(
        body,
        root,
        (height * 0.48,) * 2,
        (upper, lower),
        (leg * 1.3, leg, leg * 0.8),
        side * 0.05,
      )
  wag = 0.8 * np.sin(phase + 1.0)
  tail = np.stack([zero - 0.4, 0.25 + 0.1 * wag, 0.3 * wag], -1)
  body.cone(hip, hip + tail, leg, leg * 0.5)


def _biped(
  rng: np.random.Generator, phase: np.ndarray, body: body_lib.Body
) -> None:
  height, torso = rng.uniform(0.7, 0.9), rng.uniform(0.4, 0.6)
  girth, limb = rng.uniform(0.16, 0.24), rng.uniform(0.08, 0.11)
  zero = np.zeros_like(phase)
  hip = np.stack([zero, height + 0.04 * np.sin(2 * phase), zero], -1)
  lean = rng.uniform(-0.1, 0.3) + 0.1 * np.sin(phase)
  chest = hip + torso * np.stack([np.sin(lean), np.cos(lean), zero], -1)
  body.cone(hip, chest, girth * 0.8, girth)
  head = chest + np.stack([zero + 0.03, zero + girth + 0.14, zero], -1)
  body.ball(head, rng.uniform(0.14, 0.22))
  stride = rng.uniform(0.4, 0.9)
  raised = rng.uniform(0.0, 1.2)
  for side in (-1, 1):
    step = phase + (np.pi if side > 0 else 0.0)
    upper = stride * np.sin(step)
    lower = upper - 0.4 + 0.4 * np.cos(step)
    root = hip + np.array([0.0, -0.05, side * girth * 0.6])
    _limb(
      body,
      root,
      (height * 0.46,) * 2,
      (upper, lower),
      (limb * 1.3, limb, limb),
      side * 0.06,
    )
    arm = -stride * np.sin(step) * 0.9
    root = chest + np.array([0.0, 0.02, side * girth * 0.9])
    _limb(
      body,
      root,
      (0.32, 0.3),
      (arm, arm + 0.5 + 0.3 * np.sin(step)),
      (limb, limb * 0.9, limb * 0.8),
      side * (0.3 + raised),
    )


def _tentacle(
  rng: np.random.Generator, phase: np.ndarray, body: body_lib.Body
) -> None:
  count = int(rng.integers(7, body_lib.NUM_CONES + 1))
  bend, waves = rng.uniform(0.25, 0.55), rng.uniform(0.5, 1.2)
  thick, thin = rng.uniform(0.18, 0.28), rng.uniform(0.08, 0.13)
  upright = rng.uniform() < 0.5
  angle = np.zeros_like(phase) if upright else np.full_like(phase, np.pi / 2)
  tilt = rng.uniform(-0.25, 0.25)
  point = np.zeros((len(phase), 3))
  for index in range(count):
    along = index / count
    angle = angle + bend * np.sin(phase - 2 * np.pi * waves * along) * (
      0.4 + 0.6 * along
    )
    step = np.stack(
      [np.sin(angle), np.cos(angle), np.sin(tilt * np.sin(phase + along))],
      -1,
    )
    end = point + 0.24 * step
    radii = [thick + (thin - thick) * (index + k) / count for k in (0, 1)]
    body.cone(point, end, *radii)
    point = end


def _bloomer(
  rng: np.random.Generator, phase: np.ndarray, body: body_lib.Body
) -> None:
  arms = int(rng.integers(3, 6))
  core, reach = rng.uniform(0.2, 0.32), rng.uniform(0.35, 0.55)
  thick, thin = rng.uniform(0.12, 0.17), rng.uniform(0.08, 0.12)
  opening = rng.uniform(0.2, 0.6) + rng.uniform(0.5, 0.8) * np.sin(phase)
  zero = np.zeros_like(phase)
  body.ball(np.stack([zero, zero, zero], -1), core)
  spin = rng.uniform(0, 2 * np.pi)
  vertical = rng.uniform() < 0.5
  for index in range(arms):
    around = spin + 2 * np.pi * index / arms
    point = np.zeros((len(phase), 3))
    for bend in (0.5, 1.2):
      out, up = np.cos(opening * bend), np.sin(opening * bend)
      step = np.stack([out * np.cos(around), up, out * np.sin(around)], -1)
      if vertical:  # A star that faces the camera.
        step = step[:, [0, 2, 1]]
      end = point + reach * step
      body.cone(point, end, thick, thin)
      point = end


def _machine(
  rng: np.random.Generator, phase: np.ndarray, body: body_lib.Body
) -> None:
  base = rng.uniform([0.3, 0.1, 0.25], [0.5, 0.2, 0.45])
  rounding = rng.uniform(0.02, 0.07)
  zero = np.zeros_like(phase)
  body.smoothness = 0.02
  body.box(np.zeros(3), np.eye(3), base, rounding)
  joint = np.stack([zero + rng.uniform(-0.2, 0.2), zero + base[1], zero], -1)
  angle = rng.uniform(-0.4, 0.4) + 0.5 * np.sin(phase)
  for index in range(int(rng.integers(2, 4))):
    length, width = rng.uniform(0.35, 0.6), rng.uniform(0.07, 0.13)
    turn = rotations.rotation_about([0, 0, 1], -angle)
    up = turn[..., :, 1]
    half = np.array([width, length / 2 + width * 0.3, width * 1.2])
    body.box(joint + length / 2 * up, turn, half, rounding)
    body.ball(joint, width * 1.5)
    joint = joint + length * up
    angle = angle + rng.uniform(0.4, 1.0) * (
      np.sin(phase + rng.uniform(0, 6.28)) + rng.uniform(-0.5, 1.2)
    )
    del index
  body.ball(joint, rng.uniform(0.14, 0.24))


def _bulger(
  rng: np.random.Generator, phase: np.ndarray, body: body_lib.Body
) -> None:
  count = int(rng.integers(2, 5))
  body.smoothness = 0.1
  zero = np.zeros_like(phase)
  height = np.zeros_like(phase)
  swell = rng.uniform(0.15, 0.35)
  sway = rng.uniform(0.0, 0.2)
  for index in range(count):
    pulse = 1 + swell * np.sin(phase - 1.4 * index)
    radius = rng.uniform(0.2, 0.38) * pulse
    height = height + radius * 0.8
    centre = np.stack(
      [sway * index * np.sin(phase - 0.7 * index), height, zero], -1
    )
    if rng.uniform() < 0.25:
      half = radius[:, None] * np.array([1.0, 0.8, 0.9])
      turn = rotations.rotation_about([0, 1, 0], 0.6 * np.sin(phase))
      body.box(centre, turn, half, 0.06)
    else:
      body.ball(centre, radius)
    height = height + radius * 0.7
  if rng.uniform() < 0.6:
    for side in (-1, 1):
      top = np.stack([zero, height * 0.7, zero], -1)
      out = np.stack(
        [side * (0.5 + 0 * phase), height * 0.7 + 0.25 * np.sin(phase), zero],
        -1,
      )
      body.cone(top, out, 0.1, 0.08)


def _splitter(
  rng: np.random.Generator, phase: np.ndarray, body: body_lib.Body
) -> None:
  body.smoothness = rng.uniform(0.08, 0.2)
  apart = 0.5 * (1 - np.cos(phase))
  axis = rotations.rotation_about([0, 0, 1], rng.uniform(-0.6, 1.6)) @ np.array(
    [1, 0, 0]
  )
  reach = rng.uniform(0.5, 0.8)
  zero = np.zeros((len(phase), 3))
  core = rng.uniform(0.22, 0.4)
  if rng.uniform() < 0.4:
    body.box(zero, np.eye(3), np.full(3, core), 0.08)
  else:
    body.ball(zero, core)
  for side in (-1, 1):
    if side > 0 and rng.uniform() < 0.3:
      continue
    radius = rng.uniform(0.16, 0.32)
    start = rng.uniform(0.3, 0.6) * core
    centre = side * axis * (start + (core + reach) * apart)[:, None]
    if rng.uniform() < 0.3:
      turn = rotations.rotation_about([0, 1, 1], apart * 1.5)
      body.box(centre, turn, np.full(3, radius), 0.05)
    else:
      body.ball(centre, radius)


_FAMILIES: dict[str, Callable[..., None]] = {
  "quadruped": _quadruped,
  "biped": _biped,
  "tentacle": _tentacle,
  "bloomer": _bloomer,
  "machine": _machine,
  "bulger": _bulger,
  "splitter": _splitter,
}
