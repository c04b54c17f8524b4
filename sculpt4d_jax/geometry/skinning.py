"""Skins a moving mesh: few rigid bones, at most four of them per vertex.

Vertices of a registered mesh are approximated as x_f = sum_b w_b (R_fb x +
t_fb) with convex weights w. Bones start as clusters of vertices that move
rigidly together (the worst cluster is split until there are enough); then
weights and bones are optimised alternately, each exactly for the other: weights
by least squares on the simplex, a bone by the rigid motion that fits the
residual of the others.

Large meshes and long clips are subsampled for the search; final weights and
poses are computed for all vertices and frames.

Source: Le and Deng, Smooth Skinning Decomposition with Rigid Bones, 2012.
"""

import dataclasses
from typing import Literal

import numpy as np
from scipy import sparse
from scipy import spatial

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry.registration import result

# Influences a vertex may have; the limit of file formats and engines.
INFLUENCES = 4
MAX_BONES = 16
TARGET_RMS = 0.005  # Share of the size, for "auto".
_FEWEST = 6  # Smallest number of vertices of a bone.
_CANDIDATES = 8  # Candidate bones for a vertex's four.
_LLOYD = 3
_SIMPLEX_STEPS = 80
_CHUNK = 2000  # Vertices whose weights are solved at a time.


@dataclasses.dataclass(frozen=True)
class SkinSettings:
  """Settings of the decomposition.

  Attributes:
    rounds: Alternations of weights and bones.
    max_vertices: Largest number of vertices used in the search.
    max_frames: Frames used in the search.
    smoothness: Weight of the difference to the neighbours' weights, relative to
      the data term.
  """

  rounds: int = 6
  max_vertices: int = 6000
  max_frames: int = 24
  smoothness: float = 1e-4


@dataclasses.dataclass(frozen=True)
class Skin:
  """Weights and rigid motions of bones.

  Attributes:
    rest: Positions without motion, float64 [V, 3].
    weights: Non-negative, at most four a row, rows sum to 1, float64 [V, B].
    rotations: Proper rotations, float64 [F, B, 3, 3].
    translations: float64 [F, B, 3]; bone b takes x to R x + t.
    rms: Root mean square distance to the mesh that was decomposed, as a share
      of its size.
  """

  rest: np.ndarray
  weights: np.ndarray
  rotations: np.ndarray
  translations: np.ndarray
  rms: float

  @property
  def num_bones(self) -> int:
    """Number of bones."""
    return self.weights.shape[1]

  @property
  def num_frames(self) -> int:
    """Number of frames F."""
    return len(self.rotations)

  def posed(self) -> np.ndarray:
    """Positions in all frames, float64 [F, V, 3]."""
    return pose(self.rest, self.weights, self.rotations, self.translations)

  def influences(self) -> tuple[np.ndarray, np.ndarray]:
    """The four heaviest bones a vertex: ids [V, 4] and weights [V, 4].

    Weights are sorted; bones of weight 0 have the number 0.
    """
    wanted = INFLUENCES - min(INFLUENCES, self.num_bones)
    weights = np.pad(self.weights, ((0, 0), (0, wanted)))
    ids = np.argsort(-weights, axis=1, kind="stable")[:, :INFLUENCES]
    values = np.take_along_axis(weights, ids, 1)
    values /= values.sum(1, keepdims=True)
    return np.where(values > 0, ids, 0), values


def pose(
  rest: np.ndarray,
  weights: np.ndarray,
  rotations: np.ndarray,
  translations: np.ndarray,
) -> np.ndarray:
  """Linear blend skinning: positions [F, V, 3]."""
  result = np.empty((len(rotations), *rest.shape))
  homogeneous = np.concatenate([rest, np.ones((len(rest), 1))], 1)
  for frame in range(len(rotations)):
    matrices = np.concatenate(
      [rotations[frame], translations[frame][..., None]], -1
    )
    blended = np.tensordot(weights, matrices, 1)  # [V, 3, 4]
    result[frame] = np.einsum("vij,vj->vi", blended, homogeneous)
  return result


def decompose(
  vertices: np.ndarray,
  rest: np.ndarray,
  bones: int | Literal["auto"] = "auto",
  settings: SkinSettings | None = None,
) -> Skin:
  """Finds bones and weights.

  Args:
    vertices: Positions in all frames [F, V, 3], without global motion.
    rest: Positions [V, 3] from which the bones move.
    bones: Number of bones, or "auto" for the smallest number whose error is
      below 0.5 % of the size, at most 16.
    settings: Settings of the search.

  Returns:
    The skin; it may have fewer bones than requested if the mesh has fewer parts
    of at least six vertices.

  Raises:
    ValueError: Shapes do not fit, or `bones` is not positive.
  """
  settings = settings or SkinSettings()
  vertices = np.asarray(vertices, np.float64)
  rest = np.asarray(rest, np.float64)
  if vertices.ndim != 3 or vertices.shape[1:] != rest.shape:
    raise UserError(
      f"expected vertices [F, {len(rest)}, 3], got {list(vertices.shape)}."
    )
  if bones != "auto" and bones < 1:
    raise UserError(f'bones={bones} must be 1 or more, or "auto".')
  size = _size(vertices)
  search = _Search(vertices, rest, settings)
  if bones == "auto":
    weights, chosen = search.fewest_bones(TARGET_RMS * size, MAX_BONES)
  else:
    weights, chosen = search.solve(bones)
  return _finish(vertices, rest, search, weights, chosen, size)


def with_new_weights(skin: Skin, vertices: np.ndarray) -> Skin:
  """The skin with the weights that fit [F, V, 3] best for its bones."""
  frames = _thinned(len(vertices), SkinSettings().max_frames)
  bones = _Bones(skin.rotations[frames], skin.translations[frames])
  weights = solve_weights(skin.rest, vertices[frames], bones)
  skin = dataclasses.replace(skin, weights=weights)
  return with_motion(skin, skin.rotations, skin.translations, vertices)


def with_motion(
  skin: Skin,
  rotations: np.ndarray,
  translations: np.ndarray,
  vertices: np.ndarray,
) -> Skin:
  """The skin with other bone motions, and its error to [F, V, 3]."""
  posed = pose(skin.rest, skin.weights, rotations, translations)
  rms = float(np.sqrt(((posed - vertices) ** 2).sum(-1).mean()))
  return dataclasses.replace(
    skin,
    rotations=rotations,
    translations=translations,
    rms=rms / _size(vertices),
  )


def _size(vertices: np.ndarray) -> float:
  extent = vertices.max((0, 1)) - vertices.min((0, 1))
  return max(float(extent.max()), 1e-12)


@dataclasses.dataclass
class _Bones:
  rotations: np.ndarray  # [F, B, 3, 3]
  translations: np.ndarray  # [F, B, 3]

  def __len__(self) -> int:
    return self.rotations.shape[1]

  def carry(self, points: np.ndarray) -> np.ndarray:
    """Points [V, 3] moved by every bone, [F, B, V, 3]."""
    moved = np.einsum("fbij,vj->fbvi", self.rotations, points)
    return moved + self.translations[:, :, None]

  def joined(self, rotation: np.ndarray, translation: np.ndarray) -> "_Bones":
    return _Bones(
      np.concatenate([self.rotations, rotation[:, None]], 1),
      np.concatenate([self.translations, translation[:, None]], 1),
    )


class _Search:
  """The decomposition of a subsampled mesh."""

  def __init__(
    self, vertices: np.ndarray, rest: np.ndarray, settings: SkinSettings
  ):
    self.settings = settings
    self.vertex_ids = _thinned(len(rest), settings.max_vertices)
    self.frame_ids = _thinned(len(vertices), settings.max_frames)
    self.rest = rest[self.vertex_ids]
    self.frames = vertices[self.frame_ids][:, self.vertex_ids]
    self.neighbours = _neighbour_mean(self.rest)

  def fewest_bones(self, target: float, most: int) -> tuple[np.ndarray, _Bones]:
    """The smallest number of bones below an error, found by bisection."""
    low, high = 0, most
    solved = {most: self.solve(most)}
    while high - low > 1:
      middle = (low + high) // 2
      solved[middle] = self.solve(middle)
      if self.rms(*solved[middle]) <= target:
        high = middle
      else:
        low = middle
    return solved[high]

  def solve(self, num_bones: int) -> tuple[np.ndarray, _Bones]:
    bones = _cluster(self.rest, self.frames, num_bones)
    weights = None
    for _ in range(self.settings.rounds):
      weights = solve_weights(
        self.rest,
        self.frames,
        bones,
        None if weights is None else self.neighbours @ weights,
        self.settings.smoothness,
      )
      bones = _solve_bones(self.rest, self.frames, weights, bones)
    return weights, bones

  def rms(self, weights: np.ndarray, bones: _Bones) -> float:
    posed = pose(self.rest, weights, bones.rotations, bones.translations)
    return float(np.sqrt(((posed - self.frames) ** 2).sum(-1).mean()))


def _finish(
  vertices: np.ndarray,
  rest: np.ndarray,
  search: _Search,
  weights: np.ndarray,
  bones: _Bones,
  size: float,
) -> Skin:
  """Weights of all vertices and poses of all frames."""
  if len(search.frame_ids) < len(vertices):
    bones = _bones_of_all_frames(vertices, search, weights, bones)
  pull = None
  if len(search.vertex_ids) < len(rest):
    # A vertex outside of the search is smoothed towards the nearest one in it.
    near = spatial.cKDTree(search.rest).query(rest)[1]
    pull = weights[near]
  else:
    pull = search.neighbours @ weights
  some = vertices[search.frame_ids]
  at_search = _Bones(
    bones.rotations[search.frame_ids], bones.translations[search.frame_ids]
  )
  weights = solve_weights(
    rest, some, at_search, pull, search.settings.smoothness
  )
  # A bone that moves no vertex would be an empty joint in every file.
  used = np.flatnonzero(weights.sum(0) > 1e-6)
  weights = weights[:, used]
  bones = _Bones(bones.rotations[:, used], bones.translations[:, used])
  posed = pose(rest, weights, bones.rotations, bones.translations)
  rms = float(np.sqrt(((posed - vertices) ** 2).sum(-1).mean())) / size
  return Skin(rest, weights, bones.rotations, bones.translations, rms)


def _bones_of_all_frames(
  vertices: np.ndarray, search: _Search, weights: np.ndarray, bones: _Bones
) -> _Bones:
  """Poses of the frames left out of the search, starting from the nearest."""
  gaps = np.abs(np.arange(len(vertices))[:, None] - search.frame_ids)
  nearest = gaps.argmin(1)
  full = _Bones(
    bones.rotations[nearest].copy(), bones.translations[nearest].copy()
  )
  frames = vertices[:, search.vertex_ids]
  for _ in range(3):
    full = _solve_bones(search.rest, frames, weights, full)
  return full


def _thinned(count: int, most: int) -> np.ndarray:
  return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def _neighbour_mean(points: np.ndarray, count: int = 6) -> sparse.csr_matrix:
  """Averages values over each point's nearest points, [V, V]."""
  # By distance, not by edges: thinned vertices have no edges between them.
  count = min(count, len(points) - 1)
  near = spatial.cKDTree(points).query(points, count + 1)[1][:, 1:]
  rows = np.repeat(np.arange(len(points)), count)
  return sparse.csr_matrix(
    (np.full(rows.size, 1 / max(count, 1)), (rows, near.reshape(-1))),
    (len(points),) * 2,
  )


def _fit_bone(
  rest: np.ndarray, frames: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  transforms = result.fit_trajectory(frames, rest, weights)
  return transforms[:, :3, :3], transforms[:, :3, 3]


def _square_errors(
  rest: np.ndarray, frames: np.ndarray, bones: _Bones
) -> np.ndarray:
  """Mean square distance of every bone's motion to a vertex's, [B, V]."""
  errors = np.zeros((len(bones), len(rest)))
  for frame, rotations, translations in zip(
    frames, bones.rotations, bones.translations
  ):
    moved = rest @ rotations.swapaxes(1, 2) + translations[:, None]
    errors += ((moved - frame) ** 2).sum(-1)
  return errors / len(frames)


def _cluster(rest: np.ndarray, frames: np.ndarray, num_bones: int) -> _Bones:
  """Rigid clusters by Lloyd's iterations; the worst is split."""
  rotation, translation = _fit_bone(rest, frames)
  bones = _Bones(rotation[:, None], translation[:, None])
  failed = 0
  while True:
    for _ in range(_LLOYD):
      label = _square_errors(rest, frames, bones).argmin(0)
      kept = np.flatnonzero(np.bincount(label, minlength=len(bones)) >= _FEWEST)
      fits = [_fit_bone(rest[label == b], frames[:, label == b]) for b in kept]
      bones = _Bones(
        np.stack([f[0] for f in fits], 1), np.stack([f[1] for f in fits], 1)
      )
    # Splits that leave a cluster too small are merged again by the next round:
    # after a few of them the mesh has no more rigid parts.
    if len(bones) >= num_bones or failed > 3:
      return bones
    before = len(bones)
    bones = bones.joined(*_split(rest, frames, bones))
    label = _square_errors(rest, frames, bones).argmin(0)
    failed += np.bincount(label, minlength=before + 1).min() < _FEWEST


def _split(
  rest: np.ndarray, frames: np.ndarray, bones: _Bones
) -> tuple[np.ndarray, np.ndarray]:
  """A new bone around the vertex with the largest error."""
  errors = _square_errors(rest, frames, bones)
  label, best = errors.argmin(0), errors.min(0)
  worst = int(np.bincount(label, best, len(bones)).argmax())
  members = np.flatnonzero(label == worst)
  # Also far from the centre, or noise there would attract the new bone.
  reach = np.linalg.norm(rest[members] - rest[members].mean(0), axis=1)
  seed = members[(best[members] * reach).argmax()]
  gap = np.linalg.norm(rest[members] - rest[seed], axis=1)
  near = members[np.argsort(gap)[: max(_FEWEST, len(members) // 4)]]
  return _fit_bone(rest[near], frames[:, near])


def solve_weights(
  rest: np.ndarray,
  frames: np.ndarray,
  bones: _Bones,
  pull: np.ndarray | None = None,
  smoothness: float = 0.0,
) -> np.ndarray:
  """Convex weights on the best four bones of every vertex, [V, B]."""
  weights = np.zeros((len(rest), len(bones)))
  for begin in range(0, len(rest), _CHUNK):
    part = slice(begin, begin + _CHUNK)
    weights[part] = _chunk_weights(
      rest[part],
      frames[:, part],
      bones,
      None if pull is None else pull[part],
      smoothness,
    )
  return weights


def _chunk_weights(
  rest: np.ndarray,
  frames: np.ndarray,
  bones: _Bones,
  pull: np.ndarray | None,
  smoothness: float,
) -> np.ndarray:
  count = len(bones)
  moved = bones.carry(rest)  # [F, B, V, 3]
  # Relative to the target the optimum on the simplex is the same, and the
  # numbers are small, which avoids cancellation.
  gap = (moved - frames[:, None]).transpose(2, 1, 0, 3)
  gap = gap.reshape(len(rest), count, -1)
  gram = gap @ gap.transpose(0, 2, 1)  # [V, B, B]
  linear = np.zeros((len(rest), count))
  errors = np.einsum("vbb->vb", gram).copy()
  if pull is not None and smoothness:
    scale = smoothness * errors.mean()
    gram = gram + scale * np.eye(count)
    linear = scale * pull
    errors = errors - scale * pull
  # The four bones that fit best alone need not fit best together. So more
  # candidates are solved for, and the heaviest four of the solution kept.
  chosen = np.argsort(errors, 1)[:, : min(_CANDIDATES, count)]
  solved = _on_simplex(*_restricted(gram, linear, chosen))
  if chosen.shape[1] > INFLUENCES:
    heaviest = np.argsort(-solved, 1)[:, :INFLUENCES]
    chosen = np.take_along_axis(chosen, heaviest, 1)
    solved = _on_simplex(*_restricted(gram, linear, chosen))
  weights = np.zeros((len(rest), count))
  np.put_along_axis(weights, chosen, solved, 1)
  weights[weights < 1e-4] = 0
  return weights / weights.sum(1, keepdims=True)


def _restricted(
  gram: np.ndarray, linear: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  rows = np.take_along_axis(gram, chosen[:, :, None], 1)
  return (
    np.take_along_axis(rows, chosen[:, None], 2),
    np.take_along_axis(linear, chosen, 1),
  )


def _on_simplex(gram: np.ndarray, linear: np.ndarray) -> np.ndarray:
  """Minimises w'Gw/2 - h'w over convex w, batched, [V, K].

  Accelerated projected gradients; steps by the largest eigenvalue.
  """
  count = linear.shape[1]
  step = 1 / np.maximum(np.linalg.eigvalsh(gram)[:, -1], 1e-20)
  weights = np.full(linear.shape, 1 / count)
  ahead, momentum = weights, 1.0
  for _ in range(_SIMPLEX_STEPS):
    slope = (gram @ ahead[..., None])[..., 0] - linear
    moved = _project(ahead - step[:, None] * slope)
    following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
    ahead = moved + (momentum - 1) / following * (moved - weights)
    weights, momentum = moved, following
  return weights


def _project(points: np.ndarray) -> np.ndarray:
  """Nearest points of the simplex [V, K].

  Source: Duchi et al., Efficient Projections onto the l1-Ball, 2008.
  """
  falling = -np.sort(-points, 1)
  excess = (np.cumsum(falling, 1) - 1) / np.arange(1, points.shape[1] + 1)
  last = (falling > excess).sum(1) - 1
  return np.maximum(points - np.take_along_axis(excess, last[:, None], 1), 0)


def _solve_bones(
  rest: np.ndarray, frames: np.ndarray, weights: np.ndarray, bones: _Bones
) -> _Bones:
  """Fits each bone in turn to the residual of the others."""
  rotations, translations = bones.rotations.copy(), bones.translations.copy()
  left = frames - pose(rest, weights, rotations, translations)
  for bone in range(len(bones)):
    rows = np.flatnonzero(weights[:, bone] > 1e-4)
    # Few points do not determine a rotation: the bone keeps its motion.
    if len(rows) < _FEWEST:
      continue
    share, points = weights[rows, bone], rest[rows]
    before = _move(points, rotations[:, bone], translations[:, bone])
    # sum |w (R x + t) - r|^2 = sum w^2 |R x + t - r / w|^2.
    goal = before + left[:, rows] / share[:, None]
    rotation, translation = _fit_bone(points, goal, share**2)
    after = _move(points, rotation, translation)
    left[:, rows] += share[:, None] * (before - after)
    rotations[:, bone], translations[:, bone] = rotation, translation
  return _Bones(rotations, translations)


def _move(
  points: np.ndarray, rotations: np.ndarray, translations: np.ndarray
) -> np.ndarray:
  return points @ rotations.swapaxes(1, 2) + translations[:, None]
