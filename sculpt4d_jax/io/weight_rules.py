"""Maps checkpoints in another naming onto our parameters, and back.

A checkpoint is a mapping from names to arrays in PyTorch's layout (a Linear's
weight is [out, in]); ours is a tree of parameters, addressed by dotted paths,
where equal layers are stacked along a leading axis. A table of rules says which
names make which parameters:

    Rule("norm.weight", "norm.scale")
    Rule("layers.{layer}.fc.weight", "layers.fc.kernel[{layer}]", linear())

Names in braces are filled by `Rule.fill(layer=3)`; a path that ends in [i] or
[i,j] is that slice of a stacked parameter. A rule may take several arrays and
make several, as a fused projection does. Every transform has an inverse, so a
table serves import and export alike.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import difflib
import math
import re
from typing import Any, NamedTuple

from flax import nnx
import jax
import numpy as np

Arrays = tuple[np.ndarray, ...]
Shapes = tuple[tuple[int, ...], ...]


class Transform(NamedTuple):
  """A reversible change of layout.

  `forward` takes the checkpoint's arrays and the shapes ours must have;
  `inverse` takes our arrays. `forward` raises ValueError for arrays that cannot
  have those shapes.
  """

  forward: Callable[[Arrays, Shapes], Sequence[np.ndarray]]
  inverse: Callable[[Arrays], Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Rule:
  """Names of a checkpoint that make parameters of ours.

  Attributes:
    sources: One name or several; kept as a tuple.
    targets: One path or several, each maybe with the slice of a stack; kept as
      a tuple.
    transform: Layout change; by default the arrays are taken as they are.
  """

  sources: str | tuple[str, ...]
  targets: str | tuple[str, ...]
  transform: Transform | None = None

  def __post_init__(self):
    for name in ("sources", "targets"):
      names = getattr(self, name)
      names = (names,) if isinstance(names, str) else tuple(names)
      object.__setattr__(self, name, names)

  def fill(self, **values: Any) -> "Rule":
    """Replaces the names in braces."""
    sources = tuple(name.format(**values) for name in self.sources)
    targets = tuple(path.format(**values) for path in self.targets)
    return dataclasses.replace(self, sources=sources, targets=targets)


def identity() -> Transform:
  """Arrays as they are."""
  return Transform(lambda arrays, shapes: arrays, lambda arrays: arrays)


def linear(num_in_axes: int = 1) -> Transform:
  """Weights [out, in] to kernels whose first `num_in_axes` axes are inputs."""

  def forward(arrays, shapes):
    (weight,), (shape,) = arrays, shapes
    matrix = _matrix_shape(shape, num_in_axes)
    if weight.shape != matrix[::-1]:
      raise ValueError(f"expected {matrix[::-1]}, came {weight.shape}")
    return (weight.T.reshape(shape),)

  def inverse(arrays):
    (kernel,) = arrays
    return (kernel.reshape(_matrix_shape(kernel.shape, num_in_axes)).T,)

  return Transform(forward, inverse)


def flat() -> Transform:
  """Vectors to any shape of as many numbers: the bias of a [D, H, K] kernel."""
  return Transform(
      lambda arrays, shapes: tuple(
          array.reshape(shape)
          for array, shape in zip(arrays, shapes, strict=True)
      ),
      lambda arrays: tuple(array.reshape(-1) for array in arrays),
  )


def interleaved_heads(num_sources: int = 1) -> Transform:
  """Fused projections whose rows run head by head, parts within a head.

  The sources' rows, one source after the other, are H groups of P * K rows: in
  a group the first K rows are that head's part 0, the next K its part 1, and so
  on. They become P kernels [in, H, K], or P biases [H, K]. Hunyuan3D 2.1 cuts
  query, key and value in this way: its VAE stores them fused, its DiT apart.
  """

  def forward(arrays, shapes):
    fused = np.concatenate(arrays, axis=0)
    heads, head_dim = shapes[0][-2:]
    rows = (heads * len(shapes) * head_dim,)
    expected = rows + tuple(shapes[0][:-2])
    if fused.shape != expected:
      raise ValueError(f"expected {expected} in all, came {fused.shape}")
    fused = fused.reshape(heads, len(shapes), head_dim, *fused.shape[1:])
    parts = (fused[:, part] for part in range(len(shapes)))  # [H, K, in]
    return tuple(np.moveaxis(part, (0, 1), (-2, -1)) for part in parts)

  def inverse(arrays):
    parts = [np.moveaxis(array, (-2, -1), (0, 1)) for array in arrays]
    fused = np.stack(parts, axis=1)  # [H, P, K, in]
    fused = fused.reshape(math.prod(fused.shape[:3]), *fused.shape[3:])
    return np.split(fused, num_sources)

  return Transform(forward, inverse)


def convert(
    rules: Iterable[Rule],
    checkpoint: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    ignore: Sequence[str] = (),
    optional: Sequence[str] = (),
    dtype: Any = np.float32,
) -> dict[str, np.ndarray]:
  """Builds parameters from a checkpoint.

  Args:
    rules: The table, all names filled.
    checkpoint: Arrays by name; each is read once, so it may load them lazily.
    shapes: Shape of each of our parameters by path; see `param_shapes`.
    ignore: Patterns (re.fullmatch) of checkpoint names that no rule needs.
    optional: Patterns of our paths that no rule needs to fill.
    dtype: Of the result.

  Returns:
    Arrays by path, for all paths that are filled.

  Raises:
    ValueError: The checkpoint, the table and the model do not agree. All
      differences are listed together, with the nearest names.
  """
  loader = _Loader(checkpoint, shapes, dtype)
  for rule in rules:
    loader.apply(rule)
  loader.raise_if_wrong(ignore, optional)
  return loader.values


def export(
    rules: Iterable[Rule], params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Builds a checkpoint in the table's naming from our parameters."""
  checkpoint = {}
  for rule in rules:
    arrays = []
    for path, index in map(_split_path, rule.targets):
      if path not in params:
        near = _nearest(path, params)
        raise ValueError(f"No parameter {path!r} to export{near}.")
      arrays.append(np.asarray(params[path])[index])
    transform = rule.transform or identity()
    made = transform.inverse(tuple(arrays))
    for name, array in zip(rule.sources, made, strict=True):
      checkpoint[name] = np.ascontiguousarray(array)
  return checkpoint


def params_by_path(module: nnx.Module) -> dict[str, Any]:
  """Parameters of a module, by dotted path."""
  state = nnx.to_flat_state(nnx.state(module, nnx.Param))
  return {_dotted(path): param.get_value() for path, param in state}


def param_shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
  """Shapes of a module's parameters; the module may be abstract."""
  params = params_by_path(module)
  return {path: tuple(param.shape) for path, param in params.items()}


def set_params(module: nnx.Module, values: Mapping[str, Any]) -> None:
  """Sets parameters by dotted path, each cast to the dtype it had.

  Raises:
    ValueError: A path the module does not have, or a wrong shape.
  """
  state = nnx.state(module, nnx.Param)
  params = {_dotted(path): param for path, param in nnx.to_flat_state(state)}
  for path, value in values.items():
    if path not in params:
      raise ValueError(f"No parameter {path!r}{_nearest(path, params)}.")
    old = params[path].get_value()
    if tuple(old.shape) != tuple(value.shape):
      raise ValueError(
          f"Parameter {path!r} has shape {old.shape}, the value {value.shape}."
      )
    params[path].set_value(jax.numpy.asarray(value, old.dtype))
  nnx.update(module, state)


class _Loader:
  """Fills parameters rule by rule and keeps account of what went wrong."""

  def __init__(self, checkpoint, shapes, dtype):
    self.checkpoint = checkpoint
    self.shapes = shapes
    self.dtype = dtype
    self.values: dict[str, np.ndarray] = {}
    self.filled: dict[str, int] = {}  # Numbers written so far, by path.
    self.used: set[str] = set()
    self.missing: list[str] = []
    self.unknown: list[str] = []
    self.wrong: list[str] = []

  def apply(self, rule: Rule) -> None:
    sources, targets = rule.sources, rule.targets
    self.used.update(sources)
    missing = [name for name in sources if name not in self.checkpoint]
    places = [_split_path(target) for target in targets]
    unknown = [path for path, _ in places if path not in self.shapes]
    self.missing += missing
    self.unknown += unknown
    if missing or unknown:
      return
    slots = tuple(
        self.shapes[path][len(index) :] for path, index in places
    )
    arrays = tuple(np.asarray(self.checkpoint[name]) for name in sources)
    try:
      made = (rule.transform or identity()).forward(arrays, slots)
      for array, slot in zip(made, slots, strict=True):
        if array.shape != slot:
          raise ValueError(f"expected {slot}, came {array.shape}")
    except ValueError as error:
      # Not lost: raise_if_wrong reports it along with all the others.
      names = f"{', '.join(sources)} -> {', '.join(targets)}"
      self.wrong.append(f"{names}: {error}")
      return
    for (path, index), array in zip(places, made, strict=True):
      self._write(path, index, array)

  def _write(self, path, index, array):
    if path not in self.values:
      self.values[path] = np.empty(self.shapes[path], self.dtype)
    self.values[path][index] = array
    self.filled[path] = self.filled.get(path, 0) + array.size

  def raise_if_wrong(self, ignore, optional) -> None:
    spare = [
        name
        for name in self.checkpoint
        if name not in self.used and not _matches(name, ignore)
    ]
    named = set(self.unknown)
    unfilled = [
        path
        for path, shape in self.shapes.items()
        if path not in named
        and self.filled.get(path, 0) != math.prod(shape)
        and not (_matches(path, optional) and path not in self.values)
    ]
    sections = (
        ("Not in the checkpoint", self.missing, spare),
        ("In the checkpoint, used by no rule", spare, self.missing),
        ("Not in the model", self.unknown, self.shapes),
        ("Of the model, not or only partly filled", unfilled, self.unknown),
        ("Of the wrong shape", self.wrong, ()),
    )
    report = "\n".join(
        _section(title, names, candidates)
        for title, names, candidates in sections
        if names
    )
    if report:
      raise ValueError(
          "The checkpoint does not fit the model.\n"
          f"{report}\n"
          "Check that the model's configuration is the checkpoint's, or pass"
          " patterns as `ignore` (checkpoint) and `optional` (model)."
      )


def _section(title, names, candidates, limit: int = 20) -> str:
  lines = [f"  {title} ({len(names)}):"]
  lines += [f"    {name}{_nearest(name, candidates)}" for name in names[:limit]]
  if len(names) > limit:
    lines.append(f"    ... and {len(names) - limit} more")
  return "\n".join(lines)


def _nearest(name: str, candidates: Iterable[str]) -> str:
  found = difflib.get_close_matches(name, list(candidates), n=2, cutoff=0.7)
  return f" (nearest: {', '.join(found)})" if found else ""


def _matches(name: str, patterns: Sequence[str]) -> bool:
  return any(re.fullmatch(pattern, name) for pattern in patterns)


def _split_path(target: str) -> tuple[str, tuple[int, ...]]:
  """"a.b[1,2]" to ("a.b", (1, 2))."""
  path, _, index = target.partition("[")
  return path, tuple(int(i) for i in index.rstrip("]").split(",") if i)


def _dotted(path: tuple[Any, ...]) -> str:
  return ".".join(map(str, path))


def _matrix_shape(
    shape: tuple[int, ...], num_in_axes: int
) -> tuple[int, int]:
  return math.prod(shape[:num_in_axes]), math.prod(shape[num_in_axes:])
