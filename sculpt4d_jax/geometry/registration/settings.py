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
    gate: Largest distance of matched points.
    max_steps: Largest number of Gauss-Newton steps.
    point_weight: Weight of the distance to the matched point over that to its
      plane. It attracts distant parts, but impedes sliding along the surface.
    max_samples: Largest number of samples of each surface that are matched;
      coarse rounds need fewer than the last one.
  """

  stiffness: float
  gate: float
  max_steps: int
  point_weight: float = 0.3
  max_samples: int = 1_000_000


# If the stiffness decreases slowly and stays high, limbs lag behind and then
# match the wrong limb permanently. This schedule is soft early, with many
# steps.
ROUNDS = (
  Round(1.0, 0.32, 12, 0.3, max_samples=750),
  Round(0.2, 0.21, 12, 0.3, max_samples=750),
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
    min_normal_cosine: Smallest cosine between normals of matched points.
    normal_scale: Weight of normals in the distance for matching, which keeps
      the two sides of a thin limb apart.
    robust_scale: Distance, relative to the gate, at which a match's weight is a
      quarter.
    prediction: Share of the previous frame's motion that is extrapolated.
    smoothness: Weight of the nodes' predicted positions.
    tolerance: A round ends when all unknowns change by less than this.
    min_gain: A round ends when a step lowers the cost of the matches by less
      than this share.
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
  min_gain: float = 0.02

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
    min_normal_cosine: Smallest cosine between normals of matched points.
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
  """Largest values of a frame's checks; shares.

  Attributes:
    registered: HD99 of a registered frame.
    doubtful: HD99 of a doubtful frame; a frame above it has failed.
    far: Share of either surface that is far from the other one. It detects
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
    num_candidates: Number of candidate key frames; the first is always tried,
      the others only if it is not good enough.
    max_extra_keys: Further key frames for runs that the first does not reach.
    smoothing_window: Frames in the window of temporal smoothing, odd and at
      least 5; 0: no smoothing.
    find_segments: Whether runs of frames get separate topologies if one is not
      sufficient: where parts split or join, and where frames have failed.
    max_added_topologies: Largest number of topologies for failed runs.
  """

  graph: GraphSettings = GraphSettings()
  fine: FineSettings = FineSettings()
  limits: Limits = Limits()
  num_candidates: int = 3
  max_extra_keys: int = 2
  smoothing_window: int = 5
  find_segments: bool = True
  max_added_topologies: int = 4
