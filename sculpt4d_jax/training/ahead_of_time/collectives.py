"""Counts the collectives of a compiled program from its text.

Executions are counted, not occurrences: a collective in a loop counts with the
loop's trip count, start and end of an asynchronous collective count once, and
collectives in groups of one device are ignored.

Bytes are those that a chip receives in a ring algorithm over g devices, for a
result of r bytes:

    all-gather          r (g - 1) / g        all-reduce      2 r (g - 1) / g
    all-to-all          r (g - 1) / g        reduce-scatter  r (g - 1)
    collective-permute  r

With several slices, a collective is counted on its network: "DCN" if a group
has chips of more than one slice, otherwise "ICI". The TPU compiler divides a
collective across slices into one within each slice, and an exchange by the
hosts, written as a send and a receive; the latter is counted, with one chip of
each slice as its group.

If a product overlaps with a collective, the compiler splits the collective into
three fusions: start, product and end. It is counted at the start.

The trip count of a loop is the compiler's figure if printed, otherwise it is
read from the loop's condition, `counter < constant` with a counter from zero.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math
import re
from typing import NamedTuple

import numpy as np

from sculpt4d_jax.errors import UserError

_DTYPE_BYTES = {
  "pred": 1,
  "s8": 1,
  "u8": 1,
  "bf16": 2,
  "f16": 2,
  "s16": 2,
  "u16": 2,
  "f32": 4,
  "s32": 4,
  "u32": 4,
  "f64": 8,
  "s64": 8,
  "u64": 8,
}
KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
# What the hosts exchange between slices, by the name in a receive. Transfers of
# another name count as permutations: their bytes are received once.
_HOST_KINDS = {
  "ALL_GATHER": "all-gather",
  "ALL_REDUCE": "all-reduce",
  "REDUCE_SCATTER": "reduce-scatter",
  "ALL_TO_ALL": "all-to-all",
  "ONE_TO_ONE": "collective-permute",
}
# The text of a program, as far as it is read:
#
#   %body.7 (state: (s32[], f32[8])) -> (s32[], f32[8]) {     _HEADER
#     %y = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}   _INSTRUCTION
#     ROOT %next = (s32[], f32[8]{0}) tuple(%i, %y)           _INSTRUCTION
#   }
#
# A layout in braces, such as {0:T(256)}, may follow a shape; types of tuples
# have spaces, all others have none.
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*->.*\{\s*$")
_INSTRUCTION = re.compile(
  r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)"
)
# Instructions other than loops that call computations.
_CALLED = re.compile(
  r"\b(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
# The TPU compiler's form of an all-reduce of which a chip keeps a part.
FUSED_SCATTER = "all-reduce-scatter"
# Fusions during and at the end of a collective started by another fusion.
_DURING = "async_collective_fusion"
_START, _DONE = "AsyncCollectiveStart", "AsyncCollectiveDone"


@dataclasses.dataclass(frozen=True)
class Collective:
  """Collectives of one kind among equally many devices.

  Attributes:
    kind: For instance "all-gather".
    group_size: Devices in a group; 2 for a permutation, in which each device
      sends to one other.
    number: Number of executions.
    bytes: Bytes that a chip receives in all executions.
    unknown_loops: Number of executions in loops of unknown trip count, which
      are counted once.
    network: "ICI" within slices, "DCN" across them.
  """

  kind: str
  group_size: int
  number: int
  bytes: int
  unknown_loops: int = 0
  network: str = "ICI"


class Instruction(NamedTuple):
  """A line of a program: the name of its result, types, operation, the rest."""

  name: str
  type: str
  op: str
  rest: str


def count(
  text: str, slices: Sequence[int] | None = None
) -> tuple[Collective, ...]:
  """The collectives of a program, the most bytes first.

  Args:
    text: The optimised program.
    slices: The slice of every device, in the order of the mesh; None for a
      single slice.
  """
  computations, entry = parse(text)
  found = {}
  for instruction, times, is_known, scatter in _walk(
    computations, entry, 1, True, None
  ):
    kind, group, network, one = transfer(instruction, scatter, slices)
    if group == 1:
      continue
    key = kind, group, network
    old = found.get(key, Collective(kind, group, 0, 0, network=network))
    found[key] = dataclasses.replace(
      old,
      number=old.number + times,
      bytes=old.bytes + times * one,
      unknown_loops=old.unknown_loops + (not is_known),
    )
  return tuple(sorted(found.values(), key=lambda c: -c.bytes))


def transfer(
  instruction: Instruction,
  scatter: str | None = None,
  slices: Sequence[int] | None = None,
) -> tuple[str, int, str, int]:
  """Kind, group size, network and received bytes of one collective.

  Args:
    instruction: The collective or its start.
    scatter: Result type of a fusion that keeps a part of a sum.
    slices: See `count`.
  """
  kind = kind_of(instruction)
  size = _result_bytes(instruction)
  if instruction.op == "recv":
    group = _num_exchanging_slices(instruction.rest)
    return kind, group, "DCN", _received(kind, size, group)
  if scatter is not None:
    kind, size = "reduce-scatter", _type_bytes(scatter)
  group = _group_size(instruction.rest)
  network = _network(instruction.rest, slices)
  return kind, group, network, _received(kind, size, group)


def kind_of(instruction: Instruction) -> str:
  """The kind of a collective or its start; "" for other instructions."""
  kind = re.sub("-start$", "", instruction.op)
  if kind in KINDS:
    return kind
  if instruction.op == "recv":
    named = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
    if named:
      return _HOST_KINDS.get(named.group(1), "collective-permute")
  return ""


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Computations by name, and the name of the entry computation."""
  computations, current, entry = {}, None, None
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header:
      current = computations.setdefault(header.group(2), [])
      if header.group(1):
        entry = header.group(2)
    match = _INSTRUCTION.match(line)
    if match and current is not None:
      current.append(Instruction(*match.groups()[1:]))
  if entry is None:
    raise UserError("The text holds no program: there is no ENTRY in it.")
  return computations, entry


def role(computation: Sequence[Instruction], name: str) -> str:
  """The role of a fusion in an asynchronous collective.

  Returns:
    "start", "done", "during", or "" if it contains none or a complete one.
  """
  for instruction in computation:
    if instruction.op == "custom-call":
      if _START in instruction.rest:
        return "start"
      if _DONE in instruction.rest:
        return "done"
  return "during" if name.startswith(_DURING) else ""


def called(rest: str) -> list[str]:
  """Computations that an instruction runs, other than a loop's."""
  names = _CALLED.findall(rest)
  branches = re.search(r"branch_computations=\{([^}]*)\}", rest)
  if branches:
    names += re.findall(r"%?([\w.\-]+)", branches.group(1))
  return names


def _walk(
  computations: dict[str, list[Instruction]],
  name: str,
  times: int,
  is_known: bool,
  scatter: str | None,
) -> Iterator[tuple[Instruction, int, bool, str | None]]:
  """Every executed collective, its count, and whether the count is certain.

  `scatter` is the result type if the computation is a fusion of an all-reduce
  with the selection of a part.
  """
  for instruction in computations.get(name, ()):
    op, rest = instruction.op, instruction.rest
    if kind_of(instruction):
      yield instruction, times, is_known, scatter
    elif op == "while":
      body = re.search(r"\bbody=%?([\w.\-]+)", rest).group(1)
      trips = loop_trips(computations, rest)
      yield from _walk(
        computations,
        body,
        times * (trips or 1),
        is_known and trips is not None,
        None,
      )
    elif op not in ("async-update", "async-done"):
      for other in called(rest):
        if role(computations.get(other, ()), other) in ("during", "done"):
          continue
        is_scatter = other.startswith(FUSED_SCATTER)
        yield from _walk(
          computations,
          other,
          times,
          is_known,
          instruction.type if is_scatter else None,
        )


def loop_trips(
  computations: dict[str, list[Instruction]], loop: str
) -> int | None:
  """The trip count of a loop; None if unknown."""
  known = re.search(r'known_trip_count[^}]*?"n":"(\d+)"', loop)
  if known:
    return int(known.group(1))
  condition = re.search(r"\bcondition=%?([\w.\-]+)", loop)
  instructions = computations.get(condition.group(1), ()) if condition else ()
  constants = {}
  for instruction in instructions:
    value = re.match(r"(\d+)\)", instruction.rest)
    if instruction.op == "constant" and value:
      constants[instruction.name] = int(value.group(1))
  # With several comparisons the condition is not that of a counter alone, and
  # a guess would multiply all that is in the loop.
  limits = []
  for instruction in instructions:
    if instruction.op == "compare" and "direction=LT" in instruction.rest:
      second = re.findall(r"%?([\w.\-]+)", instruction.rest.split(")")[0])[-1]
      if second in constants:
        limits.append(constants[second])
  return limits[0] if len(limits) == 1 else None


def _result_bytes(instruction: Instruction) -> int:
  """Bytes of a result; an asynchronous start lists its operands before it."""
  if instruction.op in ("all-gather-start", "collective-permute-start"):
    parts = _elements(instruction.type)
    return _type_bytes(parts[1]) if len(parts) > 1 else _type_bytes(parts[0])
  if instruction.op == "recv":  # The data, a context and a token.
    return _type_bytes(_elements(instruction.type)[0])
  return _type_bytes(instruction.type)


def _elements(tuple_type: str) -> list[str]:
  """The types in a tuple, which may be nested."""
  if not tuple_type.startswith("("):
    return [tuple_type]
  parts, depth = [""], 0
  for letter in tuple_type[1:-1]:
    depth += letter in "([{"
    depth -= letter in ")]}"
    if letter == "," and depth == 0:
      parts.append("")
    else:
      parts[-1] += letter
  return [part.strip() for part in parts]


def _type_bytes(types: str) -> int:
  total = 0
  for dtype, shape in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", types):
    if dtype in _DTYPE_BYTES:
      numbers = [int(n) for n in shape.split(",") if n]
      total += _DTYPE_BYTES[dtype] * math.prod(numbers)
  return total


def _group_size(attributes: str) -> int:
  """Devices of a group; 2, the minimum, if groups are not printed."""
  # Four devices in two groups, in the forms in which compilers print them:
  #
  #   replica_groups={{0,1},{2,3}}                  every device
  #   replica_groups=[2,2]<=[4]                     0..3, in rows of two
  #   replica_groups=[2,2]<=[2,2]T(1,0)             the same transposed
  #   replica_groups=mesh['a'=2,'b'=2] {'b'}        along an axis of a mesh
  #   replica_groups=mesh['a'=4] {'a':(2)2}         along a part of an axis
  listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
  if listed:
    return listed.group(1).count(",") + 1
  iota = re.search(r"replica_groups=\[([\d,]+)\]<=", attributes)
  if iota:
    return int(iota.group(1).split(",")[-1])
  mesh = re.search(
    r"replica_groups=(?:@?\w+)?\[([^\]]*)\]\s*\{([^}]*)\}", attributes
  )
  if mesh:
    sizes = dict(re.findall(r"'([\w.]+)'=(\d+)", mesh.group(1)))
    size = 1
    for axis, part in re.findall(
      r"'([\w.]+)'(?::\(\d+\)(\d+))?", mesh.group(2)
    ):
      size *= int(part or sizes[axis])
    return size
  return 2


def _num_exchanging_slices(attributes: str) -> int:
  """Slices of an exchange by hosts, written {1,2}x{0:3}: slices by chips."""
  target = re.search(r'_xla_megascale_target="\{([^}]*)\}', attributes)
  if not target:
    return 2
  number = 0
  for part in target.group(1).split(","):
    first, _, last = part.partition(":")
    number += int(last or first) - int(first) + 1
  return number


def _network(attributes: str, slices: Sequence[int] | None) -> str:
  """The network that a collective needs."""
  if slices is None or len(set(slices)) == 1:
    return "ICI"
  for group in _groups(attributes, len(slices)):
    if len({slices[device] for device in group}) > 1:
      return "DCN"
  return "ICI"


def _groups(attributes: str, num_devices: int) -> list[list[int]]:
  """Groups of devices; one group of all if groups are not printed."""
  listed = re.search(
    r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", attributes
  )
  if listed:
    return [
      [int(n) for n in group.split(",") if n.strip()]
      for group in re.findall(r"\{([\d, ]*)\}", listed.group(1))
    ]
  iota = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
  )
  if iota:
    shape, dims = ([int(n) for n in iota.group(i).split(",")] for i in (1, 2))
    ids = np.arange(np.prod(dims)).reshape(dims)
    if iota.group(3):
      ids = ids.transpose([int(n) for n in iota.group(3).split(",")])
    return ids.reshape(-1, shape[-1]).tolist()
  mesh = re.search(
    r"replica_groups=(?:@?\w+)?\[([^\]]*)\]\s*\{([^}]*)\}", attributes
  )
  if mesh:
    return _mesh_groups(mesh.group(1), mesh.group(2))
  return [list(range(num_devices))]


def _mesh_groups(mesh: str, axes: str) -> list[list[int]]:
  """Groups along axes of a mesh, or parts of axes: 'a':(before)size."""
  sizes = {name: int(n) for name, n in re.findall(r"'([\w.]+)'=(\d+)", mesh)}
  parts = {
    name: (int(before), int(size)) if size else (1, sizes[name])
    for name, before, size in re.findall(
      r"'([\w.]+)'(?::\((\d+)\)(\d+))?", axes
    )
  }
  # An axis of 8 with the part (2)2 has the shape [2, 2, 2]: what is before the
  # part, the part, and the rest. Parts move to the end, so that every row of
  # the result is a group:
  #
  #   0 1 2 3 4 5 6 7  ->  {0, 2} {1, 3} {4, 6} {5, 7}
  shape, moved = [], []
  for name, size in sizes.items():
    before, width = parts.get(name, (size, 1))
    moved.append(len(shape) + 1)
    shape += [before, width, size // (before * width)]
  ids = np.arange(np.prod(shape)).reshape(shape)
  ids = np.moveaxis(ids, moved, range(-len(moved), 0))
  width = int(np.prod([w for _, w in parts.values()]))
  return ids.reshape(-1, width).tolist()


def _received(kind: str, size: int, group: int) -> int:
  # Of a ring, see the module: a chip receives g - 1 pieces, each 1 / g of the
  # whole. A reduce-scatter's result is itself such a piece.
  if kind == "reduce-scatter":
    return size * (group - 1)
  if kind == "collective-permute":
    return size
  return size * (group - 1) // group * (2 if kind == "all-reduce" else 1)
