"""The motion of a deformation graph, whose few nodes move all vertices.

A mesh with a few hundred nodes, each with one rigid motion per frame, is a
compact 4D representation that is easy to edit.

Source: Sumner, Schmid and Pauly, Embedded Deformation for Shape Manipulation,
2007; Li et al., DreamMesh4D, 2024, for the form.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from sculpt4d_jax.geometry.registration import frames as frames_lib
from sculpt4d_jax.geometry.registration import graph as graph_lib


@dataclasses.dataclass(frozen=True)
class GraphMotion:
  """Nodes, their motion, and the vertices that they move.

  Attributes:
    rest: Vertices at rest, float64 [V, 3].
    places: Nodes at rest, float64 [N, 3].
    edges: Ordered pairs of neighbouring nodes, int [E, 2].
    near: Nodes that a vertex blends, int [V, K].
    weights: Their weights, rows sum to 1, float64 [V, K].
    turns: Rotations about the nodes, float64 [F, N, 3, 3].
    shifts: Translations of the nodes, float64 [F, N, 3].
  """

  rest: np.ndarray
  places: np.ndarray
  edges: np.ndarray
  near: np.ndarray
  weights: np.ndarray
  turns: np.ndarray
  shifts: np.ndarray

  @classmethod
  def of(
    cls,
    graph: graph_lib.Graph,
    poses: Sequence[graph_lib.Pose | None],
    frames: frames_lib.Frames,
    rows: np.ndarray,
  ) -> "GraphMotion":
    """The motion in the input's units.

    Args:
      graph: The graph, in the units of `frames`.
      poses: Pose in each frame; None if the frame was not reached, which means
        at rest.
      frames: Units.
      rows: Vertex of the graph's mesh for each vertex of the result [V].
    """
    rest = graph_lib.Pose.at_rest(graph.num_nodes)
    poses = [pose or rest for pose in poses]
    return cls(
      frames.to_input(graph.model.vertices[rows]),
      frames.to_input(graph.places),
      graph.edges,
      graph.near[rows],
      graph.weights[rows],
      np.stack([pose.turns for pose in poses]),
      np.stack([pose.shifts for pose in poses]) / frames.scale,
    )

  @property
  def num_frames(self) -> int:
    """Number of frames F."""
    return len(self.turns)

  @property
  def num_nodes(self) -> int:
    """Number of nodes of the deformation graph."""
    return len(self.places)

  def positions(self) -> np.ndarray:
    """Vertices in all frames, float64 [F, V, 3]."""
    arms = self.rest[:, None] - self.places[self.near]  # [V, K, 3]
    result = np.empty((self.num_frames, *self.rest.shape))
    for frame, (turns, shifts) in enumerate(zip(self.turns, self.shifts)):
      moved = np.einsum("vkyx,vkx->vky", turns[self.near], arms)
      moved += (self.places + shifts)[self.near]
      result[frame] = np.einsum("vk,vkx->vx", self.weights, moved)
    return result

  def arrays(self) -> dict[str, np.ndarray]:
    """The arrays of its file, by name."""
    return dataclasses.asdict(self)
