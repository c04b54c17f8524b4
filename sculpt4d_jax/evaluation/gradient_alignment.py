"""Alignment of one point cloud with another by gradient descent, in JAX.

Row vectors x become (scale * x) R + shift with one scale an axis and
R = R_start R_6d. The squared Chamfer distance

  mean_p min_q |x_p - y_q|^2 + mean_q min_p |x_p - y_q|^2

is minimised by Adam from many rotations at once (`vmap` over starts). Nearest
neighbours are recomputed at every step, or every few, and treated as constants,
which gives the gradient of this distance almost everywhere. They are found by
k-d trees on a CPU and by all distances in tiles on an accelerator.

  COARSE_TO_FINE  all 24 rotations of the cube on a few points, then the best on
                  more and more points, with steps that shrink at the end. The
  scale stays positive, so mirror images are excluded. A rotation that gains
  less than the sampling noise is dropped: for a symmetric body all rotations
  fit equally well, but any except the identity would rotate the later motion.
  REFERENCE       ActionBench: 24 starts that are 22 rotations (two pairs
  coincide at elevations of +-90 degrees), 200 steps on all points. The result
  mixes the best start's rotation before Adam's step with its scale and shift
  after it. The scale may be negative.

Source: ActionMesh, ActionBench's evaluation, 2026; Zhou et al., On the
Continuity of Rotation Representations in Neural Networks, 2019 (R_6d).
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import spatial

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import nearest as nearest_lib

_MIN_SCALE = 0.05
# Share of the squared distance of two equal surfaces that counts as noise.
_NOISE = 0.15
_TILE = 1024  # Rows of the distance matrix at a time.


@dataclasses.dataclass(frozen=True)
class Affine:
  """x -> (scale * x) rotation + shift for row vectors.

  Attributes:
    scale: One factor an axis, float64 [3].
    rotation: Rotation matrix for row vectors, float64 [3, 3].
    shift: Translation, float64 [3].
  """

  scale: np.ndarray
  rotation: np.ndarray
  shift: np.ndarray

  def __call__(self, points: np.ndarray) -> np.ndarray:
    """Transforms points [..., 3]; float64."""
    return (np.asarray(points) * self.scale) @ self.rotation + self.shift


@dataclasses.dataclass(frozen=True)
class Stage:
  """A part of a descent.

  Attributes:
    num_starts: Starts that are kept, those with the smallest distance.
    num_steps: Steps of Adam.
    num_points: Number of points used of both clouds, the first ones.
    rates: Step sizes at the beginning and the end of the stage; geometric in
      between.
    steps_a_search: Steps between searches of the nearest neighbours. Earlier
      ones give a distance that is too large, never too small.
  """

  num_starts: int
  num_steps: int
  num_points: int
  rates: tuple[float, float] = (0.01, 0.01)
  steps_a_search: int = 1


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How a descent is carried out.

  Attributes:
    stages: Consecutive stages; Adam's averages are kept between them.
    has_reference_slips: Whether to reproduce the reference as described above.
  """

  stages: tuple[Stage, ...]
  has_reference_slips: bool = False

  def describe(self) -> str:
    """The optimizer and its stages in one line, for reports."""
    stages = "; ".join(
      f"{s.num_starts} starts x {s.num_steps} steps on {s.num_points:,} points"
      + (f", a search every {s.steps_a_search}" * (s.steps_a_search > 1))
      for s in self.stages
    )
    return f"Adam {self.stages[0].rates[0]:g}, {stages}"


COARSE_TO_FINE = Schedule(
  (
    Stage(24, 60, 500, (0.03, 0.01), steps_a_search=2),
    Stage(4, 100, 2_000, steps_a_search=2),
    Stage(1, 60, 10_000, (0.005, 0.0005), steps_a_search=2),
  )
)
REFERENCE = Schedule((Stage(24, 200, 10_000),), has_reference_slips=True)


def cube_rotations() -> np.ndarray:
  """The 24 rotations of the cube, float64 [24, 3, 3]; the identity first."""
  rotations = []
  for axes in itertools.permutations(range(3)):
    for signs in itertools.product((1.0, -1.0), repeat=3):
      matrix = np.zeros((3, 3))
      matrix[range(3), axes] = signs
      if np.linalg.det(matrix) > 0:
        rotations.append(matrix)
  return np.stack(rotations)


def reference_rotations() -> np.ndarray:
  """ActionBench's 24 starts, 22 of them distinct, float64 [24, 3, 3]."""
  angles = [
    (azimuth, 0, roll)
    for azimuth in (0, 90, 180, 270)
    for roll in (0, 90, 180, 270)
  ]
  # The order of the rolls does not match the elevations, so two coincide.
  elevations = (90, 90, -90, -90) * 2
  angles += [
    (azimuth, elevation, roll)
    for azimuth, elevation, roll in zip(
      (0,) * 4 + (90,) * 4, elevations, (0, 90) * 4
    )
  ]
  return np.stack([_euler_xyz(*np.radians(a)) for a in angles])


def align(
  source: np.ndarray,
  target: np.ndarray,
  schedule: Schedule = COARSE_TO_FINE,
  *,
  nearest: str | None = None,
  workers: int = -1,
) -> Affine:
  """Finds the transform that brings one cloud onto another.

  Args:
    source: Points [P, 3] to be moved.
    target: Points [Q, 3].
    schedule: Stages of the optimisation.
    nearest: "tree" or "dense" search of neighbours; by default trees on a CPU.
    workers: Threads of the trees; -1 is one a core.

  Returns:
    The transform with the smallest distance.

  Raises:
    ValueError: A cloud has no points, or an unknown `nearest`.
  """
  for name, points in (("source", source), ("target", target)):
    if not len(points):
      raise UserError(f"the {name} cloud has no points to be aligned.")
  if nearest is None:
    nearest = "tree" if jax.default_backend() == "cpu" else "dense"
  if nearest not in ("tree", "dense"):
    raise UserError(f"nearest={nearest!r} must be 'tree' or 'dense'.")
  slips = schedule.has_reference_slips
  starts = reference_rotations() if slips else cube_rotations()
  starts = jnp.asarray(starts, jnp.float32)
  state = _initial_state(len(starts))
  # Shuffled, so that the first points of a stage cover the surface.
  source, target = _shuffled(source), _shuffled(target)
  best, losses, noise = _Best(), np.zeros(len(starts)), 0.0
  for number, stage in enumerate(schedule.stages):
    a = np.asarray(source[: stage.num_points], np.float32)
    b = np.asarray(target[: stage.num_points], np.float32)
    neighbours = _neighbours(b, nearest, workers)
    if number:
      # The previous stage's distances are of fewer points.
      best = _Best()
      kept = _select(losses, stage.num_starts, noise)
      starts = starts[kept]
      state = jax.tree.map(lambda leaf, kept=kept: leaf[kept], state)
    noise = 0.0 if slips else _NOISE * _floor(b)
    moved = _move(state, starts, a)
    for step, rate in enumerate(np.geomspace(*stage.rates, stage.num_steps)):
      before = state
      if step % stage.steps_a_search == 0:
        to_target, to_source = neighbours(moved)
      state, losses, moved = _step(
        state, starts, a, b, to_target, to_source, np.float32(rate), not slips
      )
      losses = np.asarray(losses)
      best.see(losses, before, state, starts, slips)
  found = best.affine()
  unturned = dataclasses.replace(found, rotation=np.eye(3))
  if not slips and _distance(unturned(a), b, workers) - best.loss < noise:
    return unturned
  return found


def _shuffled(points: np.ndarray) -> np.ndarray:
  return points[np.random.default_rng(0).permutation(len(points))]


def _select(losses: np.ndarray, count: int, noise: float) -> np.ndarray:
  """The best starts, best first; the first start wins ties."""
  order = np.argsort(losses, kind="stable")
  if losses[0] - losses[order[0]] < noise:
    order = np.concatenate([[0], order[order != 0]])
  return order[:count]


def _floor(points: np.ndarray) -> float:
  """Expected squared Chamfer distance of two clouds of the same surface."""
  if len(points) < 2:
    return 0.0
  distances, _ = spatial.cKDTree(points).query(points, k=2)
  return 2.0 * float(np.square(distances[:, 1]).mean())


def _distance(a: np.ndarray, b: np.ndarray, workers: int) -> float:
  """Squared Chamfer distance."""
  return sum(
    float(np.square(nearest_lib.nearest(y, x, workers)[0]).mean())
    for x, y in ((a, b), (b, a))
  )


class _Best:
  """The transform of the smallest loss so far."""

  def __init__(self):
    self.loss, self._state = np.inf, None

  def see(
    self,
    losses: np.ndarray,
    before: "_State",
    after: "_State",
    starts: jax.Array,
    slips: bool,
  ) -> None:
    """Updates the best transform with a step's losses, which precede it."""
    index = int(np.nanargmin(losses)) if np.isfinite(losses).any() else 0
    if losses[index] < self.loss or self._state is None:
      self.loss = losses[index]
      scale_of = after if slips else before
      self._state = [
        np.asarray(leaf[index], np.float64)
        for leaf in (
          _rotation(before.params, starts),
          scale_of.params.scale,
          scale_of.params.shift,
        )
      ]

  def affine(self) -> Affine:
    rotation, scale, shift = self._state
    return Affine(scale, rotation, shift)


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["scale", "sixd", "shift"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class _Params:
  """Parameters of all starts: [S, 3], [S, 6], [S, 3]."""

  scale: jax.Array
  sixd: jax.Array
  shift: jax.Array


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["params", "adam"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class _State:
  params: _Params
  adam: optax.OptState


_ADAM = optax.scale_by_adam()


def _initial_state(num_starts: int) -> _State:
  params = _Params(
    scale=jnp.ones((num_starts, 3)),
    sixd=jnp.tile(jnp.eye(3)[:2].reshape(6), (num_starts, 1)),
    shift=jnp.zeros((num_starts, 3)),
  )
  return _State(params, jax.vmap(_ADAM.init)(params))


def _rotation_from_sixd(sixd: jax.Array) -> jax.Array:
  """Rotation from two vectors: orthonormalised, with their cross product."""
  a, b = sixd[:3], sixd[3:]
  a = a / jnp.linalg.norm(a)
  b = b - jnp.dot(a, b) * a
  b = b / jnp.linalg.norm(b)
  return jnp.stack([a, b, jnp.cross(a, b)])


@jax.jit
def _rotation(params: _Params, starts: jax.Array) -> jax.Array:
  return starts @ jax.vmap(_rotation_from_sixd)(params.sixd)


def _moved(params: _Params, start: jax.Array, points: jax.Array) -> jax.Array:
  rotation = start @ _rotation_from_sixd(params.sixd)
  # The products are tiny, so full precision is cheap.
  turned = jnp.matmul(
    points * params.scale, rotation, precision=jax.lax.Precision.HIGHEST
  )
  return turned + params.shift


@jax.jit
def _move(state: _State, starts: jax.Array, points: jax.Array) -> jax.Array:
  move = jax.vmap(_moved, in_axes=(0, 0, None))
  return move(state.params, starts, points)


@functools.partial(jax.jit, static_argnames="keep_positive")
def _step(
  state: _State,
  starts: jax.Array,
  source: jax.Array,
  target: jax.Array,
  to_target: jax.Array,
  to_source: jax.Array,
  rate: jax.Array,
  keep_positive: bool,
) -> tuple[_State, jax.Array, jax.Array]:
  """One step of all starts; also the losses before it and the moved points."""

  def loss(
    params: _Params,
    start: jax.Array,
    to_target: jax.Array,
    to_source: jax.Array,
  ) -> jax.Array:
    moved = _moved(params, start, source)
    forth = jnp.sum(jnp.square(moved - target[to_target]), axis=1).mean()
    back = jnp.sum(jnp.square(moved[to_source] - target), axis=1).mean()
    return forth + back

  def one(
    params: _Params,
    adam: optax.OptState,
    start: jax.Array,
    to_target: jax.Array,
    to_source: jax.Array,
  ) -> tuple[_Params, optax.OptState, jax.Array]:
    value, gradient = jax.value_and_grad(loss)(
      params, start, to_target, to_source
    )
    updates, adam = _ADAM.update(gradient, adam)
    params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
    if keep_positive:
      scale = jnp.maximum(params.scale, _MIN_SCALE)
      params = dataclasses.replace(params, scale=scale)
    return params, adam, value

  params, adam, losses = jax.vmap(one)(
    state.params, state.adam, starts, to_target, to_source
  )
  state = _State(params, adam)
  return state, losses, _move(state, starts, source)


def _neighbours(
  target: np.ndarray, method: str, workers: int
) -> Callable[[jax.Array], tuple[np.ndarray, np.ndarray]]:
  """A function from moved points [S, P, 3] to both lists of neighbours."""
  if method == "dense":
    return functools.partial(_all_nearest, target=jnp.asarray(target))
  # The trees are searched only once, so building fast matters more.
  build = functools.partial(
    spatial.cKDTree, balanced_tree=False, compact_nodes=False
  )
  tree = spatial.cKDTree(target)

  def find(moved: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    moved = np.asarray(moved)
    if not np.isfinite(moved).all():
      moved = np.nan_to_num(moved, posinf=0.0, neginf=0.0)
    forth = [tree.query(points, workers=workers)[1] for points in moved]
    back = [build(points).query(target, workers=workers)[1] for points in moved]
    return np.stack(forth).astype(np.int32), np.stack(back).astype(np.int32)

  return find


@jax.jit
def _all_nearest(
  moved: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Neighbours both ways [S, P] and [S, Q], from all distances in tiles."""

  def nearest(points: jax.Array, others: jax.Array) -> jax.Array:
    tile = lambda point: jnp.argmin(jnp.sum(jnp.square(point - others), axis=1))
    return jax.lax.map(tile, points, batch_size=_TILE).astype(jnp.int32)

  forth = jax.lax.map(lambda points: nearest(points, target), moved)
  back = jax.lax.map(lambda points: nearest(target, points), moved)
  return forth, back


def _euler_xyz(x: float, y: float, z: float) -> np.ndarray:
  """Rx Ry Rz, rotations about the three axes."""
  rotations = []
  for axis, angle in enumerate((x, y, z)):
    matrix = np.eye(3)
    i, j = [k for k in range(3) if k != axis]
    sign = -1.0 if axis == 1 else 1.0
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -sign * np.sin(angle), sign * np.sin(angle)
    rotations.append(matrix)
  return rotations[0] @ rotations[1] @ rotations[2]


def count_distinct(rotations: Sequence[np.ndarray]) -> int:
  """Number of different matrices, to nine digits."""
  return len({tuple(np.round(r, 9).ravel() + 0.0) for r in rotations})
