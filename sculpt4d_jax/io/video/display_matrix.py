"""Rotations and reflections that a container requests from a player.

A display matrix (a, b, u, c, d, v, x, y, w) maps a stored pixel (p, q), with q
downwards, to (a p + c q + x, b p + d q + y) on the screen; x and y only move
the picture back into view. Cameras write the four rotations by multiples of 90
degrees; editors and front cameras also their mirror images. Other matrices are
rounded to the nearest of these eight.

Source: ISO/IEC 14496-12, 6.2.2 (matrices of `tkhd`).
"""

import numpy as np

UPRIGHT = (1, 0, 0, 1)


def read(content: bytes) -> tuple[int, int, int, int]:
  """The signs (a, b, c, d) of FFmpeg's side data, nine native int32.

  Returns:
    Two of the four are 0, the others 1 or -1; `UPRIGHT` for a singular matrix,
    which occurs in damaged files.
  """
  if len(content) < 36:
    return UPRIGHT
  values = np.frombuffer(content, np.int32, count=9).astype(np.float64)
  a, b, c, d = values[[0, 1, 3, 4]]
  if a * d == b * c:
    return UPRIGHT
  if abs(a * d) >= abs(b * c):
    return (int(np.sign(a)), 0, 0, int(np.sign(d)))
  return (0, int(np.sign(b)), int(np.sign(c)), 0)


def apply(picture: np.ndarray, signs: tuple[int, int, int, int]) -> np.ndarray:
  """A picture [height, width, channels] turned upright."""
  a, b, c, d = signs
  across, down = (a, d) if a else (c, b)
  if not a:
    picture = picture.swapaxes(0, 1)
  return np.ascontiguousarray(picture[::down, ::across])
