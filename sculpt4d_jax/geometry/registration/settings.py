"""Settings of a registration.

Lengths are in units in which the longest side of the box around all frames is
2, so that defaults fit any sequence.
"""

import dataclasses
from typing import NamedTuple

from sculpt4d_jax.errors import UserError


class Round(NamedTuple):
  """One round of the graph stage.

  Attributes:
    stiffness: Weight of the graph's edges over that of the matches.
    gate: Longest distance at which surfaces are matched.
    max_steps: Gauss-Newton steps at most.
    point_weight: Weight of the distance to the matched point over that to its
      plane. It attracts what is far, but holds back what slides along.
  """

  stiffness: float
  gate: float
  max_steps: int
  point_weight: float = 0.3


# Stiffness that falls slowly and stays high ends with limbs that lag behind,
# then match the wrong limb for good. These are soft early, and long.
ROUNDS = (
  Round(1.0, 0.32, 12, 0.3),
  Round(0.2, 0.21, 12, 0.3),
  Round(0.05, 0.105, 6, 0.05),
)


@dataclasses.dataclass(frozen=True)
class GraphSettings:
  """Settings of the deformation graph and its fit.

  Attributes:
    num_nodes: Nodes, each a rigid motion.
    num_neighbours: Nodes that a vertex blends.
    num_edges: Neighbours of a node.
    num_samples: Points of each surface that are matched.
    rounds: Schedule of the fit.
    min_normal_cosine: Normals of matched points agree at least so much.
    normal_scale: Weight of normals in the distance that finds matches: the far
      side of a thin limb is far away.
    robust_scale: Distance over the gate at which a match weighs a quarter.
    prediction: Share of the last step that is expected to repeat.
    smoothness: Pull of the nodes to their predicted places.
    tolerance: A round ends when no unknown moves by this.
  """

  num_nodes: int = 120
  num_neighbours: int = 4
  num_edges: int = 6
  num_samples: int = 1500
  rounds: tuple[Round, ...] = ROUNDS
  min_normal_cosine: float = 0.3
  normal_scale: float = 0.2
  robust_scale: float = 1.0
  prediction: float = 0.7
  smoothness: float = 0.02
  tolerance: float = 4e-3

  def __post_init__(self):
    if self.num_nodes < 1 or self.num_samples < 1 or not self.rounds:
      raise UserError(
        "num_nodes, num_samples and the number of rounds must be at least 1."
      )


@dataclasses.dataclass(frozen=True)
class FineSettings:
  """Settings of the fine fit, in which every vertex is free.

  Attributes:
    num_iterations: Iterations of match, rotations and solve.
    pull: Weight of the target over the mean diagonal of the matrix.
    gate: Longest distance at which a vertex is matched.
    min_normal_cosine: Normals of matched points agree at least so much.
    min_cotangent: Cotangent weights are raised to this; negative ones would
      make rotations wrong and the matrix indefinite.
  """

  num_iterations: int = 15
  pull: float = 0.5
  gate: float = 0.063
  min_normal_cosine: float = 0.3
  min_cotangent: float = 0.02


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a frame may have at most; shares.

  Attributes:
    registered: HD99 of a registered frame.
    doubtful: HD99 of a doubtful frame; beyond it the frame has failed.
    far: Share of either surface that is far from the other one. It tells of
      limbs too small for the 99th percentile.
    turned: Share of turned area of a registered frame.
    stretched: Share of stretched area of a registered frame.
  """

  registered: float = 0.015
  doubtful: float = 0.035
  far: float = 0.003
  turned: float = 0.03
  stretched: float = 0.1


@dataclasses.dataclass(frozen=True)
class Settings:
  """All settings of a registration.

  Attributes:
    graph: Settings of the graph stage.
    fine: Settings of the fine fit.
    limits: Limits of the verdicts.
    num_candidates: Frames that may become the key; the first is always tried,
      the others only if it does not serve.
    max_extra_keys: Further key frames for runs that the first does not reach.
    smoothing_window: Frames that smoothing over time sees, odd and at least 5;
      0: no smoothing.
    find_segments: Whether runs of frames get separate topologies where
      parts split or join and one topology does not serve.
  """

  graph: GraphSettings = GraphSettings()
  fine: FineSettings = FineSettings()
  limits: Limits = Limits()
  num_candidates: int = 3
  max_extra_keys: int = 2
  smoothing_window: int = 5
  find_segments: bool = True
