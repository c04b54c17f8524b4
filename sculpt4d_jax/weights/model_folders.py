"""Folders of weights, written by a training or a conversion.

A training writes one safetensors file for each network (`model_files`), a
conversion one Orbax checkpoint for each network, and sculpt4d.json, which
describes them. `load` reads both.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import pathlib
from typing import Any

from flax import nnx
import jax
import numpy as np

from sculpt4d_jax import shipped
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io import paths
from sculpt4d_jax.models import networks
from sculpt4d_jax.weights import checkpoint_parts
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights import orbax_leaves
from sculpt4d_jax.weights.tensor_files import safetensors_file
from sculpt4d_jax.weights.tensor_files import tensor_file

ModelFileError = model_files.ModelFileError

DESCRIPTION = "sculpt4d.json"
_FORMAT = "sculpt4d-orbax-1"
# Memory for leaves in flight while a checkpoint is read; the largest leaf of
# the released model has 3.2 GB in float32.
_RESTORE_GB = 4


@dataclasses.dataclass(frozen=True)
class StoredPart:
  """A network in a folder, read slice by slice.

  Attributes:
    config: Configuration of the network.
    shapes: Shapes of its parameters by path.
    dtype: Dtype of the stored numbers.
    details: Known facts about the weights.
    reader: Reader of an Orbax checkpoint or a safetensors file.
  """

  config: Any
  shapes: Mapping[str, tuple[int, ...]]
  dtype: str
  details: Mapping[str, Any]
  reader: orbax_leaves.LeafReader | safetensors_file.SafetensorsFile

  def read(self, path: str, index: tuple[int, ...] = ()) -> np.ndarray:
    """A slice of a parameter."""
    if isinstance(self.reader, orbax_leaves.LeafReader):
      return self.reader.read(path, index)
    return self.reader.read_slice(path, index)


def load(
  folder: paths.PathLike,
  part: str,
  abstract: nnx.State,
  config: Any,
  dtype: str | None = None,
  *,
  on_host: bool = False,
) -> tuple[nnx.State, dict[str, Any]]:
  """Reads the parameters of one network.

  Args:
    folder: Folder of weights, of the user or shipped.
    part: "dit", "vae" or "image_encoder".
    abstract: The network's state, abstract or not; gives names and shapes.
    config: Configuration of the network, compared with the stored one.
    dtype: Dtype of the result. None is float32 for what launch.train wrote, and
      the stored dtype for converted checkpoints, so that bfloat16 parameters
      reach the device unconverted.
    on_host: Whether the numbers stay on the host, as numpy arrays.

  Returns:
    The state, and details of the weights.

  Raises:
    ModelFileError: The weights are missing, damaged, not ours or of another
      size.
  """
  folder = local(folder)
  if not (folder / DESCRIPTION).is_file():
    state, details = model_files.load(
      folder / f"{part}.safetensors", abstract, config
    )
    if dtype not in (None, "float32"):
      kind = tensor_file.to_dtype(dtype)
      state = jax.tree.map(lambda x: x.astype(kind), state)
    return state, details
  description = _read_description(folder)
  if part not in description["parts"]:
    raise ModelFileError(
      f"{folder} has no {part}, only {', '.join(description['parts'])};"
      " convert a checkpoint that has all networks, or several of them."
    )
  stored = description["parts"][part]
  place = folder / part
  model_files.check_config(place, stored["config"], config)
  shapes = {k: v.shape for k, v in model_files.flatten(abstract).items()}
  restored = _restore(place, shapes, dtype or description["dtype"], on_host)
  leaves = [restored[name] for name in shapes]
  state = jax.tree.unflatten(jax.tree.structure(abstract), leaves)
  return state, stored["details"]


def open_parts(folder: paths.PathLike) -> dict[str, StoredPart]:
  """Opens the networks of a folder for reading slice by slice.

  Raises:
    ModelFileError: The folder holds none of our weights.
  """
  folder, parts = local(folder), {}
  if (folder / DESCRIPTION).is_file():
    description = _read_description(folder)
    for name, about in description["parts"].items():
      reader = orbax_leaves.LeafReader(folder / name)
      parts[name] = StoredPart(
        _config(name, about["config"]),
        reader.shapes,
        description["dtype"],
        about["details"],
        reader,
      )
    return parts
  for name in checkpoint_parts.PARTS:
    path = folder / f"{name}.safetensors"
    if path.is_file():
      reader = safetensors_file.SafetensorsFile(path)
      header = model_files.parse_header(path, reader.metadata)
      shapes = {n: info.shape for n, info in reader.tensors.items()}
      dtype = next(iter(reader.tensors.values())).dtype
      config = _config(name, header["config"])
      parts[name] = StoredPart(config, shapes, dtype, header["details"], reader)
  if not parts:
    raise ModelFileError(
      f"{folder} holds no weights that a training or a conversion wrote."
    )
  return parts


def local(folder: paths.PathLike) -> pathlib.Path:
  """A local folder of weights; one in a store is copied first.

  Raises:
    ModelFileError: The folder in a store holds no weights.
  """
  folder = paths.of(folder)
  if not paths.is_remote(folder):
    return shipped.find(folder)
  # A whole run would be copied in vain, and takes hours.
  marks = {
    DESCRIPTION,
    *(f"{name}.safetensors" for name in checkpoint_parts.PARTS),
  }
  if marks.isdisjoint(path.name for path in folder.iterdir()):
    raise model_files.ModelFileError(
      f"{folder} is no folder of weights: expected one that a training or a"
      " conversion wrote, such as WORKDIR/weights."
    )
  return local_copies.fetch(folder)


def describe(config: Any, details: Mapping[str, Any]) -> dict[str, Any]:
  """A network's entry in sculpt4d.json."""
  return {"config": model_files.fields(config), "details": dict(details)}


def write_description(
  folder: pathlib.Path, parts: Mapping[str, Any], dtype: str
) -> None:
  """Writes sculpt4d.json."""
  content = {"format": _FORMAT, "dtype": dtype, "parts": dict(parts)}
  text = json.dumps(content, indent=2) + "\n"
  (folder / DESCRIPTION).write_text(text)


def _read_description(folder: pathlib.Path) -> dict[str, Any]:
  path = folder / DESCRIPTION
  try:
    content = json.loads(path.read_text())
    if content["format"] == _FORMAT and content["dtype"] and content["parts"]:
      return content
    found = content["format"]
  except (ValueError, KeyError, TypeError) as error:
    found = f"something else ({error!r})"
  raise ModelFileError(f"{path}: expected format {_FORMAT!r}, found {found}.")


def _restore(
  folder: pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  dtype: str,
  on_host: bool,
) -> dict[str, Any]:
  import orbax.checkpoint as ocp  # Half a second that safetensors do not need.

  reader = orbax_leaves.LeafReader(folder)
  reader.check()
  stored = reader.shapes
  model_files.check_shapes(folder, _without_temporal(stored, shapes), shapes)
  if set(stored) != set(shapes):
    return _read_some(reader, shapes, dtype, on_host)
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  kind = tensor_file.to_dtype(dtype)
  item = {
    name: jax.ShapeDtypeStruct(shape, kind, sharding=sharding)
    for name, shape in shapes.items()
  }

  def argument(leaf: jax.ShapeDtypeStruct) -> ocp.RestoreArgs:
    if on_host:
      return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ocp.ArrayRestoreArgs(
      sharding=leaf.sharding, dtype=leaf.dtype, global_shape=leaf.shape
    )

  arguments = jax.tree.map(argument, item)
  handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=_RESTORE_GB)
  try:
    with ocp.Checkpointer(handler) as checkpointer:
      return checkpointer.restore(
        folder.absolute(),
        args=ocp.args.PyTreeRestore(item=item, restore_args=arguments),
      )
  except (ValueError, OSError, KeyError) as error:
    raise ModelFileError(
      f"{folder} cannot be restored: {error}. Convert the checkpoint again."
    ) from error


def _read_some(
  reader: orbax_leaves.LeafReader,
  names: Iterable[str],
  dtype: str,
  on_host: bool,
) -> dict[str, Any]:
  """Reads some leaves, as Orbax below 0.11.20 restores all or none."""
  kind = tensor_file.to_dtype(dtype)
  place = np.asarray if on_host else jax.device_put
  return {
    name: place(reader.read(name).astype(kind, copy=False)) for name in names
  }


def _without_temporal(
  stored: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> Mapping[str, tuple[int, ...]]:
  """The stored shapes, without temporal layers if the model has none."""
  if any(".temporal_attention." in name for name in wanted):
    return stored
  return {n: s for n, s in stored.items() if n in wanted or "temporal" not in n}


def _config(part: str, found: Mapping[str, Any]) -> Any:
  kind = networks.KINDS[part][1]
  names = {field.name for field in dataclasses.fields(kind)}
  return kind(**{k: v for k, v in found.items() if k in names})
