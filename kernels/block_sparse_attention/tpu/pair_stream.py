"""Inside the forward kernel: fetching the pieces of items ahead of their use."""

from collections.abc import Sequence

import jax
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from ..pallas_types import Index
from ..pallas_types import Ref
from . import array_order
from . import pair_lists


class PairStream:
  """The items of one tile, whose pieces are copied to fast memory in time.

  Items are numbered from 0 within a tile. Copies run `buffers` - 1 items ahead,
  across the tiles of a head. A kernel takes the items in order; for each it
  calls `wait` before its pieces are used and `fetch_ahead` once the item before
  it is done with; see `stream.ItemStream` for the order of slots.

  Every item has the same number of copies, of one piece each: without branches
  the compiler schedules them among the products.
  """

  def __init__(
    self,
    words: Ref,
    head: jax.Array,
    sources: Sequence[tuple[Ref, Ref]],
    semaphores: Ref,
    work: pair_lists.PairList,
    buffers: int,
    order: array_order.ArrayOrder,
  ):
    """Binds the references.

    Args:
      words: The words of the tile, [1, words] int32 in scalar memory.
      head: Index of the head.
      sources: Arrays [heads, frames, segments, ...] in their order, and the
        buffers [buffers, stream, ...] which they are copied to.
      semaphores: DMA semaphores [buffers].
      work: The list that `words` belong to.
      buffers: Items in flight or in use.
      order: Order of the arrays' axes.
    """
    self._words = words
    self._head = head
    self._sources = sources
    self._semaphores = semaphores
    self._work = work
    self._buffers = buffers
    self._order = order

  def begin(self) -> None:
    """Starts the copies of the first items of a head."""
    # One buffer stays free, which `fetch_ahead` fills during the first item.
    for item in range(self._buffers - 1):
      self._start(item)

  def end(self) -> None:
    """Waits for the copies that ran ahead of the last item of a head."""
    num_items = self._words[0, 1] + self._words[0, 2]
    for index in range(self._buffers - 1):
      self.wait(num_items + index)

  def fetch_ahead(self, item: Index) -> None:
    """Starts the copies of the item that comes `buffers` - 1 items later."""
    # It takes the buffer of `item` - 1, which is no longer needed.
    self._start(item + self._buffers - 1)

  def wait(self, item: Index) -> None:
    """Waits until all pieces of an item are in its buffer."""
    slot = self.slot(item)
    for _, buffer in self._sources:
      # Waits for the bytes of all copies to this buffer.
      pltpu.make_async_copy(
        buffer.at[slot], buffer.at[slot], self._semaphores.at[slot]
      ).wait()

  def slot(self, item: Index) -> jax.Array:
    """The buffer of an item."""
    # Copies of the next tile are in flight when a tile begins, so slots must
    # not start again from 0.
    return lax.rem(self._words[0, 0] + item, self._buffers)

  def pair(self, item: Index, index: int) -> tuple[Index, Index, jax.Array]:
    """Row, piece, and whether a pair of a pair item repeats another one."""
    word = self._words[0, self._address(item) + self._work.stream + index]
    return word & 255, (word >> 8) & 255, word >= pair_lists.FILL

  def counts(self) -> tuple[jax.Array, jax.Array]:
    """Numbers of pair items and of full items."""
    return self._words[0, 1], self._words[0, 2]

  def _address(self, item: Index) -> Index:
    return pair_lists.HEADER_WORDS + item * self._work.item_words

  def _start(self, item: Index) -> None:
    slot, address = self.slot(item), self._address(item)
    for index in range(self._work.stream):
      place = self._words[0, address + index]
      frame, segment = place >> 16, place & 0xFFFF
      for array, buffer in self._sources:
        pltpu.make_async_copy(
          self._order.piece(array, self._head, frame, segment),
          buffer.at[slot, index],
          self._semaphores.at[slot],
        ).start()
