"""Fills in colours of surface points that no frame shows.

First by mirror symmetry: an unseen vertex takes the colour of its mirror
vertex, if that one was seen and the symmetry is accurate there. The rest is
filled by one of these methods:

  within_parts  the smoothest colours that agree with those seen, with little
  diffusion between parts, so that limbs do not bleed into the body. A mirrored
  patch keeps its differences of colour and passes smoothly into what was seen;
  part          the mean colour of the seen vertices of the same part, mixed by
                the skin's weights;
  surface       the colour of the nearest seen vertex along the surface, of the
                same part first;
  harmonic      the smoothest colours on the whole surface.

docs/registration.md compares them.

Source of the smooth passage: Perez et al., Poisson Image Editing, 2003.
"""

from typing import Literal

import igl
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.sparse import linalg

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import symmetry as symmetry_lib
from sculpt4d_jax.rendering import texture_baking

Method = Literal["within_parts", "part", "surface", "harmonic"]
METHODS: tuple[Method, ...] = ("within_parts", "part", "surface", "harmonic")

SEEN = 0.05  # Weight from which a colour is trusted.
_LEAST_COTANGENT = 0.02
_BETWEEN_PARTS = 0.03  # Diffusion across an edge between parts.
_TIE = 50.0  # Weight of the data term of a seen vertex.
_MIRRORED_TIE = 0.1  # The same of a mirrored one.
_OTHER_PART = 4.0  # Factor on the length of an edge between parts.
_BLUR = 3  # Rounds of averaging over neighbours, at the borders of patches.


def mirror(
  seen: texture_baking.Observed,
  symmetry: symmetry_lib.Symmetry,
  max_distance: float = 0.02,
) -> texture_baking.Observed:
  """Gives unseen vertices the colour of their mirror partners.

  Args:
    seen: Colours and weights of the vertices.
    symmetry: Partners of the vertices.
    max_distance: Distance, as a share of the size, beyond which a partner is
      not used; an opposite normal counts as distance.

  Returns:
    Colours with the mirrored ones added; their weight is half the partner's.
  """
  partner = symmetry.partner
  usable = (
    (seen.weights <= SEEN)
    & (seen.weights[partner] > SEEN)
    & (symmetry.distance <= max_distance * symmetry.size)
  )
  colours, weights = seen.colours.copy(), seen.weights.copy()
  colours[usable] = seen.colours[partner[usable]]
  weights[usable] = 0.5 * seen.weights[partner[usable]]
  return texture_baking.Observed(colours, weights)


def fill(
  vertices: np.ndarray,
  faces: np.ndarray,
  seen: texture_baking.Observed,
  method: Method = "within_parts",
  skin_weights: np.ndarray | None = None,
  symmetry: symmetry_lib.Symmetry | None = None,
) -> np.ndarray:
  """Colours of all vertices.

  Args:
    vertices: The rest pose [V, 3].
    faces: Vertex indices [T, 3].
    seen: Colours and weights of the vertices.
    method: Method that fills unseen texels, see the module.
    skin_weights: Weights of the parts that each vertex belongs to, [V, B], rows
      that sum to 1; without them the whole object is one part.
    symmetry: Partners of the vertices, of which unseen ones take their colours
      first; None mirrors nothing.

  Returns:
    RGB in [0, 1], float64 [V, 3].

  Raises:
    ValueError: The method is unknown.
  """
  if method not in METHODS:
    raise UserError(f"fill={method!r}: choose one of {METHODS}.")
  direct = seen.weights > SEEN
  if symmetry is not None:
    seen = mirror(seen, symmetry)
  known = seen.weights > SEEN
  if not known.any():
    return np.full((len(vertices), 3), 0.5)
  vertices = np.asarray(vertices, np.float64)
  if skin_weights is None:
    skin_weights = np.ones((len(vertices), 1))
  if method == "harmonic":
    whole = np.zeros(len(vertices), int)
    tie = 1e3 * seen.weights
    return np.clip(_harmonic(vertices, faces, seen, known, tie, whole), 0, 1)
  if method == "within_parts":
    # Grazing views are uncertain and get little influence on unseen vertices.
    tie, part = _TIE * seen.weights**2, skin_weights.argmax(1)
    mirrored = known & ~direct
    tie[mirrored] = _MIRRORED_TIE
    smooth = _harmonic(vertices, faces, seen, known, tie, part, mirrored)
    smooth[direct] = seen.colours[direct]
    return np.clip(smooth, 0, 1)
  if method == "part":
    filled = _by_part(seen, known, skin_weights)
  else:
    filled = _along_surface(vertices, faces, seen, known, skin_weights)
  filled[known] = seen.colours[known]
  return np.clip(_soften(filled, faces, known), 0, 1)


def _harmonic(
  vertices: np.ndarray,
  faces: np.ndarray,
  seen: texture_baking.Observed,
  known: np.ndarray,
  tie: np.ndarray,
  part: np.ndarray,
  patches: np.ndarray | None = None,
) -> np.ndarray:
  """Minimises colour differences over edges and to the seen colours.

  Between vertices of `patches`, bool [V], the differences of the known colours are
  kept instead.
  """
  laplacian = igl.cotmatrix(vertices, faces.astype(np.int64)).tocoo()
  off = laplacian.row != laplacian.col
  weights = np.maximum(laplacian.data[off], _LEAST_COTANGENT)
  apart = part[laplacian.row[off]] != part[laplacian.col[off]]
  weights = weights * np.where(apart, _BETWEEN_PARTS, 1.0)
  adjacency = sparse.csr_matrix(
    (weights, (laplacian.row[off], laplacian.col[off])), laplacian.shape
  )
  stiffness = sparse.diags(np.asarray(adjacency.sum(1)).ravel()) - adjacency
  tie = np.where(known, tie, 1e-6)
  mean = seen.colours[known].mean(0)
  colours = np.where(known[:, None], seen.colours, mean)
  wanted = tie[:, None] * colours
  if patches is not None:
    inside = sparse.diags(patches.astype(float))
    kept = inside @ adjacency @ inside
    degree = np.asarray(kept.sum(1)).ravel()
    wanted += degree[:, None] * colours - kept @ colours
  solver = linalg.splu(
    (stiffness + sparse.diags(tie)).tocsc(), permc_spec="MMD_AT_PLUS_A"
  )
  return solver.solve(wanted)


def _by_part(
  seen: texture_baking.Observed, known: np.ndarray, skin_weights: np.ndarray
) -> np.ndarray:
  shares = skin_weights * (known * seen.weights)[:, None]
  total = shares.sum(0)
  means = (shares.T @ seen.colours) / np.maximum(total, 1e-9)[:, None]
  # A completely unseen part gets the mean colour of the object.
  whole = np.average(seen.colours[known], axis=0, weights=seen.weights[known])
  means[total < 1e-6] = whole
  return skin_weights @ means


def _along_surface(
  vertices: np.ndarray,
  faces: np.ndarray,
  seen: texture_baking.Observed,
  known: np.ndarray,
  skin_weights: np.ndarray,
) -> np.ndarray:
  """The colour of the nearest seen vertex by Dijkstra from all of them."""
  part = skin_weights.argmax(1)
  edges = _edges(faces)
  length = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1)
  length = length * np.where(
    part[edges[:, 0]] != part[edges[:, 1]], _OTHER_PART, 1.0
  )
  count = len(vertices)
  graph = sparse.csr_matrix(
    (np.maximum(length, 1e-12), edges.T), (count, count)
  )
  distance, _, source = csgraph.dijkstra(
    graph,
    directed=False,
    indices=np.flatnonzero(known),
    min_only=True,
    return_predecessors=True,
  )
  reached = np.isfinite(distance)
  mean = seen.colours[known].mean(0)
  return np.where(reached[:, None], seen.colours[source * reached], mean)


def _soften(
  colours: np.ndarray, faces: np.ndarray, known: np.ndarray
) -> np.ndarray:
  """Averages filled vertices with their neighbours; seen ones stay."""
  edges = _edges(faces)
  count = len(colours)
  adjacency = sparse.csr_matrix((np.ones(len(edges)), edges.T), (count, count))
  adjacency = adjacency + adjacency.T
  degree = np.maximum(np.asarray(adjacency.sum(1)), 1)
  for _ in range(_BLUR):
    mean = (colours + (adjacency @ colours) / degree) / 2
    colours = np.where(known[:, None], colours, mean)
  return colours


def _edges(faces: np.ndarray) -> np.ndarray:
  """Edges, each once, [E, 2]."""
  edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
  return np.unique(np.sort(edges, axis=1), axis=0)
