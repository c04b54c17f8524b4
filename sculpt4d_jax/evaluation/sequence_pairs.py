"""Finds which predicted mesh sequence belongs to which true one; reads both.

A sequence is a folder with `frame_0000.ply`, `frame_0001.ply`, ... for its
frames, or an animated GLB or USD file as this project writes them. Either both
paths are sequences, or both are folders of sequences, and those of the same
name (without suffix) belong together.
"""

from collections.abc import Sequence
import dataclasses
import os
import pathlib

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.io.meshes import usd

TriangleMesh = mesh_lib.TriangleMesh
PathLike = str | os.PathLike

_GLB_SUFFIX = ".glb"
_MAX_NAMES = 8  # Listed in a message.


@dataclasses.dataclass(frozen=True)
class SequencePair:
  """Where one prediction and its truth lie."""

  name: str
  predicted: pathlib.Path
  truth: pathlib.Path

  def read(self) -> tuple[list[TriangleMesh], list[TriangleMesh]]:
    """The predicted and the true meshes, one a frame."""
    return read_sequence(self.predicted), read_sequence(self.truth)


def read_sequence(path: PathLike) -> list[TriangleMesh]:
  """Reads the meshes of a folder of PLY files, a GLB or a USD file."""
  path = local_copies.fetch(path)
  if path.is_dir():
    return ply_obj.read_mesh_sequence(path)
  if path.suffix.lower() == _GLB_SUFFIX:
    meshes, _ = glb.read_animated_glb(path)
  else:
    meshes, _ = usd.read_animated_usd(path)
  return meshes


def find_pairs(predicted: PathLike, truth: PathLike) -> list[SequencePair]:
  """Pairs the sequences of two folders by name, in the order of their names.

  Args:
    predicted: A sequence, or a folder of sequences.
    truth: The same; it may hold more sequences than were predicted.

  Raises:
    ValueError: A folder is missing, holds no sequence, or the two do not fit.
  """
  predicted, truth = _existing(predicted), _existing(truth)
  if _is_sequence(predicted) != _is_sequence(truth):
    single, many = (
      (predicted, truth) if _is_sequence(predicted) else (truth, predicted)
    )
    raise ValueError(
      f"{single} is one sequence, but {many} is a folder of several; give"
      " two of a kind."
    )
  if _is_sequence(predicted):
    return [SequencePair(_name(predicted) or "sequence", predicted, truth)]
  predictions, truths = _sequences(predicted), _sequences(truth)
  missing = [name for name in predictions if name not in truths]
  if missing:
    raise ValueError(
      f"{truth} lacks {len(missing)} of the {len(predictions)} predicted"
      f" sequences: {_enumerate(missing)}."
    )
  return [
    SequencePair(name, path, truths[name]) for name, path in predictions.items()
  ]


def _existing(path: PathLike) -> pathlib.Path:
  path = local_copies.fetch(path)
  if path.is_dir() or (path.is_file() and _is_sequence(path)):
    return path.resolve()
  what = "is not a mesh sequence" if path.exists() else "does not exist"
  raise ValueError(
    f"{path} {what}; expected a folder with frame_0000.ply, frame_0001.ply,"
    f" ..., a {_GLB_SUFFIX} or {', '.join(usd.SUFFIXES)} file, or a"
    " folder of these."
  )


def _is_sequence(path: pathlib.Path) -> bool:
  if path.is_dir():
    return any(path.glob("frame_*.ply"))
  return path.suffix.lower() in (_GLB_SUFFIX, *usd.SUFFIXES)


def _name(path: pathlib.Path) -> str:
  return path.name if path.is_dir() else path.stem


def _sequences(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """The sequences in a folder by name."""
  sequences = {}
  for path in sorted(folder.iterdir()):
    if not _is_sequence(path):
      continue
    if _name(path) in sequences:
      raise ValueError(
        f"{folder} has two sequences named {_name(path)}:"
        f" {sequences[_name(path)].name} and {path.name}."
      )
    sequences[_name(path)] = path
  if not sequences:
    raise ValueError(
      f"{folder} holds neither frame_*.ply files nor sequences (folders with"
      " such files, GLB or USD files)."
    )
  return sequences


def _enumerate(names: Sequence[str]) -> str:
  more = ", ..." if len(names) > _MAX_NAMES else ""
  return ", ".join(names[:_MAX_NAMES]) + more
