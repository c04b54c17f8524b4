"""Schedules of temporal attention and what each costs."""

from collections.abc import Iterator
import dataclasses
import itertools

from benchmarks.schedules import coverage
from sculpt4d_jax.evaluation import cost
from sculpt4d_jax.kernels import block_sparse_attention as bsa

_LENGTH = 6


@dataclasses.dataclass(frozen=True)
class Entry:
  """A schedule and its cost.

  Attributes:
    schedule: Strides by the distance of frames.
    anchors: Anchor frames.
    density: Share of block pairs that see each other.
    operations: Operations of one call of the network.
    reach: Evenness of two layers' weights.
  """

  schedule: tuple[int, ...]
  anchors: tuple[int, ...]
  density: float
  operations: int
  reach: float

  @property
  def name(self) -> str:
    """Strides by distance, and whether there is an anchor."""
    strides = "-".join(map(str, self.schedule))
    return f"{strides}{'+anchor' if self.anchors else ''}"

  def dominates(self, other: "Entry") -> bool:
    """Whether it is at least as sparse and as even, and better in one."""
    pairs = ((other.density, self.density), (self.reach, other.reach))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def enumerate_schedules(
  blocks: int, length: int = _LENGTH
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
  """Non-decreasing strides of powers of two, with and without anchor."""
  strides = [1 << k for k in range(blocks.bit_length()) if 1 << k <= blocks]
  for anchors in ((0,), ()):
    for schedule in itertools.combinations_with_replacement(strides, length):
      yield schedule, anchors


def price(
  sizes: cost.Sizes,
  schedule: tuple[int, ...],
  anchors: tuple[int, ...],
  num_frames: int,
) -> Entry:
  """Density, operations and reach of a schedule."""
  blocks = sizes.vae.num_latents // sizes.dit.temporal_block_size
  mask = bsa.BlockMask(num_frames, blocks, schedule, anchors)
  dit = dataclasses.replace(
    sizes.dit, temporal_schedule=schedule, temporal_anchor_frames=anchors
  )
  counts = dataclasses.replace(sizes, dit=dit).call(num_frames, "sparse")
  return Entry(
    schedule,
    anchors,
    mask.density(),
    sum(counts.values()),
    coverage.reach(mask),
  )
