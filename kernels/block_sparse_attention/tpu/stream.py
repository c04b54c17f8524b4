"""Inside the TPU kernels: fetching the pieces of items ahead of their use."""

from collections.abc import Callable, Sequence

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from ..pallas_types import Copy
from ..pallas_types import Index
from ..pallas_types import Ref
from . import array_order
from . import lists as tpu_lists

# Size of the row sets; first item and number of items, rest and full.
_Section = tuple[int, Index, jax.Array, Index, jax.Array]


class ItemStream:
  """The items of one tile, whose pieces are copied to fast memory in time.

  Items are numbered from 0 within a tile. Copies run `buffers` - 1 items ahead,
  across the tiles of a head. A kernel takes the items in order; for each it
  calls `wait` before its pieces are used and `fetch_ahead` once the item before
  it is done with. An item has the slot of its number modulo `buffers`; with
  three of them:

      item in use      0         1         2         3
      its slot        [0]       [1]       [2]       [0]
      in flight     1 -> [1]  2 -> [2]  3 -> [0]  4 -> [1]
      started       2 -> [2]  3 -> [0]  4 -> [1]  5 -> [2]
  """

  def __init__(
    self,
    words: Ref,
    head: jax.Array,
    sources: Sequence[tuple[Ref, Ref]],
    semaphores: Ref,
    work: tpu_lists.WorkList,
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

  @property
  def size(self) -> int:
    """Pieces of a full item."""
    return self._work.stream

  def begin(self) -> None:
    """Starts the copies of the first items of a head."""
    # One buffer stays free, which `fetch_ahead` fills during the first item.
    for item in range(self._buffers - 1):
      self._start(item)

  def end(self) -> None:
    """Waits for the copies that ran ahead of the last item of a head."""
    # The items after the last tile of a head are empty, so nothing is in
    # flight; this only pairs every start with its wait.
    num_items = sum(
      self._words[0, 1 + index] for index in range(2 * len(self._work.sizes))
    )
    for index in range(self._buffers - 1):
      self.wait(num_items + index)

  def fetch_ahead(self, item: Index) -> None:
    """Starts the copies of the item that comes `buffers` - 1 items later."""
    # It takes the buffer of `item` - 1, which is no longer needed.
    self._start(item + self._buffers - 1)

  def wait_full(self, item: Index) -> None:
    """As `wait`, for an item that is known to be full."""
    slot = self.slot(item)
    for _, buffer in self._sources:
      # Waits for the bytes of all copies to this buffer.
      pltpu.make_async_copy(
        buffer.at[slot], buffer.at[slot], self._semaphores.at[slot]
      ).wait()

  def wait(self, item: Index) -> None:
    """Waits until all pieces of an item are in its buffer."""
    slot, count = self.slot(item), self.count(item)
    is_full = count == self.size
    pl.when(is_full)(lambda: self.wait_full(item))

    @pl.when(jnp.logical_not(is_full))
    def _() -> None:
      # A semaphore counts bytes: waiting piece by piece also covers runs, and
      # the source address (item 0) does not matter.
      def wait(index: jax.Array, _: jax.Array) -> int:
        for array, buffer in self._sources:
          self._copy(array, buffer, slot, index, 0).wait()
        return 0

      lax.fori_loop(0, count, wait, 0)

  def number(self, item: Index) -> jax.Array:
    """Number of an item among those of all tiles."""
    # Copies of the next tile are in flight when a tile begins, so slots must
    # not start again from 0.
    return self._words[0, 0] + item

  def slot(self, item: Index) -> jax.Array:
    """The buffer of an item."""
    return lax.rem(self.number(item), self._buffers)

  def count(self, item: Index) -> jax.Array:
    """Number of pieces of an item."""
    return self._words[0, self._address(item)] & 255

  def rows(self, item: Index, size: int) -> list[Index]:
    """Pieces of the tile that see an item."""
    # Known at trace time where all rows see the item: addresses are then
    # static.
    if size == self._work.sizes[0]:
      return list(range(size))
    # Row indices of 4 bits each.
    packed = self._words[0, self._address(item) + 1]
    return [(packed >> 4 * index) & 15 for index in range(size)]

  def sections(self) -> list[_Section]:
    """For every size of row set: first item and number, of both kinds."""
    sections, first = [], 0
    for index, size in enumerate(self._work.sizes):
      num_rest = self._words[0, 1 + 2 * index]
      num_full = self._words[0, 2 + 2 * index]
      sections.append((size, first, num_rest, first + num_rest, num_full))
      first = first + num_rest + num_full
    return sections

  def _address(self, item: Index) -> Index:
    start = tpu_lists.header_words(self._work.sizes)
    return start + item * (2 + self._work.stream)

  def _start(self, item: Index) -> None:
    slot = self.slot(item)

    def start(index: Index, is_run: bool) -> None:
      for array, buffer in self._sources:
        self._copy(array, buffer, slot, index, item, is_run).start()

    self.for_copies(item, start)

  def for_copies(
    self,
    item: Index,
    copy: Callable[[Index, bool], None],
  ) -> None:
    """Calls copy(index of a piece, whether a run starts there)."""
    num_runs = self._words[0, self._address(item)] >> 8
    # Unrolled, so that a run's place in the buffer is static; single pieces are
    # fewer and take a loop.
    for index in range(self.size // self._work.run):

      @pl.when(index < num_runs)
      def _(index: int = index) -> None:
        copy(index * self._work.run, True)

    def single(index: jax.Array, _: jax.Array) -> int:
      copy(index, False)
      return 0

    lax.fori_loop(num_runs * self._work.run, self.count(item), single, 0)

  def of_array(
    self,
    array: Ref,
    item: Index,
    index: Index,
    is_run: bool,
  ) -> Ref:
    """The piece of an array, or run of pieces, that an item lists."""
    # frame << 16 | segment; see `WorkList`.
    place = self._words[0, self._address(item) + 2 + index]
    # A run is a slice of one axis, which one DMA copies.
    frame, segment = place >> 16, place & 0xFFFF
    if is_run and self._work.along_frames:
      frame = pl.ds(frame, self._work.run)
    elif is_run:
      segment = pl.ds(segment, self._work.run)
    return self._order.piece(array, self._head, frame, segment)

  def of_buffer(
    self,
    buffer: Ref,
    slot: Index,
    index: Index,
    is_run: bool,
  ) -> Ref:
    """The place in a buffer of a piece of an item, or of a run of pieces."""
    if is_run:
      index = pl.ds(index, self._work.run)
    return buffer.at[slot, index]

  def _copy(
    self,
    array: Ref,
    buffer: Ref,
    slot: Index,
    index: Index,
    item: Index,
    is_run: bool = False,
  ) -> Copy:
    return pltpu.make_async_copy(
      self.of_array(array, item, index, is_run),
      self.of_buffer(buffer, slot, index, is_run),
      self._semaphores.at[slot],
    )


def for_rest(
  stream: ItemStream,
  first: Index,
  number: jax.Array,
  run: Callable[[jax.Array, jax.Array, int], None],
  begin: Callable[[jax.Array], None] = lambda item: None,
  end: Callable[[jax.Array], None] = lambda item: None,
) -> None:
  """Runs items that are not full: run(item, first piece, number of pieces).

  The number of pieces is static, a power of two, so that run can be unrolled.
  `begin` and `end` are called with every item, before and after its pieces.
  """

  def step(index: jax.Array, _: jax.Array) -> int:
    item = first + index
    begin(item)
    stream.wait(item)
    stream.fetch_ahead(item)
    count = stream.count(item)
    # By the bits of the count, highest first: 5 pieces run as 0..3, then 4. A
    # rest item has fewer pieces than a full one.
    size = 1 << ((stream.size - 1).bit_length() - 1)
    while size:
      start = count & ~(2 * size - 1)

      @pl.when((count & size) != 0)
      def _(start: jax.Array = start, size: int = size) -> None:
        run(item, start, size)

      size //= 2
    end(item)
    return 0

  lax.fori_loop(0, number, step, 0)
