"""Breaks down the time of a compiled step by the compiler's estimates.

The TPU compiler annotates every fusion of the scheduled program with estimated
cycles. The program is traversed in scheduled order, loops with their trip
counts, and the estimates are summed by class:

  products      matrix products, with operations fused to them
  attention     kernels of scores, softmax and weighted sums
  norms         normalisations and their gradients, unless fused to a product
  other         everything else: activations, sums, rotations, optimizer
  collectives   the part not overlapped with other work

A Pallas kernel has no estimate. It is counted with its declared operations and
bytes, at the chip's peak or the memory's bandwidth, whichever is slower. jax's
splash attention declares nothing and is counted by its operands' shapes. An
asynchronous collective transfers its bytes at its network's bandwidth, one
collective after the other on each network; the part finished before its end is
awaited counts as hidden. For a conditional the longest branch is counted.
Prefetching copies between kinds of memory are free. Stalls that the compiler
does not predict are missing, so the sum is a lower bound.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import re

from sculpt4d_jax.training.ahead_of_time import collectives

CLASSES = ("products", "attention", "norms", "other", "collectives")

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SCOPE = re.compile(r'op_name="([^"]*)"')
_FLOPS = re.compile(r'"flops":"?(\d+)')
_BYTES = re.compile(r'"bytes_accessed":"?(\d+)')
# Operations a pair of a query and a key, and channel: two products forward, five
# in the fused backward kernel.
_SPLASH_FLOPS = {"splash_mha_fwd": 4, "splash_mha_dkv": 10}
_LAYOUTS = re.compile(r"operand_layout_constraints=\{(.*?)\}, [a-z_]+=")
_HEADS = re.compile(r"(?:bf16|f32)\[([\d,]+)\]")
_PRODUCTS = frozenset({"convolution", "dot", "ragged-dot"})
_ATTENTION = re.compile(r"attention|block_sparse|flash|splash")
_NORM = re.compile(r"/norm/")  # Name scope set by the layers.
_AGAIN = "rematted_computation"


@dataclasses.dataclass(frozen=True)
class Rates:
  """Speed of a chip, per second.

  Attributes:
    clock: Cycles.
    flops: Operations at peak, in bfloat16.
    memory: Bytes from and to its memory.
    networks: Bytes received, by network: "ICI", "DCN".
  """

  clock: float
  flops: float
  memory: float
  networks: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Account:
  """Seconds of one chip for one execution of a program.

  Attributes:
    seconds: By class.
    recomputed: The part of it that the backward pass recomputes.
    hidden: Collectives overlapped with work; not part of `seconds`.
  """

  seconds: Mapping[str, float]
  recomputed: float = 0.0
  hidden: float = 0.0

  @property
  def total(self) -> float:
    """Seconds of all classes together."""
    return sum(self.seconds.values())


def account(
  text: str, rates: Rates, slices: Sequence[int] | None = None
) -> Account:
  """The account of a program.

  Args:
    text: The optimised program, in the order of its schedule.
    rates: Rates of the chip.
    slices: See `collectives.count`.
  """
  computations, entry = collectives.parse(text)
  return _Program(computations, rates, slices).account(entry)


class _Timeline:
  """Parallel timelines of work and networks from the start of a computation."""

  def __init__(self, rates: Rates):
    self._rates = rates
    self.now = 0.0
    self._free = dict.fromkeys(rates.networks, 0.0)
    self._started: dict[str, tuple[float, float]] = {}
    self.exposed = self.hidden = 0.0

  def work(self, seconds: float) -> None:
    self.now += seconds

  def start(self, name: str, network: str, num_bytes: int) -> None:
    seconds = num_bytes / self._rates.networks[network]
    end = max(self.now, self._free[network]) + seconds
    self._free[network] = end
    self._started[name] = end, seconds

  def wait(self, name: str) -> None:
    """Waits for a started collective; ignores names of other instructions."""
    end, seconds = self._started.pop(name, (0.0, 0.0))
    waited = min(max(end - self.now, 0.0), seconds)
    self.exposed += waited
    self.hidden += seconds - waited
    self.now = max(self.now, end)


class _Program:
  """The computations of a program and their accounts."""

  def __init__(
    self,
    computations: dict[str, list[collectives.Instruction]],
    rates: Rates,
    slices: Sequence[int] | None,
  ):
    self._computations = computations
    self._rates = rates
    self._slices = slices
    self._known: dict[str, Account] = {}

  def account(self, name: str) -> Account:
    """Account of one execution of a computation."""
    if name not in self._known:
      self._known[name] = self._walk(name)
    return self._known[name]

  def _walk(self, name: str) -> Account:
    timeline = _Timeline(self._rates)
    seconds = dict.fromkeys(CLASSES, 0.0)
    recomputed = inner_hidden = 0.0
    for instruction in self._computations.get(name, ()):
      op, rest = instruction.op, instruction.rest
      if op in ("while", "conditional", "call"):
        inner, times = self._inner(op, rest)
        for kind in CLASSES:
          seconds[kind] += times * inner.seconds[kind]
        recomputed += times * inner.recomputed
        inner_hidden += times * inner.hidden
        timeline.work(times * inner.total)
      elif not self._communicate(instruction, timeline):
        kind, took = self._work(instruction)
        seconds[kind] += took
        recomputed += took * (_AGAIN in _scope(rest))
        timeline.work(took)
    seconds["collectives"] += timeline.exposed
    return Account(seconds, recomputed, inner_hidden + timeline.hidden)

  def _inner(self, op: str, rest: str) -> tuple[Account, int]:
    """The account of an instruction's computations, and their number."""
    if op == "while":
      body = re.search(r"\bbody=%?([\w.\-]+)", rest).group(1)
      times = collectives.loop_trips(self._computations, rest) or 1
      return self.account(body), times
    branches = [self.account(name) for name in collectives.called(rest)]
    empty = Account(dict.fromkeys(CLASSES, 0.0))
    return max(branches, key=lambda a: a.total, default=empty), 1

  def _communicate(
    self, instruction: collectives.Instruction, timeline: _Timeline
  ) -> bool:
    """Adds a collective to the timeline; False if it is (also) work."""
    op, name, rest = instruction.op, instruction.name, instruction.rest
    if op.endswith(("-done", "-update")):
      operand = re.match(r"[^%]*%([\w.\-]+)", rest)
      if operand and op.endswith("-done"):
        timeline.wait(operand.group(1))
      return True
    if collectives.kind_of(instruction):
      self._start(name, instruction, None, timeline)
      if not op.endswith("-start") and op != "recv":
        timeline.wait(name)
      return True
    if op not in ("fusion", "async-start"):
      return op.endswith("-start")
    for other in collectives.called(rest):
      part = self._computations.get(other, [])
      inside = [i for i in part if collectives.kind_of(i)]
      role = collectives.role(part, other)
      if role == "during" or not inside:
        continue
      if role == "done":
        timeline.wait(_chain(inside[0]))
        return True
      scatter = None
      if other.startswith(collectives.FUSED_SCATTER):
        scatter = instruction.type
      started = _chain(inside[0]) if role == "start" else name
      self._start(started, inside[0], scatter, timeline)
      if role != "start" and op == "fusion":
        timeline.wait(started)
      return True
    return op == "async-start"

  def _start(
    self,
    name: str,
    instruction: collectives.Instruction,
    scatter: str | None,
    timeline: _Timeline,
  ) -> None:
    _, group, network, num_bytes = collectives.transfer(
      instruction, scatter, self._slices
    )
    timeline.start(name, network, num_bytes * (group > 1))

  def _work(self, instruction: collectives.Instruction) -> tuple[str, float]:
    """Class and seconds of an instruction that computes."""
    rest, scope = instruction.rest, _scope(instruction.rest)
    cycles = _CYCLES.search(rest)
    seconds = int(cycles.group(1)) / self._rates.clock if cycles else 0.0
    if instruction.op == "custom-call" and not cycles:
      flops, accessed = _FLOPS.search(rest), _BYTES.search(rest)
      work = int(flops.group(1)) if flops else _splash_flops(instruction)
      seconds = max(
        work / self._rates.flops,
        int(accessed.group(1)) / self._rates.memory if accessed else 0.0,
      )
    if instruction.op == "custom-call" and seconds:
      named = f"{instruction.name} {scope}"
      return ("attention" if _ATTENTION.search(named) else "products"), seconds
    if instruction.op in _PRODUCTS or self._has_product(rest):
      return "products", seconds
    return ("norms" if _NORM.search(scope) else "other"), seconds

  def _has_product(self, rest: str) -> bool:
    return any(
      i.op in _PRODUCTS or (i.op == "fusion" and self._has_product(i.rest))
      for name in collectives.called(rest)
      for i in self._computations.get(name, ())
    )


def _splash_flops(instruction: collectives.Instruction) -> int:
  """Operations of a kernel of splash attention without a mask; else 0."""
  layouts = _LAYOUTS.search(instruction.rest)
  for name, operations in _SPLASH_FLOPS.items():
    if name in instruction.name and layouts:
      # The first two arrays of heads are queries and keys, [..., H, S, K].
      shapes = (
        [int(n) for n in shape.split(",")]
        for shape in _HEADS.findall(layouts.group(1))
      )
      query, key = [shape for shape in shapes if len(shape) > 2][:2]
      return operations * math.prod(query) * key[-2]
  return 0


def _scope(rest: str) -> str:
  match = _SCOPE.search(rest)
  return match.group(1) if match else ""


def _chain(instruction: collectives.Instruction) -> str:
  """The name shared by the parts of an asynchronous collective."""
  chain = re.search(r'chain_id="(\d+)"', instruction.rest)
  return f"chain {chain.group(1) if chain else ''}"
