"""Reads the TPU compiler's final schedule and turns it into time.

libtpu writes, for every kernel, its instruction bundles in the order in which
they are issued, one a cycle unless a memory access is waited for. Blocks of
bundles that use the matrix units stand there in the order in which the kernel's
source makes them, so that each can be given the number of times it is executed,
known from the lists of work.

The time is an estimate that leaves out stalls on memory. A block is counted
with at least the cycles that its products take at the chip's peak, for the
bundles alone can come out a few per cent faster than that. All other bundles of
a loop are counted once an iteration, though some of them are jumped over.
"""

import dataclasses
import pathlib
import re
from typing import NamedTuple

import numpy as np

from . import tpu_lists

_BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(LH|LB|LE|PB|PF|CT)?\s*:\s*(>*)")
_IS_JUMP = re.compile(r"= sbr\.")


@dataclasses.dataclass(frozen=True)
class Peak:
  """A core of a chip: FLOPs a cycle in bfloat16, and cycles a second."""

  flops_per_cycle: int
  clock: float


# From the published peak: 197, 459 and 918 TFLOP/s; v5p has two cores, which
# take half of the heads each.
PEAKS = {
    "v5e": Peak(4 * 2 * 128 * 128, 1.503e9),
    "v5p": Peak(2 * 4 * 2 * 128 * 128, 1.751e9),
    "v6e": Peak(4 * 2 * 256 * 256, 1.751e9),
}


class Block(NamedTuple):
  """Bundles between two places where control may change."""

  start: int
  length: int
  depth: int  # Of loops around it.
  loop: int  # Number of the innermost loop's header, 0 outside.
  num_products: int  # Instructions that use the matrix units.


class Use(NamedTuple):
  """One block of the source that uses the matrix units."""

  products: int  # Products of two pieces.
  times: int  # Executions in all, for one head.


def read_blocks(text: str) -> list[Block]:
  """The blocks of a `final_bundles` listing."""
  bundles = []  # (address, depth, is_header, is_cut, products)
  for line in text.splitlines():
    match = _BUNDLE.match(line)
    if match:
      address, label, depth = match.groups()
      cut = bool(label) or "Start region" in line
      bundles.append([int(address, 16), len(depth), label == "LB", cut, 0, 0])
    if bundles:
      bundles[-1][4] += len(re.findall(r"= vmatmul", line))
      bundles[-1][5] |= bool(_IS_JUMP.search(line))
  blocks, loop, first = [], 0, 0
  for index, (address, depth, is_header, is_cut, _, _) in enumerate(bundles):
    after_jump = index > 0 and bundles[index - 1][5]
    if index > first and (is_cut or after_jump):
      blocks.append(_block(bundles[first:index], loop))
      first = index
    if is_header:
      loop = address
  blocks.append(_block(bundles[first:], loop))
  return blocks


def _block(bundles, loop):
  start, depth = bundles[0][:2]
  products = sum(bundle[4] for bundle in bundles)
  return Block(start, len(bundles), depth, loop, products)
