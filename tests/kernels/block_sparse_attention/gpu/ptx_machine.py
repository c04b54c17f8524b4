"""Runs the PTX of a kernel in NumPy: 128 threads of a block, in step.

Knows the instructions that the kernels for Ampere consist of, and raises
NotImplementedError at any other. Threads of a block go through every
instruction together, so that races between warps do not show; asynchronous
copies arrive as late as they may, when a wait asks for them, or at once.

Source: NVIDIA, PTX ISA 8.8 (fragments of mma.m16n8k16 and ldmatrix).
"""

import re

import ml_dtypes
import numpy as np

THREADS = 128
_WARPS = THREADS // 32
_SHARED_BYTES = 1 << 18
_LANE = np.arange(THREADS) % 32
_FLOATS = {"bf16": ml_dtypes.bfloat16, "f16": np.float16}


class Machine:
  """One kernel with its arguments in memory."""

  def __init__(self, ptx: str, arguments: list[np.ndarray], late: bool = True):
    """Loads the program and the arguments.

    Args:
      ptx: Text with one kernel.
      arguments: Inputs and outputs in the order of the kernel's parameters.
      late: Whether asynchronous copies arrive when they are waited for, rather
        than at once.
    """
    self._late = late
    self._program, self._labels = _parse(ptx)
    # Shared memory comes first, from address 0.
    self._addresses, size = [], _SHARED_BYTES
    for argument in arguments:
      self._addresses.append(size)
      size += -(-argument.nbytes // 256) * 256
    self._memory = np.zeros(size, np.uint8)
    for address, argument in zip(self._addresses, arguments):
      flat = np.ascontiguousarray(argument).reshape(-1).view(np.uint8)
      self._memory[address : address + flat.size] = flat

  def read(self, index: int, shape, dtype) -> np.ndarray:
    """The present value of an argument."""
    start = self._addresses[index]
    stop = start + int(np.prod(shape)) * np.dtype(dtype).itemsize
    return self._memory[start:stop].view(dtype).reshape(shape)

  def run_block(self, x: int, y: int = 0) -> None:
    """Runs the block with these indices in the grid."""
    self._special = {"%ctaid.x": x, "%ctaid.y": y, "%ctaid.z": 0}
    self._registers = {"%tid.x": np.arange(THREADS, dtype=np.uint32)}
    self._memory[:_SHARED_BYTES] = 0xFF  # NaN, as what was never written.
    self._copies, self._group = [], []
    position = 0
    while True:
      guard, name, args = self._program[position]
      position += 1
      if guard is not None:
        taken = self._registers[guard.lstrip("!")] != guard.startswith("!")
        assert taken.all() or not taken.any(), "threads part"
        if not taken.any():
          continue
      if name == "ret":
        return
      if name.startswith("bra"):
        position = self._labels[args[0]]
      else:
        self._execute(name, args)

  def _execute(self, name: str, args: list[str]) -> None:
    for prefix, method in _METHODS.items():
      if name.startswith(prefix):
        method(self, name, args)
        return
    suffix = name.split(".")[-1]
    function = _ARITHMETIC.get(name)
    if function is None:
      raise NotImplementedError(f"instruction {name} {args}")
    inputs = [self._value(x, suffix) for x in args[1:]]
    with np.errstate(all="ignore"):
      self._set(args[0], function(*inputs))

  def _value(self, text: str, kind: str) -> np.ndarray:
    """A register or constant, as an array of a type such as s32."""
    dtype = np.dtype(_TYPES[kind])
    if text.startswith("0f"):
      bits = np.full(THREADS, int(text[2:], 16), np.uint32)
    elif text in self._special:
      bits = np.full(THREADS, self._special[text], np.uint32)
    elif text.startswith("%"):
      bits = self._registers[text]
    elif text.startswith("__dynamic_shmem"):
      bits = np.zeros(THREADS, np.uint64)
    else:
      wide = np.uint64 if dtype.itemsize == 8 else np.uint32
      bits = np.full(THREADS, int(text) % (1 << 8 * dtype.itemsize), wide)
    assert bits.dtype.itemsize == dtype.itemsize, (text, kind)
    return bits.view(dtype)

  def _set(self, register: str, value: np.ndarray) -> None:
    if value.dtype != bool:
      value = value.view(np.uint64 if value.dtype.itemsize == 8 else np.uint32)
    self._registers[register] = value

  def _address(self, text: str) -> np.ndarray:
    base, offset = re.fullmatch(r"\[(\S+?)(?:\+(-?\d+))?\]", text).groups()
    return self._value(base, "s64") + int(offset or 0)

  def _load(self, addresses: np.ndarray, size: int) -> np.ndarray:
    """Bytes at the addresses, [..., size]."""
    return self._memory[addresses[..., None] + np.arange(size)]

  def _load_parameter(self, name, args) -> None:
    index = int(re.search(r"_param_(\d+)\]", args[1]).group(1))
    address = np.full(THREADS, self._addresses[index], np.uint64)
    self._set(args[0], address)

  def _load_words(self, name, args) -> None:
    targets = _split_vector(args[0])
    addresses = self._address(args[1])
    for i, target in enumerate(targets):
      value = self._load(addresses + 4 * i, 4).copy().view(np.uint32)
      self._set(target, value[:, 0])

  def _store_words(self, name, args) -> None:
    addresses = self._address(args[0])
    for i, source in enumerate(_split_vector(args[1])):
      value = self._value(source, "b32").copy()
      where = addresses[:, None] + 4 * i + np.arange(4)
      assert (where >= _SHARED_BYTES).all()
      self._memory[where] = value.view(np.uint8).reshape(THREADS, 4)

  def _copy(self, name, args) -> None:
    if "commit_group" in name:
      self._copies.append(self._group)
      self._group = []
    elif "wait_group" in name:
      left = int(args[0])
      done = self._copies[: len(self._copies) - left]
      self._copies = self._copies[len(done) :]
      for copy in (copy for group in done for copy in group):
        self._arrive(*copy)
    else:
      copy = (self._address(args[0]), self._address(args[1]), int(args[2]))
      if self._late:
        self._group.append(copy)
      else:
        self._arrive(*copy)

  def _arrive(self, target, source, size) -> None:
    assert (target < _SHARED_BYTES).all() and (source >= _SHARED_BYTES).all()
    where = target[:, None] + np.arange(size)
    self._memory[where] = self._load(source, size)

  def _load_matrices(self, name, args) -> None:
    """ldmatrix: lane 8 i + r holds the address of row r of matrix i."""
    targets = _split_vector(args[0])
    rows = self._load(self._address(args[1]), 16).copy().view(np.uint16)
    matrices = rows.reshape(_WARPS, 4, 8, 8)[:, : len(targets)]
    if ".trans" in name:
      matrices = matrices.swapaxes(2, 3)
    for i, target in enumerate(targets):
      # A lane gets two neighbours of row lane / 4.
      pairs = np.ascontiguousarray(matrices[:, i]).view(np.uint32)
      self._set(target, pairs.reshape(THREADS))

  def _multiply(self, name, args) -> None:
    """mma.m16n8k16: products of warps, with float32 sums."""
    dtype = _FLOATS[name.split(".")[-2]]
    registers = [_split_vector(x) for x in args]
    left, right, total = (
      np.stack([self._value(x, "b32") for x in group], axis=1)
      for group in registers[1:]
    )
    halves = lambda x: np.ascontiguousarray(x).view(np.uint16).view(dtype)
    # [warp, row of eight, lane of four, half of k, half of rows, two].
    left = halves(left).reshape(_WARPS, 8, 4, 2, 2, 2)
    left = left.transpose(0, 4, 1, 3, 2, 5).reshape(_WARPS, 16, 16)
    right = halves(right).reshape(_WARPS, 8, 4, 2, 2)
    right = right.transpose(0, 1, 3, 2, 4).reshape(_WARPS, 8, 16)
    product = left.astype(np.float32) @ right.astype(np.float32).swapaxes(1, 2)
    product = product.reshape(_WARPS, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4)
    result = total.view(np.float32) + product.reshape(THREADS, 4)
    for target, value in zip(registers[0], result.T):
      self._set(target, np.ascontiguousarray(value))

  def _exchange(self, name, args) -> None:
    lanes = _LANE ^ int(args[2])
    value = self._value(args[1], "b32")
    self._set(args[0], value[np.arange(THREADS) - _LANE + lanes])

  def _round_pair(self, name, args) -> None:
    """The first source goes to the upper half."""
    kind = "bf16" if "bf16x2" in name else "f16"
    upper, lower = (self._value(x, "f32") for x in args[1:])
    with np.errstate(over="ignore"):
      pair = np.stack([lower, upper], axis=1).astype(_FLOATS[kind])
    self._set(args[0], pair.view(np.uint32)[:, 0])

  def _widen(self, name, args) -> None:
    source = self._value(args[1], name.split(".")[-1])
    self._set(args[0], source.astype(_TYPES[name.split(".")[-2]]))

  def _multiply_wide(self, name, args) -> None:
    kind = name.split(".")[-1]
    wide = _TYPES[kind[0] + "64"]
    left, right = (self._value(x, kind).astype(wide) for x in args[1:])
    self._set(args[0], left * right)

  def _nothing(self, name, args) -> None:
    """Barriers: all threads are here anyway."""


_TYPES = {
  "b32": np.uint32,
  "u32": np.uint32,
  "s32": np.int32,
  "f32": np.float32,
  "b64": np.uint64,
  "u64": np.uint64,
  "s64": np.int64,
}
_METHODS = {
  "ld.param": Machine._load_parameter,
  "ld.": Machine._load_words,
  "st.": Machine._store_words,
  "cp.async": Machine._copy,
  "ldmatrix": Machine._load_matrices,
  "mma.sync": Machine._multiply,
  "shfl.sync.bfly": Machine._exchange,
  "cvt.rn.bf16x2": Machine._round_pair,
  "cvt.rn.f16x2": Machine._round_pair,
  "cvt.s64": Machine._widen,
  "cvt.u64": Machine._widen,
  "mul.wide": Machine._multiply_wide,
  "bar.sync": Machine._nothing,
}
_same = lambda x: x.copy()
_ARITHMETIC = {
  "mov.b32": _same,
  "mov.u32": _same,
  "mov.b64": _same,
  "cvta.to.global.u64": _same,
  "add.s32": np.add,
  "add.s64": np.add,
  "add.f32": np.add,
  "sub.s32": np.subtract,
  "sub.f32": np.subtract,
  "neg.s32": np.negative,
  "neg.f32": np.negative,
  "mul.f32": np.multiply,
  "fma.rn.f32": lambda x, y, z: x * y + z,
  "mul.lo.s32": np.multiply,
  "mad.lo.s32": lambda x, y, z: x * y + z,
  "and.b32": np.bitwise_and,
  "and.b64": np.bitwise_and,
  "or.b32": np.bitwise_or,
  "or.b64": np.bitwise_or,
  "xor.b32": np.bitwise_xor,
  "min.s32": np.minimum,
  "max.s32": np.maximum,
  "max.NaN.f32": np.maximum,
  "max.f32": np.fmax,
  "setp.lt.s32": np.less,
  "setp.ne.b32": np.not_equal,
  "setp.eq.b32": np.equal,
  "setp.gt.s32": np.greater,
  "ex2.approx.ftz.f32": np.exp2,
  "lg2.approx.ftz.f32": np.log2,
  "rcp.approx.f32": np.reciprocal,
  "div.full.f32": np.divide,
}


def _shifts(machine: Machine, name: str, args: list[str]) -> None:
  value = machine._value(args[1], name.split(".")[-1])
  count = machine._value(args[2], "u32").astype(value.dtype)
  function = np.left_shift if name.startswith("shl") else np.right_shift
  machine._set(args[0], function(value, count))


_METHODS |= {"shl.": _shifts, "shr.": _shifts}


def _parse(ptx: str):
  """Instructions as (guard, name, arguments), and positions of labels."""
  program, labels = [], {}
  body = ptx[ptx.index("{\n", ptx.index(".entry")) + 2 :]
  for line in body.splitlines():
    line = line.split("//")[0].strip()
    if line == "}":
      break
    if line.endswith(":"):
      labels[line[:-1]] = len(program)
    elif line and not line.startswith("."):
      guard = None
      if line.startswith("@"):
        guard, line = line[1:].split(None, 1)
      name, _, rest = line.rstrip(";").partition(" ")
      if "\t" in name:
        name, _, rest = line.rstrip(";").partition("\t")
      args = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^\s,]+", rest)
      program.append((guard, name.strip(), args))
  return program, labels


def _split_vector(text: str) -> list[str]:
  return re.findall(r"[^\s,{}]+", text)
