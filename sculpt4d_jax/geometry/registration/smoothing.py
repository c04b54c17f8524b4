"""Temporal smoothing that preserves motion and shape.

Matching does not determine the position along the surface, so vertices slide on
it from frame to frame: this is the jitter. Along the normal the target
determines the position, so only the tangential part is smoothed. The filter
keeps cubic motions exactly (Savitzky-Golay), unlike an average, which would
pull a swinging limb inwards.

Source: Savitzky and Golay, Smoothing and Differentiation of Data by Simplified
Least Squares Procedures, 1964.
"""

import numpy as np
from scipy import signal

from sculpt4d_jax.errors import UserError

_DEGREE = 3


def smooth(
  vertices: np.ndarray, normals: np.ndarray, window: int
) -> np.ndarray:
  """Smooths the tangential motion of vertices.

  Args:
    vertices: Positions [F, V, 3].
    normals: Unit normals [F, V, 3].
    window: Frames in the filter's window, odd and at least 5; with fewer frames
      nothing is changed.

  Returns:
    Positions [F, V, 3].
  """
  if window % 2 == 0 or window < _DEGREE + 2:
    raise UserError(
      f"window={window} must be odd and at least {_DEGREE + 2}, or nothing is"
      " smoothed."
    )
  if len(vertices) < window:
    return vertices
  smoothed = signal.savgol_filter(vertices, window, _DEGREE, axis=0)
  change = smoothed - vertices
  along = np.einsum("fvx,fvx->fv", change, normals)
  return vertices + change - along[..., None] * normals
