"""Tile sizes of the TPU backend, with defaults by generation of the chip."""

import dataclasses
import math
from typing import Any, Literal

import jax.numpy as jnp

from .. import errors

# Width of a vector register, and of a matrix unit before v6e: shorter rows are
# padded in fast memory anyway.
LANES = 128

Chip = Literal["v5e", "v5p", "v6e", "unknown"]

# What jax calls these kinds of devices; releases of the runtime differ.
_CHIPS: dict[str, Chip] = {
  "TPU v5 lite": "v5e",
  "TPU v5e": "v5e",
  "TPU v5": "v5p",
  "TPU v5p": "v5p",
  "TPU v6 lite": "v6e",
  "TPU v6e": "v6e",
}


@dataclasses.dataclass(frozen=True)
class JointPass:
  """One forward pass over all pairs, in items of one form.

  A tile of several frames with all their segments sees most pieces in many of
  its rows, so that items with a large number of pairs fill up.

  Attributes:
    tile: Frames and segments of a tile, at most 256 pieces.
    stream: Number of pieces of an item.
    group: Number of pairs of an item.
  """

  tile: tuple[int, int]
  stream: int
  group: int

  def __post_init__(self):
    if len(self.tile) != 2 or min(self.tile) < 1 or math.prod(self.tile) > 256:
      raise errors.RequestError(
        "tile must be (frames, segments) of at most 256 pieces in all, got"
        f" {self.tile}."
      )
    if self.stream < 1 or self.group < 1:
      raise errors.RequestError(
        "stream and group must be positive, got"
        f" {self.stream} and {self.group}."
      )


@dataclasses.dataclass(frozen=True)
class TileSizes:
  """How the TPU kernels cut their work; see `tpu/lists.py` for the words.

  A piece is a run of tokens of one frame that see the same keys. A kernel keeps
  a tile of pieces, `frames` by `segments`, in fast memory and streams the
  pieces which that tile sees past it, several at a time.

  Attributes:
    piece_tokens: Largest number of tokens of a piece.
    near: Frames and segments of a tile where pieces see runs of pieces.
    far: Frames and segments of a tile where a piece sees only the one piece of
      its own kind in another frame. None joins these pairs to the others.
    forward_near: Replaces `near` in the forward kernel, which has room for
      more; None takes `near`.
    forward_far: Replaces `far` in the forward kernel; None takes `far`.
    joint: A single forward pass in place of those over near and far pairs where
      it suits the mask (`pair_lists.for_tiles`), for chips with enough fast
      memory.
    stream: Number of pieces that are streamed at once.
    groups: Pairs of pieces that the forward kernel computes at once where only
      some pieces of a tile see a streamed one, for the near and the far pass.
    buffers: Number of sets of streamed pieces, at least 3: two in use, one in
      flight.
    lanes: Multiple of tokens to which pieces are padded: 128 on a device, 1 is
      enough for the interpreter.
    memory_mib: Fast memory (VMEM) that a kernel may use, MiB.
    spare_vector_units: Whether the matrix units sum the weights of the softmax
      in the forward pass, by rows of ones below the values: for chips on which
      the vector units are the bottleneck. The sum is then of the bfloat16
      weights; float32 inputs are still summed on the vector units.
  """

  piece_tokens: int = 256
  near: tuple[int, int] = (1, 4)
  far: tuple[int, int] | None = (4, 1)
  forward_near: tuple[int, int] | None = None
  forward_far: tuple[int, int] | None = None
  joint: JointPass | None = None
  stream: int = 8
  groups: tuple[int, int] = (8, 16)
  buffers: int = 3
  lanes: int = LANES
  memory_mib: int = 14
  spare_vector_units: bool = False

  def __post_init__(self):
    for name in ("piece_tokens", "stream", "buffers", "lanes", "memory_mib"):
      value = getattr(self, name)
      if value != int(value) or value < 1:
        raise errors.RequestError(
          f"{name} must be a positive whole number, got {value}."
        )
    if len(self.groups) != 2 or min(self.groups) < 1:
      raise errors.RequestError(
        "groups must be two positive numbers of pairs, for the near and the far"
        f" pass, got {self.groups}."
      )
    # Scores of a piece are a whole number of registers.
    if self.piece_tokens % self.lanes:
      raise errors.RequestError(
        f"piece_tokens={self.piece_tokens} must be a multiple of"
        f" lanes={self.lanes}."
      )
    if self.buffers < 3:
      raise errors.RequestError(
        "buffers must be at least 3, two in use and one in flight, got"
        f" {self.buffers}."
      )
    for name in ("near", "far", "forward_near", "forward_far"):
      tile = getattr(self, name)
      if tile is None and name != "near":
        continue
      # Backward tiles also hold two sums in float32 for every piece, and words
      # have room for 8 of their rows (`WorkList`).
      most = 16 if name.startswith("forward") else 8
      if len(tile) != 2 or min(tile) < 1 or tile[0] * tile[1] > most:
        raise errors.RequestError(
          f"{name} must be (frames, segments) of at most {most} pieces in"
          f" all, got {tile}."
        )
    if self.far is None and self.forward_far is not None:
      raise errors.RequestError(
        f"forward_far={self.forward_far} needs far: far=None joins the far"
        " pairs to the others."
      )

  def tiles(self, by_keys: bool) -> tuple[tuple[int, int], ...]:
    """The shape of the tile of the passes over near and far pairs."""
    near, far = self.near, self.far
    if not by_keys:
      near, far = self.forward_near or near, self.forward_far or far
    return (near,) if far is None else (near, far)


# By the compiler's static schedule; `aot_tpu` prints it.
_DEFAULTS: dict[Chip, TileSizes] = {
  # 128 MiB of fast memory; the compiler needs the rest for its own buffers.
  "v5e": TileSizes(forward_far=(8, 1), memory_mib=100),
  # 64 MiB for each of the two cores.
  "v5p": TileSizes(forward_far=(8, 1), memory_mib=52),
  # Matrix units of 256 x 256 finish a product in a quarter of the time, so the
  # exponentials are the bottleneck: sums move to the matrix units, and items
  # are large, as each takes some 300 cycles in which the units fill and drain.
  "v6e": TileSizes(
    near=(1, 8),
    far=(8, 1),
    forward_near=(1, 16),
    forward_far=(16, 1),
    joint=JointPass(tile=(8, 16), stream=5, group=64),
    stream=4,
    groups=(16, 16),
    memory_mib=110,
    spare_vector_units=True,
  ),
  # 16 MiB at least since TPU v2.
  "unknown": TileSizes(stream=2, groups=(8, 8)),
}


def default(chip: Chip | None, dtype: Any = "bfloat16") -> TileSizes:
  """Tile sizes for a chip and the dtype of the inputs; None is as "unknown".

  float32 takes no larger tiles forward than backward: with its products of many
  passes they are no faster, and take two and a half times as long to compile.
  """
  if chip is None:
    chip = "unknown"
  if chip not in _DEFAULTS:
    raise errors.RequestError(
      f"chip={chip!r} is unknown; choose one of {sorted(_DEFAULTS)}, or give"
      " tiles."
    )
  tiles = _DEFAULTS[chip]
  if jnp.dtype(dtype).itemsize > 2:
    tiles = dataclasses.replace(
      tiles, forward_near=None, forward_far=None, joint=None
    )
  return tiles


def chip_of(device_kind: str) -> Chip:
  """The chip that jax's `Device.device_kind` names."""
  return _CHIPS.get(device_kind, "unknown")
