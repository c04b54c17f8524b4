"""Opens what a checkpoint consists of: one file, or shards with an index."""

from collections.abc import Mapping
import json
import pathlib

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.weights.tensor_files import safetensors_file
from sculpt4d_jax.weights.tensor_files import tensor_file
from sculpt4d_jax.weights.tensor_files import torch_file

CheckpointError = tensor_file.CheckpointError

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
SAFETENSORS = ".safetensors"
INDEX = ".index.json"


class ShardedFile(tensor_file.TensorFile):
  """Several files as one, as an index names them."""

  def __init__(self, index: pathlib.Path):
    """Opens all shards.

    Raises:
      CheckpointError: The index is damaged, or shards or tensors are missing.
    """
    names = _weight_map(index)
    shards = sorted(set(names.values()))
    missing = [s for s in shards if not (index.parent / s).is_file()]
    if missing:
      raise CheckpointError(
        f"{index} names {len(shards)} files, of which {len(missing)} are"
        f" missing: {', '.join(missing)}. Download them, or the whole"
        " checkpoint again."
      )
    self._files = {s: open_file(index.parent / s) for s in shards}
    self._shard_of = names
    absent = [n for n, s in names.items() if n not in self._files[s].tensors]
    if absent:
      raise CheckpointError(
        f"{index} promises tensors that its files do not have:"
        f" {', '.join(absent[:10])}."
      )
    super().__init__(
      index, {n: self._files[s].tensors[n] for n, s in names.items()}
    )

  def read(self, name: str) -> np.ndarray:
    return self._files[self._shard_of[name]].read(name)


def open_file(path: pathlib.Path) -> tensor_file.TensorFile:
  """Opens a file by its suffix.

  Raises:
    CheckpointError: It is missing, foreign, damaged, or holds code.
  """
  if path.is_symlink() and not path.exists():
    raise CheckpointError(
      f"{path} points to {path.readlink()}, which does not exist: the"
      " download was not finished. Download it again."
    )
  if not path.is_file():
    raise CheckpointError(f"There is no checkpoint at {path}.")
  if path.name.endswith(INDEX):
    return ShardedFile(path)
  if path.suffix == SAFETENSORS:
    return safetensors_file.SafetensorsFile(path)
  if path.suffix in PICKLES:
    return torch_file.TorchFile(path)
  raise CheckpointError(
    f"{path}: expected a file that ends in {SAFETENSORS},"
    f" {', '.join(PICKLES)} or {INDEX}."
  )


def find_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The checkpoints in a folder and the folders in it.

  In each folder an index stands for its shards, and safetensors files are
  taken before pickles, which mostly hold the same. The largest come first.

  Raises:
    CheckpointError: There is none, or a download is not finished.
  """
  unfinished = [
    path
    for path in sorted(folder.rglob("*"))
    if path.name.endswith((".incomplete", ".part", ".crdownload"))
    or (path.is_symlink() and not path.exists())
  ]
  if unfinished:
    raise CheckpointError(
      f"{folder} holds a download that was not finished:"
      f" {', '.join(path.name for path in unfinished[:5])}. Download it"
      " again."
    )
  found = []
  folders = [folder, *(p for p in sorted(folder.rglob("*")) if p.is_dir())]
  for place in folders:
    files = [path for path in sorted(place.iterdir()) if path.is_file()]
    found += _preferred(files)
  if not found:
    raise CheckpointError(
      f"{folder} holds no checkpoint: expected files that end in"
      f" {SAFETENSORS}, {', '.join(PICKLES)} or {INDEX}."
    )
  return sorted(found, key=lambda path: (-path.stat().st_size, str(path)))


def _preferred(files: list[pathlib.Path]) -> list[pathlib.Path]:
  indices = [p for p in files if p.name.endswith(INDEX)]
  shards = {shard for index in indices for shard in _weight_map(index).values()}
  files = [p for p in files if p.name not in shards]
  safe_indices = [p for p in indices if SAFETENSORS in p.name]
  safe = [p for p in files if p.suffix == SAFETENSORS]
  if safe_indices or safe:
    return safe_indices + safe
  pickles = [p for p in files if p.suffix in PICKLES]
  return indices + pickles


def _weight_map(index: pathlib.Path) -> Mapping[str, str]:
  try:
    names = json.loads(index.read_bytes())["weight_map"]
    if not all(isinstance(n, str) for n in [*names, *names.values()]):
      raise TypeError("names must be strings")
    if not all(pathlib.PurePath(n).name == n for n in names.values()):
      raise UserError("shards must lie next to the index")
    return names
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise CheckpointError(
      f"{index} is no index of shards: expected a JSON object with"
      f" 'weight_map' ({error})."
    ) from error
