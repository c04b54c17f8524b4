"""Opens checkpoints of one file or several shards."""

from collections.abc import Mapping
import json
import pathlib
import re

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.weights.tensor_files import safetensors_file
from sculpt4d_jax.weights.tensor_files import tensor_file
from sculpt4d_jax.weights.tensor_files import torch_file

CheckpointError = tensor_file.CheckpointError

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
SAFETENSORS = ".safetensors"
INDEX = ".index.json"

# NAME-00001-of-00002.safetensors
_SHARD = re.compile(
  r"(?P<name>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<end>\.\w+)"
)
# DeepSpeed's name for parts of a ZeRO-3 checkpoint. Those of earlier stages
# contain complete tensors and have another name.
_ZERO3 = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
# Files that trainers write next to the weights.
_STATE = re.compile(
  r"(optimizer|scheduler|scaler|rng_state|random_states|training_args).*"
  r"|.*_optim_states\.pt"
)


class JoinedFile(tensor_file.TensorFile):
  """Shards without an index, with disjoint tensor names."""

  def __init__(self, first: pathlib.Path, shards: list[pathlib.Path]):
    """Opens all shards.

    Args:
      first: Path that represents all of them.
      shards: The files.

    Raises:
      CheckpointError: A shard is damaged, or two contain tensors of the same
        name.
    """
    self._file_of: dict[str, tensor_file.TensorFile] = {}
    tensors = {}
    for file in (_open_one(path) for path in shards):
      twice = [name for name in file.tensors if name in tensors]
      if twice:
        raise CheckpointError(
          f"{file.path} and {self._file_of[twice[0]].path} both hold"
          f" {twice[0]!r}: they are no shards of one checkpoint. Download it"
          f" again, with its {INDEX}."
        )
      tensors |= file.tensors
      self._file_of |= dict.fromkeys(file.tensors, file)
    super().__init__(first, tensors)

  def read(self, name: str) -> np.ndarray:
    """Reads a tensor from the shard that holds it."""
    return self._file_of[name].read(name)


class ShardedFile(tensor_file.TensorFile):
  """Several shards listed in an index, as one file."""

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
    self._files = {s: _open_one(index.parent / s) for s in shards}
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
    """Reads a tensor from the shard that the index names."""
    return self._files[self._shard_of[name]].read(name)


def open_file(path: pathlib.Path) -> tensor_file.TensorFile:
  """Opens a file by its suffix; a shard opens all shards.

  Raises:
    CheckpointError: It is missing, of another format, damaged, or contains
      code.
  """
  if _ZERO3.fullmatch(path.name):
    raise CheckpointError(tensor_file.partitioned_by_zero3(path))
  match = _SHARD.fullmatch(path.name)
  if match and path.is_file() and path.suffix in (SAFETENSORS, *PICKLES):
    index = path.with_name(f"{match['name']}{match['end']}{INDEX}")
    if index.is_file() and path.name in _weight_map(index).values():
      return ShardedFile(index)
    return JoinedFile(path, _siblings(path, match))
  return _open_one(path)


def _siblings(path: pathlib.Path, match: re.Match) -> list[pathlib.Path]:
  """All shards of the set that contains `path`."""
  width = len(match["number"])
  names = [
    f"{match['name']}-{number:0{width}}-of-{match['count']}{match['end']}"
    for number in range(1, min(int(match["count"]), 10**4) + 1)
  ]
  missing = [n for n in names if not (path.parent / n).is_file()]
  if missing:
    raise CheckpointError(
      f"{path} is one of {match['count']} shards, of which {len(missing)} are"
      f" missing: {', '.join(missing[:10])}. Download them, or the whole"
      " checkpoint again."
    )
  return [path.parent / name for name in names]


def _open_one(path: pathlib.Path) -> tensor_file.TensorFile:
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
  """The checkpoints in a folder and its subfolders.

  In each folder, shards are represented by their index or else by the first
  shard, and safetensors files are preferred to pickles, which mostly have the
  same content. Files of an optimizer's state are ignored. The largest are
  first.

  Raises:
    CheckpointError: There are none, or a download is unfinished.
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
  if not found and any(folder.rglob("*.distcp")):
    raise CheckpointError(
      f"{folder} holds a distributed checkpoint of PyTorch (.distcp). Join it"
      " first: python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
      " FOLDER weights.pt, and convert weights.pt."
    )
  if not found:
    raise CheckpointError(
      f"{folder} holds no checkpoint: expected files that end in"
      f" {SAFETENSORS}, {', '.join(PICKLES)} or {INDEX}."
    )
  return sorted(found, key=lambda path: (-path.stat().st_size, str(path)))


def _preferred(files: list[pathlib.Path]) -> list[pathlib.Path]:
  indices = [p for p in files if p.name.endswith(INDEX)]
  shards = {shard for index in indices for shard in _weight_map(index).values()}
  files = [p for p in files if p.name not in shards and _is_first(p)]
  files = [p for p in files if not _STATE.fullmatch(p.name)]
  safe_indices = [p for p in indices if SAFETENSORS in p.name]
  safe = [p for p in files if p.suffix == SAFETENSORS]
  if safe_indices or safe:
    return safe_indices + safe
  pickles = [p for p in files if p.suffix in PICKLES]
  return indices + pickles


def _is_first(path: pathlib.Path) -> bool:
  """Whether a file is not a shard, or represents all shards."""
  match = _SHARD.fullmatch(path.name)
  if not match:
    return True
  numbers = [
    int(found["number"])
    for found in (_SHARD.fullmatch(p.name) for p in path.parent.iterdir())
    if found
    and found.group("name", "count", "end")
    == match.group("name", "count", "end")
  ]
  return int(match["number"]) == min(numbers)


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
