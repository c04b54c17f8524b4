"""Maps checkpoints with other names to our parameters, and back.

A checkpoint is a mapping from names to arrays in PyTorch's layout (a Linear's
weight is [out, in]); ours is a tree of parameters, addressed by dotted paths,
where equal layers are stacked along a leading axis. A table of rules maps names
to parameters:

    Rule("norm.weight", "norm.scale")
    Rule("layers.{layer}.fc.weight", "layers.fc.kernel[{layer}]", linear())

Names in braces are filled by `Rule.fill(layer=3)`; a path that ends in [i] or
[i,j] is that slice of a stacked parameter. A rule may take and make several
arrays, for instance of a fused projection.

`plan` compares a table with the shapes on both sides before any data is read;
`Plan.run` then converts one rule at a time. `convert` does both for checkpoints
that fit into memory, `export` is the reverse.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any, NamedTuple

from flax import nnx
import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.weights import near_names
from sculpt4d_jax.weights import transforms as weight_transforms

Transform = weight_transforms.Transform
identity = weight_transforms.identity
linear = weight_transforms.linear
flat = weight_transforms.flat
interleaved_heads = weight_transforms.interleaved_heads
stacked_heads = weight_transforms.stacked_heads

FLOATS = ("float16", "bfloat16", "float32", "float64")
# Lines of a section of a report: a file of another kind differs in thousands.
_MAX_LINES = 24


@dataclasses.dataclass(frozen=True)
class Rule:
  """Maps names of a checkpoint to parameters.

  Attributes:
    sources: Name or names in the checkpoint; stored as a tuple.
    targets: Path or paths of parameters, optionally with a slice of a stack;
      stored as a tuple.
    transform: Change of layout; None leaves the arrays unchanged.
  """

  sources: str | tuple[str, ...]
  targets: str | tuple[str, ...]
  transform: Transform | None = None

  def __post_init__(self) -> None:
    for name in ("sources", "targets"):
      names = getattr(self, name)
      names = (names,) if isinstance(names, str) else tuple(names)
      object.__setattr__(self, name, names)

  def fill(self, **values: Any) -> "Rule":
    """Replaces the names in braces."""
    sources = tuple(name.format(**values) for name in self.sources)
    targets = tuple(path.format(**values) for path in self.targets)
    return dataclasses.replace(self, sources=sources, targets=targets)


class Slot(NamedTuple):
  """Destination of an array: parameter, index and shape of its slice."""

  path: str
  index: tuple[int, ...]
  shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Step:
  """A checked rule: names of its arrays and their destinations."""

  sources: tuple[str, ...]
  slots: tuple[Slot, ...]
  transform: Transform


@dataclasses.dataclass(frozen=True)
class Plan:
  """A table that has been checked against a checkpoint and a model.

  Attributes:
    steps: Steps in the table's order.
    unfilled: Paths of our parameters that no rule fills, as allowed.
    ignored: Names of the checkpoint that no rule takes, as allowed.
  """

  steps: tuple[Step, ...]
  unfilled: tuple[str, ...]
  ignored: tuple[str, ...]

  def run(
    self, read: Callable[[str], np.ndarray]
  ) -> Iterator[tuple[Slot, np.ndarray]]:
    """Reads array by array; yields destinations and converted arrays."""
    for step in self.steps:
      arrays = tuple(np.asarray(read(name)) for name in step.sources)
      shapes = tuple(slot.shape for slot in step.slots)
      yield from zip(step.slots, step.transform.forward(arrays, shapes))


def plan(
  rules: Iterable[Rule],
  checkpoint: Mapping[str, Any],
  shapes: Mapping[str, tuple[int, ...]],
  *,
  ignore: Sequence[str] = (),
  optional: Sequence[str] = (),
  hint: str = "",
) -> Plan:
  """Compares a table with a checkpoint and a model.

  Args:
    rules: Table with all names filled.
    checkpoint: Name -> object with a shape and a dtype.
    shapes: Shape of each of our parameters by path; see `param_shapes`.
    ignore: Patterns (re.fullmatch) of checkpoint names that may be unused.
    optional: Patterns of our paths that may be unfilled.
    hint: Text that leads the error message.

  Raises:
    ValueError: The checkpoint, the table and the model do not match. The
      differences are listed, with the most similar names.
  """
  planner = _Planner(checkpoint, shapes)
  for rule in rules:
    planner.add(rule)
  return planner.finish(ignore, optional, hint)


def convert(
  rules: Iterable[Rule],
  checkpoint: Mapping[str, Any],
  shapes: Mapping[str, tuple[int, ...]],
  *,
  ignore: Sequence[str] = (),
  optional: Sequence[str] = (),
  dtype: Any = np.float32,
) -> dict[str, np.ndarray]:
  """Builds parameters from a checkpoint of arrays; see `plan`.

  Args:
    rules: The table.
    checkpoint: Arrays by name.
    shapes: Our shapes by path.
    ignore: Patterns of names that may be unused.
    optional: Patterns of paths that may be unfilled.
    dtype: Dtype of the result.

  Returns:
    Arrays of all filled paths.
  """
  checkpoint = {name: np.asarray(array) for name, array in checkpoint.items()}
  plan_ = plan(rules, checkpoint, shapes, ignore=ignore, optional=optional)
  values: dict[str, np.ndarray] = {}
  for slot, array in plan_.run(checkpoint.__getitem__):
    if slot.path not in values:
      values[slot.path] = np.empty(shapes[slot.path], dtype)
    values[slot.path][slot.index] = array
  return values


def export(
  rules: Iterable[Rule], params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Builds a checkpoint with the table's names from our parameters."""

  def read(path: str, index: tuple[int, ...]) -> np.ndarray:
    if path not in params:
      near = near_names.suggest([path], params)[path]
      raise UserError(f"No parameter {path!r} to export{near}.")
    return np.asarray(params[path])[index]

  return dict(export_each(rules, read))


def export_each(
  rules: Iterable[Rule],
  read: Callable[[str, tuple[int, ...]], np.ndarray],
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields a checkpoint rule by rule, for weights larger than memory.

  Args:
    rules: The table.
    read: Reads a slice of a parameter, by path and index.
  """
  for rule in rules:
    arrays = tuple(read(*split_path(target)) for target in rule.targets)
    made = (rule.transform or identity()).inverse(arrays)
    for name, array in zip(rule.sources, made, strict=True):
      yield name, np.ascontiguousarray(array)


def params_by_path(module: nnx.Module) -> dict[str, Any]:
  """Parameters of a module, by dotted path."""
  state = nnx.to_flat_state(nnx.state(module, nnx.Param))
  return {_dotted(path): param.get_value() for path, param in state}


def param_shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
  """Shapes of a module's parameters; the module may be abstract."""
  params = params_by_path(module)
  return {path: tuple(param.shape) for path, param in params.items()}


class _Planner:
  """Checks rule by rule and collects all problems."""

  def __init__(
    self, checkpoint: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
  ):
    self.checkpoint = checkpoint
    self.shapes = shapes
    self.steps: list[Step] = []
    self.filled: dict[str, int] = {}  # Numbers promised so far, by path.
    self.used: set[str] = set()
    self.missing: list[str] = []
    self.unknown: list[str] = []
    self.wrong: list[str] = []

  def add(self, rule: Rule) -> None:
    self.used.update(rule.sources)
    missing = [name for name in rule.sources if name not in self.checkpoint]
    places = [split_path(target) for target in rule.targets]
    unknown = [path for path, _ in places if path not in self.shapes]
    self.missing += missing
    self.unknown += unknown
    if missing or unknown:
      return
    slots = tuple(
      Slot(path, index, tuple(self.shapes[path][len(index) :]))
      for path, index in places
    )
    step = Step(rule.sources, slots, rule.transform or identity())
    for slot in slots:
      # Counted in numbers, not slices: slices of a stack must add up to all of
      # it.
      filled = self.filled.get(slot.path, 0)
      self.filled[slot.path] = filled + math.prod(slot.shape)
    problem = self._problem(step)
    if problem:
      names = f"{', '.join(rule.sources)} -> {', '.join(rule.targets)}"
      self.wrong.append(f"{names}: {problem}")
      return
    self.steps.append(step)

  def _problem(self, step: Step) -> str | None:
    """The problem of a step, if any; found without its data."""
    infos = [self.checkpoint[name] for name in step.sources]
    for info in infos:
      if str(info.dtype) not in FLOATS:
        return f"expected floating point numbers, got {info.dtype}"
    # A broadcast of one byte: transforms of it only change shapes and cost
    # nothing.
    arrays = tuple(
      np.broadcast_to(np.zeros((), np.int8), tuple(info.shape))
      for info in infos
    )
    shapes = tuple(slot.shape for slot in step.slots)
    try:
      made = step.transform.forward(arrays, shapes)
    except ValueError as error:
      return str(error)
    for array, shape in zip(made, shapes, strict=True):
      if array.shape != shape:
        # The most common mistake in a hand-written rule.
        hint = ", the transposed one" if array.shape == shape[::-1] else ""
        return f"expected {shape}, got {array.shape}{hint}"
    return None

  def finish(
    self, ignore: Sequence[str], optional: Sequence[str], hint: str
  ) -> Plan:
    unused = [name for name in self.checkpoint if name not in self.used]
    ignored = [name for name in unused if matches(name, ignore)]
    excused = set(ignored)
    spare = [name for name in unused if name not in excused]
    named = set(self.unknown)
    partly = [
      path
      for path, shape in self.shapes.items()
      if path not in named and self.filled.get(path, 0) != math.prod(shape)
    ]
    # Optional parameters may be missing altogether, but not in part.
    allowed = [
      path
      for path in partly
      if matches(path, optional) and path not in self.filled
    ]
    unfilled = [path for path in partly if path not in set(allowed)]
    # Title, names, and candidates for a hint at the most similar name.
    sections = (
      ("Not in the checkpoint", self.missing, spare),
      ("In the checkpoint, used by no rule", spare, self.missing),
      ("Not in the model", self.unknown, self.shapes),
      ("Of the model, not or only partly filled", unfilled, self.unknown),
      ("Of the wrong shape or dtype", self.wrong, ()),
    )
    report = "\n".join(
      _section(title, names, candidates)
      for title, names, candidates in sections
      if names
    )
    if report:
      raise UserError(
        f"The checkpoint does not fit the model.\n{hint}{report}\n"
        "Check that the model's configuration is the checkpoint's. Where"
        " names differ, give rules for them; names that are not needed may"
        " be ignored, parameters that need no source left out."
      )
    return Plan(tuple(self.steps), tuple(allowed), tuple(ignored))


def _section(
  title: str, names: Sequence[str], candidates: Iterable[str]
) -> str:
  near = near_names.suggest(names[:_MAX_LINES], candidates)
  lines = [f"{name}{near.get(name, '')}" for name in names]
  return "\n    ".join([f"  {title} ({len(names)}):", *shortened(lines)])


def shortened(lines: Sequence[str]) -> list[str]:
  """The first lines of a long list, and how many more there are."""
  rest = len(lines) - _MAX_LINES
  if rest <= 0:
    return list(lines)
  return [*lines[:_MAX_LINES], f"... and {rest} more"]


def matches(name: str, patterns: Sequence[str]) -> bool:
  """Whether a whole name matches one of the patterns."""
  return any(re.fullmatch(pattern, name) for pattern in patterns)


def split_path(target: str) -> tuple[str, tuple[int, ...]]:
  """Splits "a.b[1,2]" into ("a.b", (1, 2))."""
  path, _, index = target.partition("[")
  return path, tuple(int(i) for i in index.rstrip("]").split(",") if i)


def _dotted(path: tuple[Any, ...]) -> str:
  return ".".join(map(str, path))
