"""Reads the pickle of a PyTorch checkpoint without running it.

A pickle is a program, and Python's unpickler calls any function that the file
names. This interpreter only supports the instructions needed for dictionaries
of tensors; it imports and calls nothing from the file. The few names that
PyTorch writes to rebuild tensors (`_ACTIONS`) are mapped to actions of this
module; any other name is rejected with the reason, before data are read.

Source: Python's `pickletools` documents the instructions, PyTorch's
`torch/_weights_only_unpickler.py` the names.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import io
import pickletools
from typing import Any, TypeVar

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.weights.tensor_files import tensor_file

CheckpointError = tensor_file.CheckpointError
T = TypeVar("T")

# A pickle of names and shapes; 752 tensors need 0.1 MB.
MAX_BYTES = 2**28

# PyTorch's class of a storage -> its dtype. Complex and quantised storages are
# absent: no network here has such weights.
_STORAGES = {
  "HalfStorage": "float16",
  "BFloat16Storage": "bfloat16",
  "FloatStorage": "float32",
  "DoubleStorage": "float64",
  "CharStorage": "int8",
  "ByteStorage": "uint8",
  "ShortStorage": "int16",
  "IntStorage": "int32",
  "LongStorage": "int64",
  "BoolStorage": "bool",
  # Bytes; the tensor determines their dtype.
  "UntypedStorage": "uint8",
}
# Dtypes are pickled as names under `torch`, and occur besides tensors too, for
# instance in the settings of an optimizer.
_DTYPES = frozenset(
  {
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "int8",
    "uint8",
    "int16",
    "int32",
    "int64",
    "bool",
    "half",
    "float",
    "double",
    "long",
    "int",
    *tensor_file.FLOAT8,
  }
)


@dataclasses.dataclass(frozen=True)
class Storage:
  """A flat array of numbers: its key in the archive, dtype and length."""

  key: str
  dtype: str
  size: int


@dataclasses.dataclass(frozen=True)
class StoredTensor:
  """A view of a storage; offset and strides count numbers, not bytes."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  @property
  def extent(self) -> int:
    """Length of the range from the first to the last number."""
    # Not the product of the shape: a transposed view has gaps between its
    # numbers, an expanded one has strides of 0.
    if 0 in self.shape:
      return 0
    steps = zip(self.shape, self.strides, strict=True)
    return 1 + sum((n - 1) * stride for n, stride in steps)


@dataclasses.dataclass(frozen=True)
class _Name:
  """An allowed global, represented by its name."""

  module: str
  name: str


class _Mark:
  pass


class _Ignored:
  """Placeholder for objects that are not weights; they are not created."""


def load(content: bytes, source: str) -> Any:
  """The object in a pickle: dictionaries, lists, plain values, tensors.

  Args:
    content: The pickle.
    source: Name for error messages.

  Raises:
    CheckpointError: It is damaged, or contains anything except tensors.
  """
  if len(content) > MAX_BYTES:
    raise CheckpointError(
      f"{source} lists its tensors in {len(content)} bytes, more than"
      f" {MAX_BYTES}: this is no checkpoint of weights."
    )
  machine = _Machine(source)
  try:
    # genops only parses. An unpickler with overridden methods would still
    # execute whatever instruction it does not ask about.
    for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
      machine.step(opcode.name, argument)
  except CheckpointError:
    # It is a ValueError too, but the file is refused, not damaged.
    raise
  except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
    # Raised by genops and the stack for data that are not a pickle.
    raise CheckpointError(
      f"{source} is damaged: its list of tensors cannot be read ({error})."
      " Download or copy it again."
    ) from error
  return machine.result


def tensors(tree: Any, source: str) -> dict[str, StoredTensor]:
  """The tensors of nested dictionaries and lists, by dotted name.

  Raises:
    CheckpointError: There are none, or the nesting is not that of a checkpoint.
  """
  found: dict[str, StoredTensor] = {}
  # The memo of a pickle lets a few bytes contain one list a million times, or a
  # list contain itself. The walk is therefore a loop with limits on its depth
  # and length, instead of a recursion.
  stack = [("", tree, 0)]
  visited = 0
  while stack:
    name, value, depth = stack.pop()
    visited += 1
    if depth > 16 or visited > 10**6:
      raise CheckpointError(
        f"{source} nests its values deeper than any checkpoint does."
      )
    if isinstance(value, StoredTensor):
      if name in found:
        raise CheckpointError(f"{source} holds two tensors named {name!r}.")
      found[name] = value
    elif isinstance(value, dict):
      items = value.items()
    elif isinstance(value, (list, tuple)):
      items = enumerate(value)
    if isinstance(value, (dict, list, tuple)):
      prefix = f"{name}." if name else ""
      children = [(f"{prefix}{key}", v, depth + 1) for key, v in items]
      # The last entry is visited next: names keep the order of the file.
      stack.extend(reversed(children))
  if not found:
    raise CheckpointError(f"{source} holds no tensors.")
  return found


class _Machine:
  """Stack, marks and memo of a pickle, for the instructions allowed here."""

  # The instructions that PyTorch writes for a tensor, and the stack after them:
  #
  #   GLOBAL torch._utils _rebuild_tensor_v2   name
  #   MARK                                     name (
  #   MARK "storage" GLOBAL torch HalfStorage
  #     "0" "cpu" 4096 TUPLE                   name ( tuple
  #   BINPERSID                                name ( Storage
  #   offset, shape, strides, False, {} TUPLE  name (Storage, offset, ...)
  #   REDUCE                                   StoredTensor
  #
  # Names stay names: REDUCE looks up an action of this module for them.

  # Instructions that push a plain value, which cannot lead to code.
  _PUSH = frozenset(
    {
      "BININT",
      "BININT1",
      "BININT2",
      "LONG1",
      "LONG4",
      "INT",
      "LONG",
      "BINFLOAT",
      "FLOAT",
      "BINUNICODE",
      "SHORT_BINUNICODE",
      "BINUNICODE8",
      "UNICODE",
      "BINSTRING",
      "SHORT_BINSTRING",
      "BINBYTES",
      "SHORT_BINBYTES",
      "BINBYTES8",
    }
  )
  _CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
  _TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

  def __init__(self, source: str):
    self.source = source
    self.stack: list[Any] = []
    self.memo: dict[int, Any] = {}
    self.result: Any = None

  def step(self, opcode: str, argument: Any) -> None:
    stack = self.stack
    if opcode in self._PUSH:
      stack.append(argument)
    elif opcode in self._CONSTANTS:
      stack.append(self._CONSTANTS[opcode])
    elif opcode in self._TUPLES:
      count = self._TUPLES[opcode]
      stack[-count:] = [tuple(stack[-count:])]
    elif opcode in ("BINGET", "LONG_BINGET", "GET"):
      stack.append(self.memo[int(argument)])
    elif opcode in ("BINPUT", "LONG_BINPUT", "PUT"):
      self.memo[int(argument)] = stack[-1]
    elif opcode == "MEMOIZE":
      # Protocol 4 leaves out the number: it is the count so far.
      self.memo[len(self.memo)] = stack[-1]
    elif opcode in ("PROTO", "FRAME"):
      pass
    else:
      # Instructions without a method are refused, whatever they do. `opcode` is
      # one of pickletools' names, so a file cannot select another method.
      handler = getattr(self, f"_{opcode.lower()}", None)
      if handler is None:
        raise CheckpointError(
          f"{self.source} was refused: its pickle uses the instruction"
          f" {opcode}, which lists of tensors do not need and code does."
          f" {_SAFER}"
        )
      handler(argument)

  def _to_mark(self) -> list[Any]:
    """Pops everything above the last mark, and the mark."""
    stack = self.stack
    at = len(stack) - 1
    while not isinstance(stack[at], _Mark):
      at -= 1
      if at < 0:
        raise UserError("a mark is missing")
    items = stack[at + 1 :]
    del stack[at:]
    return items

  def _mark(self, _: None) -> None:
    self.stack.append(_Mark())

  def _stop(self, _: None) -> None:
    self.result = self.stack.pop()

  def _empty_dict(self, _: None) -> None:
    self.stack.append({})

  def _empty_list(self, _: None) -> None:
    self.stack.append([])

  def _empty_tuple(self, _: None) -> None:
    self.stack.append(())

  def _empty_set(self, _: None) -> None:
    # As a list, because members that are stand-ins need not be hashable.
    self.stack.append([])

  def _tuple(self, _: None) -> None:
    self.stack.append(tuple(self._to_mark()))

  def _list(self, _: None) -> None:
    self.stack.append(self._to_mark())

  def _dict(self, _: None) -> None:
    items = self._to_mark()
    self.stack.append(dict(zip(items[::2], items[1::2], strict=True)))

  def _append(self, _: None) -> None:
    item = self.stack.pop()
    self._top(list).append(item)

  def _appends(self, _: None) -> None:
    items = self._to_mark()
    self._top(list).extend(items)

  def _additems(self, _: None) -> None:
    self._appends(_)

  def _setitem(self, _: None) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    self._top(dict)[key] = value

  def _setitems(self, _: None) -> None:
    items = self._to_mark()
    pairs = zip(items[::2], items[1::2], strict=True)
    self._top(dict).update(pairs)

  def _top(self, kind: type[T]) -> T:
    # An unpickler would call `append` or `__setitem__` of any object here.
    if not isinstance(self.stack[-1], kind):
      raise UserError(f"expected a {kind.__name__}")
    return self.stack[-1]

  def _global(self, argument: str) -> None:
    module, _, name = argument.partition(" ")
    self.stack.append(self._allowed(module, name))

  def _stack_global(self, _: None) -> None:
    name, module = self.stack.pop(), self.stack.pop()
    self.stack.append(self._allowed(module, name))

  def _allowed(self, module: str, name: str) -> _Name:
    # Every instruction that takes a name ends here, and nothing is imported:
    # a name that passes is a string until `_call` finds its action.
    is_storage = module in ("torch", "torch.storage") and name in _STORAGES
    is_dtype = module == "torch" and name in _DTYPES
    if is_storage or is_dtype or (module, name) in _ACTIONS:
      return _Name(module, name)
    raise CheckpointError(
      f"{self.source} was refused: its pickle would run {module}.{name}, and"
      f" weights need no code. {_SAFER}"
    )

  def _reduce(self, _: None) -> None:
    arguments, function = self.stack.pop(), self.stack.pop()
    self.stack.append(self._call(function, arguments))

  def _call(self, function: object, arguments: Sequence[Any]) -> Any:
    # Storages and dtypes are allowed as names, but have no action: a pickle
    # that calls one does not rebuild a tensor.
    action = None
    if isinstance(function, _Name):
      action = _ACTIONS.get((function.module, function.name))
    if action is None:
      raise CheckpointError(
        f"{self.source} was refused: its pickle calls {function!r}, which"
        f" rebuilds no tensor. {_SAFER}"
      )
    return action(self, *arguments)

  def _build(self, _: None) -> None:
    # A state dict has its modules' versions as an attribute.
    self.stack.pop()
    if not isinstance(self.stack[-1], (dict, StoredTensor, _Ignored)):
      raise CheckpointError(
        f"{self.source} was refused: its pickle sets attributes of"
        f" {self.stack[-1]!r}. {_SAFER}"
      )

  def _binpersid(self, _: None) -> None:
    # PyTorch stores numbers outside of the pickle and leaves this reference:
    # kind, dtype, key in the archive, device and length.
    kind, storage_type, key, _, size = self.stack.pop()
    if kind != "storage" or not isinstance(storage_type, _Name):
      raise UserError("a reference to something that is no storage")
    dtype = _STORAGES[storage_type.name]
    self.stack.append(Storage(str(key), dtype, int(size)))

  def ordered_dict(
    self, items: Iterable[tuple[Any, Any]] = ()
  ) -> dict[Any, Any]:
    return dict(items)

  def tensor(
    self,
    storage: object,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    *_: object,
  ) -> StoredTensor:
    if not isinstance(storage, Storage):
      raise UserError("a tensor without storage")
    made = StoredTensor(storage, int(offset), _counts(shape), _counts(strides))
    # Readers trust these numbers: a view that is too large for its storage
    # would show them whatever bytes follow it in the file.
    if len(made.shape) != len(made.strides) or made.offset < 0:
      raise UserError("a tensor whose strides do not fit its shape")
    if made.offset + made.extent > storage.size:
      raise UserError("a tensor that reaches beyond its storage")
    return made

  def tensor_of_dtype(
    self,
    storage: object,
    offset: int,
    shape: Sequence[int],
    strides: Sequence[int],
    _: object,
    hooks: object,
    dtype: _Name | str,
    *rest: object,
  ) -> StoredTensor:
    """A tensor of a dtype without a storage class, for instance float8."""
    del hooks, rest
    name = getattr(dtype, "name", dtype)
    if not isinstance(storage, Storage) or name not in tensor_file.FLOAT8:
      raise UserError(f"a tensor of bytes that are to be read as {name}")
    # The storage counts bytes; the tensor counts numbers of its dtype.
    size = storage.size // tensor_file.to_dtype(name).itemsize
    typed = dataclasses.replace(storage, dtype=name, size=size)
    return self.tensor(typed, offset, shape, strides)

  def parameter(self, data: Any, *_: object) -> Any:
    return data

  def of_type(
    self,
    function: object,
    unused_type: object,
    arguments: Sequence[Any],
    *_: object,
  ) -> Any:
    # A subclass of a tensor is taken as the tensor: its attributes may be
    # anything, and no network needs them.
    return self._call(function, arguments)

  def size(self, values: Iterable[int] = ()) -> tuple[int, ...]:
    return tuple(values)

  def inert(self, *_: object) -> None:
    return None

  def ignored(self, *_: object) -> _Ignored:
    return _Ignored()


def _counts(values: Iterable[int]) -> tuple[int, ...]:
  counts = tuple(int(value) for value in values)
  if any(count < 0 for count in counts):
    raise UserError("a negative size or stride")
  return counts


_SAFER = (
  "If you trust where it comes from, load it there and save its state dict"
  " as .safetensors."
)
_ACTIONS = {
  ("collections", "OrderedDict"): _Machine.ordered_dict,
  ("torch._utils", "_rebuild_tensor_v2"): _Machine.tensor,
  ("torch._utils", "_rebuild_tensor_v3"): _Machine.tensor_of_dtype,
  ("torch._utils", "_rebuild_parameter"): _Machine.parameter,
  ("torch._tensor", "_rebuild_from_type_v2"): _Machine.of_type,
  ("torch", "Tensor"): _Machine.inert,
  ("torch.nn.parameter", "Parameter"): _Machine.inert,
  ("torch", "Size"): _Machine.size,
  ("torch", "device"): _Machine.inert,
  # Random states and metrics of training runs, which lie next to the weights.
  # NumPy 2 writes them under its new name of the module.
  **{
    (module, name): _Machine.ignored
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "scalar")
  },
  ("numpy", "ndarray"): _Machine.ignored,
  ("numpy", "dtype"): _Machine.ignored,
  ("_codecs", "encode"): _Machine.ignored,
}
