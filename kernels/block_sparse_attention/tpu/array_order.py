"""Order of heads and frames in the arrays of the TPU kernels.

A clip whose frames come from several devices arrives with its frames outermost,
as every device sends some of them; else heads are outermost. The kernels copy
pieces, [tokens, K], and take either.

    heads first     [heads, frames, segments, tokens, K]
    frames first    [frames, heads, segments, tokens, K]
"""

from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl

from ..pallas_types import Index
from ..pallas_types import Ref


class ArrayOrder(NamedTuple):
  """Which of the first two axes of an array are heads.

  Attributes:
    frames_first: Whether frames come before heads.
  """

  frames_first: bool

  def sizes(self, array: jax.Array) -> tuple[int, int]:
    """Numbers of heads and frames."""
    first, second = array.shape[:2]
    return (second, first) if self.frames_first else (first, second)

  def shape(self, heads: int, frames: int, *rest: int) -> tuple[int, ...]:
    """The shape of an array."""
    return (*self._swapped(heads, frames), *rest)

  def piece(self, array: Ref, head: Index, frame: Index, segment: Index) -> Ref:
    """A piece of an array, or a slice of pieces."""
    return array.at[(*self._swapped(head, frame), segment)]

  def block(self, frames: int, segments: int, *rest: int) -> pl.BlockSpec:
    """Blocks of some frames and segments of a head, by a grid of these three."""

    def index(head: Index, frame: Index, segment: Index) -> tuple[Index, ...]:
      return (*self._swapped(head, frame), segment, *(0,) * len(rest))

    return pl.BlockSpec((*self._swapped(None, frames), segments, *rest), index)

  def _swapped(self, head: Any, frame: Any) -> tuple[Any, Any]:
    return (frame, head) if self.frames_first else (head, frame)


HEADS_FIRST = ArrayOrder(False)
FRAMES_FIRST = ArrayOrder(True)
