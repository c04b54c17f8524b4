"""Estimates the time of a kernel from the TPU compiler's final schedule.

libtpu writes the instruction bundles of every kernel in the order in which they
are issued, one per cycle except for memory stalls. Blocks of bundles that use
the matrix units are in the order of the kernel's source, so each can be
assigned its number of executions, which is known from the lists of work.

The estimate excludes memory stalls. A block is counted with at least the cycles
of its products at the chip's peak, because its bundles alone can be a few per
cent faster. All other bundles of a loop are counted once per iteration,
although some are skipped.
"""

import dataclasses
import pathlib
import re
from typing import NamedTuple

import numpy as np

from .. import errors
from ..tpu import lists as tpu_lists
from ..tpu import pair_lists

_BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(LH|LB|LE|PB|PF|CT)?\s*:\s*(>*)")
_JUMP = re.compile(r"= sbr\.")
_PRODUCT = re.compile(r"= vmatmul")


@dataclasses.dataclass(frozen=True)
class Peak:
  """The matrix units of a core, in bfloat16."""

  flops_per_cycle: int
  clock: float  # Cycles a second.
  cores: int  # Per chip; heads are divided among them.


# Clocks are derived from the published 197, 459 and 918 TFLOP/s of a chip.
PEAKS = {
  "v5e": Peak(131072, 197e12 / 131072, 1),
  "v5p": Peak(131072, 459e12 / 131072 / 2, 2),
  "v6e": Peak(524288, 918e12 / 524288, 1),
}


class Block(NamedTuple):
  """Bundles between two possible changes of control flow."""

  start: int
  length: int
  loops: tuple[int, ...]  # Headers of the loops around it, outermost first.
  num_products: int  # Instructions that use the matrix units.


class Use(NamedTuple):
  """One block of a kernel's source that uses the matrix units."""

  products: int  # Products of two pieces.
  times: int  # Executions, over all tiles of a head.
  rounds: int  # Iterations of the loop around it; 0 outside.


def read_blocks(text: str) -> list[Block]:
  """The blocks of a `final_bundles` listing."""
  blocks, headers, bundles = [], {}, []

  def close():
    if bundles:
      depth = max(depth for _, depth, _ in bundles)
      loops = tuple(headers[d] for d in range(1, depth + 1))
      products = sum(products for *_, products in bundles)
      blocks.append(Block(bundles[0][0], len(bundles), loops, products))
      bundles.clear()

  after_jump = False
  for line in text.splitlines():
    match = _BUNDLE.match(line)
    if match:
      address, label, depth = int(match[1], 16), match[2], len(match[3])
      if label or after_jump or "Start region" in line:
        close()
      after_jump = False
      if label == "LB":
        headers[depth] = address
      bundles.append((address, depth, len(_PRODUCT.findall(line))))
    elif bundles:  # A bundle may be listed on several lines.
      address, depth, products = bundles[-1]
      bundles[-1] = (address, depth, products + len(_PRODUCT.findall(line)))
    after_jump |= bool(_JUMP.search(line))
  close()
  return blocks


def forward_uses(work: pair_lists.PairList) -> list[Use]:
  """Blocks of the forward kernel, in the order of its source."""
  return _pipeline_uses(work.group, work.pair_items()) + _pipeline_uses(
    work.num_rows * work.stream, work.full_items()
  )


def _pipeline_uses(pairs: int, counts: np.ndarray) -> list[Use]:
  """Blocks for items of one form, of which a tile has so many."""
  uses = []
  if (counts == 1).any():
    uses.append(Use(2 * pairs, int((counts == 1).sum()), 0))
  counts = counts[counts > 1]
  if counts.size:
    rounds = int((counts // 2).sum())
    uses += [
      Use(pairs, counts.size, 0),
      Use(2 * pairs, rounds, rounds),
      Use(2 * pairs, int((counts - 1).sum()) - rounds, rounds),
      Use(pairs, int((counts % 2 == 1).sum()), 0),
      Use(pairs, int((counts % 2 == 0).sum()), 0),
    ]
  return uses


def backward_uses(work: tpu_lists.WorkList) -> list[Use]:
  """Blocks of the backward kernel, in the order of its source."""
  uses = []
  for index, size in enumerate(work.sizes):
    uses += _rest_uses(work, index, 5 * size)
    full = int(work.full_items(index).sum())
    if full:
      uses.append(Use(5 * size * work.stream, full, full))
  return uses


def _rest_uses(
  work: tpu_lists.WorkList, index: int, products: int
) -> list[Use]:
  counts = work.rest_counts(index)
  powers = [1 << bit for bit in reversed(range((work.stream - 1).bit_length()))]
  return [
    Use(products * n, int((counts & n != 0).sum()), len(counts))
    for n in powers
    if len(counts)
  ]


def cycles(
  blocks: list[Block],
  uses: list[Use],
  num_tiles: int,
  singles_per_item: float,
  product_cycles: float,
) -> float:
  """Cycles of a kernel for one head.

  Args:
    blocks: Blocks returned by `read_blocks`.
    uses: The blocks that use the matrix units.
    num_tiles: Iterations of the outermost loop.
    singles_per_item: Iterations of loops within those of items: copies of
      single pieces.
    product_cycles: Cycles of a product of two pieces at peak.

  Raises:
    ValueError: The listing does not have the blocks of the kernel's source.
  """
  with_products = [block for block in blocks if block.num_products]
  if len(with_products) != len(uses):
    raise errors.RequestError(
      f"the schedule has {len(with_products)} blocks of bundles that use the"
      f" matrix units, and the kernel's source {len(uses)}; this version of"
      " libtpu arranges code in a way that is not known here"
    )
  total, rounds = 0.0, {}
  for block, use in zip(with_products, uses):
    total += use.times * max(block.length, use.products * product_cycles)
    if use.rounds:
      rounds[block.loops[:2]] = use.rounds
  for block in blocks:
    if block.num_products:
      continue
    times = 1.0
    if block.loops:
      times = float(num_tiles)
    if block.loops[:2] in rounds:
      times = rounds[block.loops[:2]]
      if len(block.loops) > 2:
        times *= singles_per_item
    total += times * block.length
  return total


def find_listing(folder: pathlib.Path, kernel: str) -> str:
  """The newest listing of a kernel's final bundles.

  Raises:
    FileNotFoundError: libtpu has written none.
  """
  listings = [
    path
    for path in folder.glob(f"*{kernel}*final_bundles.txt")
    if "schedule-analysis" not in path.name
  ]
  if not listings:
    raise FileNotFoundError(
      f"libtpu has written no final bundles of {kernel} to {folder};"
      " LIBTPU_INIT_ARGS must be set before libtpu is loaded"
    )
  return max(listings, key=lambda path: path.stat().st_mtime).read_text()
