"""Warps the lookup of colours so that it stays on the object.

Where a mesh extends beyond the object's mask, its texels would take the
background's colour. Pixels on the silhouette's outline outside of the mask use
the nearest pixel inside instead. The offsets are interpolated harmonically
inside the silhouette, so that the picture is compressed smoothly instead of
torn.
"""

import numpy as np
from scipy import ndimage
from scipy import sparse
from scipy.sparse import linalg

_SIDE = 128  # Grid on which offsets are interpolated.
_LONGEST = 0.12  # Largest offset, as a share of the picture's side.
_INSET = 2  # Pixels; at its rim, a mask is mixed with the background.


def outline_offsets(silhouette: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Offsets of the colour lookup for pixels of a silhouette.

  Args:
    silhouette: Pixels that see the mesh, bool [h, w].
    mask: Pixels of the object, bool [h, w].

  Returns:
    Offsets (x, y) in pixels, float32 [h, w, 2]; 0 outside of the silhouette.
  """
  height, width = mask.shape
  step = max(1, round(max(height, width) / _SIDE))
  small = silhouette[step // 2 :: step, step // 2 :: step]
  offsets = _towards_mask(mask)[step // 2 :: step, step // 2 :: step]
  inside = ndimage.binary_erosion(small)
  offsets = np.where((small & ~inside)[..., None], offsets, 0.0)
  if offsets.any():
    offsets = _harmonic(offsets, small, inside)
  rows = (np.arange(height) - step // 2) / step
  columns = (np.arange(width) - step // 2) / step
  places = np.meshgrid(rows, columns, indexing="ij")
  full = np.stack(
    [
      ndimage.map_coordinates(
        offsets[..., axis], places, order=1, mode="nearest"
      )
      for axis in range(2)
    ],
    axis=-1,
  )
  return np.where(silhouette[..., None], full, 0).astype(np.float32)


def _towards_mask(mask: np.ndarray) -> np.ndarray:
  """The offset (x, y) to the nearest pixel well inside of the mask."""
  core = ndimage.binary_erosion(mask, iterations=_INSET)
  if not core.any():
    return np.zeros((*mask.shape, 2))
  distance, nearest = ndimage.distance_transform_edt(~core, return_indices=True)
  rows, columns = np.indices(mask.shape)
  offsets = np.stack([nearest[1] - columns, nearest[0] - rows], -1).astype(
    float
  )
  return np.where(
    (distance <= _LONGEST * max(mask.shape))[..., None], offsets, 0.0
  )


def _harmonic(
  offsets: np.ndarray, silhouette: np.ndarray, inside: np.ndarray
) -> np.ndarray:
  """Offsets of the outline, interpolated smoothly into the silhouette."""
  number = np.full(silhouette.shape, -1)
  number[silhouette] = np.arange(np.count_nonzero(silhouette))
  rows, columns = np.nonzero(inside)
  own = number[inside]
  entries = [(own, own, np.full(len(own), 4.0))]
  for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
    # Inside pixels have all four neighbours in the silhouette.
    other = number[rows + down, columns + right]
    entries.append((own, other, np.full(len(own), -1.0)))
  rim = number[silhouette & ~inside]
  entries.append((rim, rim, np.ones(len(rim))))
  row, column, value = (np.concatenate(parts) for parts in zip(*entries))
  count = np.count_nonzero(silhouette)
  matrix = sparse.csc_matrix((value, (row, column)), (count, count))
  known = np.where(inside[..., None], 0.0, offsets)[silhouette]
  result = np.zeros_like(offsets)
  result[silhouette] = linalg.splu(matrix).solve(known)
  return result
