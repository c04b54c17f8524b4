"""Weights of one network in a safetensors file with its configuration.

Parameters are stored under their dotted paths, by default in half precision.
The header holds the network's configuration and training details, so that
weights that do not match a preset are refused with the reason.
"""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from flax import nnx
import jax
import numpy as np
import safetensors
import safetensors.numpy

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io import paths

_FORMAT = "sculpt4d-1"
# One entry, because the order of several would differ between runs.
_HEADER = "sculpt4d"
# Fields that change how a network runs, but not the shapes of its weights.
_FREE_FIELDS = frozenset(
  {
    "dtype",
    "param_dtype",
    "scan_unroll",
    "remat_policy",
    "scale_factor",
    "attention_implementation",
    "temporal_implementation",
    "moe_implementation",
    "temporal_mode",
    "router_aux_loss_weight",
    "temporal_schedule",
    "temporal_anchor_frames",
    "temporal_block_size",
    "token_order",
    "downsample_ratio",
    "num_latents",
  }
)


class ModelFileError(UserError):
  """A file of weights is missing, damaged, not ours or of another size."""


def save(
  path: paths.PathLike,
  params: nnx.State,
  config: Any,
  details: Mapping[str, Any],
  dtype: Any = np.float16,
) -> None:
  """Writes parameters.

  Args:
    path: Output file.
    params: State of the network's parameters.
    config: Configuration of the network, a dataclass.
    details: Description of the training; JSON values.
    dtype: Dtype of the stored numbers.

  Raises:
    ValueError: A value does not fit the dtype.
    atomic.OutputError: The file cannot be written.
  """
  arrays = {}
  for name, value in flatten(params).items():
    array = np.asarray(value, np.float32)
    arrays[name] = np.ascontiguousarray(array.astype(dtype))
    if not np.isfinite(arrays[name].astype(np.float32)).all():
      raise UserError(f"{name} holds values that {np.dtype(dtype)} cannot.")
  header = {
    "format": _FORMAT,
    "config": fields(config),
    "details": dict(details),
  }
  content = safetensors.numpy.save(
    arrays, metadata={_HEADER: json.dumps(header)}
  )
  atomic.write_bytes(path, content)


def as_stored(params: nnx.State, dtype: Any = np.float16) -> nnx.State:
  """Parameters rounded as by a file of `dtype`, in their own dtype."""
  return jax.tree.map(
    lambda x: np.asarray(x).astype(dtype).astype(x.dtype), params
  )


def load(
  path: paths.PathLike, abstract: nnx.State, config: Any
) -> tuple[nnx.State, dict[str, Any]]:
  """Reads parameters.

  Args:
    path: File of weights.
    abstract: State of the network, abstract or not; gives names and shapes.
    config: Configuration of the network, compared with the file's.

  Returns:
    The state in float32, and the file's details.

  Raises:
    ModelFileError: The file is missing, damaged, not ours or of another size.
  """
  path = paths.of(path)
  metadata, arrays = _read(path)
  header = parse_header(path, metadata)
  check_config(path, header["config"], config)
  expected = flatten(abstract)
  found = {k: v.shape for k, v in arrays.items()}
  check_shapes(path, found, {k: v.shape for k, v in expected.items()})
  leaves = [arrays[name].astype(np.float32) for name in expected]
  state = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
  return state, header["details"]


def parse_header(path: Any, metadata: Mapping[str, str]) -> dict[str, Any]:
  """Configuration and details from a safetensors file's metadata.

  Raises:
    ModelFileError: They are missing: the file is not one of ours.
  """
  try:
    header = json.loads(metadata.get(_HEADER, "{}"))
  except ValueError as error:
    raise ModelFileError(f"{path} has a damaged header: {error}.") from error
  if header.get("format") != _FORMAT:
    raise ModelFileError(
      f"{path} is a safetensors file, but not weights that a"
      f" training wrote: expected format {_FORMAT!r}, found {header.get('format')!r}."
    )
  return header


def flatten(state: nnx.State) -> dict[str, Any]:
  """Leaves by dotted path, in the order of `jax.tree.leaves`."""
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  return {_name(path): leaf for path, leaf in leaves}


def _name(path: jax.tree_util.KeyPath) -> str:
  parts = []
  for key in path:
    part = getattr(key, "key", getattr(key, "idx", None))
    if part is not None:
      parts.append(str(part))
  return ".".join(parts)


def fields(config: Any) -> dict[str, Any]:
  """A configuration as JSON values: tuples as lists, dtypes as names."""
  values = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if isinstance(value, tuple):
      value = list(value)
    elif not isinstance(value, (str, int, float, bool, type(None))):
      value = np.dtype(value).name
    values[field.name] = value
  return values


def _read(
  path: paths.LocalPath | paths.StorePath,
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
  if not path.is_file():
    raise ModelFileError(f"There are no weights at {path}.")
  try:
    local = local_copies.fetch(path)
    with safetensors.safe_open(local, framework="numpy") as file:
      metadata = file.metadata() or {}
      return metadata, {name: file.get_tensor(name) for name in file.keys()}
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise ModelFileError(
      f"{path} is no whole safetensors file: {error}."
    ) from error


def check_config(path: Any, found: Mapping[str, Any], config: Any) -> None:
  """Compares a stored configuration with a preset's.

  Raises:
    ModelFileError: They differ in a field that determines the weights.
  """
  expected = fields(config)
  # A file that is older than a field has its default.
  defaults = {
    field.name: field.default
    for field in dataclasses.fields(config)
    if isinstance(field.default, (bool, int, float, str))
  }
  found = defaults | dict(found)
  wrong = [
    f"{name}: the file has {found[name]}, the preset {expected[name]}"
    for name in expected
    if name in found
    and name not in _FREE_FIELDS
    and found[name] != expected[name]
  ]
  if wrong:
    raise ModelFileError(
      f"{path} does not fit the preset. " + "; ".join(wrong) + "."
    )


def check_shapes(
  path: Any,
  found: Mapping[str, tuple[int, ...]],
  shapes: Mapping[str, tuple[int, ...]],
) -> None:
  """Compares stored shapes with a network's.

  Raises:
    ModelFileError: They differ.
  """
  missing = sorted(set(shapes) - set(found))
  unknown = sorted(set(found) - set(shapes))
  wrong = [
    f"{name} is {found[name]} instead of {shapes[name]}"
    for name in shapes
    if name in found and found[name] != shapes[name]
  ]
  problems = [f"{name} is missing" for name in missing]
  problems += [f"{name} is unknown" for name in unknown] + wrong
  if problems:
    shown = "; ".join(problems[:5])
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    raise ModelFileError(f"{path} does not fit the preset: {shown}{more}.")
