"""Pairs predicted mesh sequences with true ones, and reads them.

`sequences` lists what a sequence may be. Either both paths are sequences, or
both are folders of sequences, which are paired by name (without suffix).
"""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
from typing import Any

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io import local_copies

TriangleMesh = mesh_lib.TriangleMesh
ShapeSequence = sequences.ShapeSequence
PathLike = str | os.PathLike

_PATH = (str, os.PathLike)
_MAX_NAMES = 8  # Listed in a message.


@dataclasses.dataclass(frozen=True)
class SequencePair:
  """The paths of a prediction and its truth.

  Attributes:
    name: Name of the clip.
    predicted: Path of the prediction; None if it is missing for a true clip.
    truth: Path of the truth.
  """

  name: str
  predicted: pathlib.Path | None
  truth: pathlib.Path

  def read_shapes(self) -> tuple[ShapeSequence | None, ShapeSequence]:
    """The predicted and the true sequence.

    Animations are evaluated at as many times as the other side has frames.

    Raises:
      SequenceError: A file is damaged.
    """
    if self.predicted is None:
      return None, sequences.read(self.truth)
    if sequences.is_played(self.truth):
      predicted = sequences.read(self.predicted)
      return predicted, sequences.read(self.truth, predicted.num_frames)
    truth = sequences.read(self.truth)
    return sequences.read(self.predicted, truth.num_frames), truth

  def read(self) -> tuple[list[TriangleMesh], list[TriangleMesh]]:
    """The predicted and the true meshes, one a frame.

    Raises:
      ValueError: A file is damaged, or holds points instead of meshes.
    """
    if self.predicted is None:
      raise UserError(f"{self.name}: there is no prediction to read.")
    pair = self.read_shapes()
    for path, shapes in zip((self.predicted, self.truth), pair):
      if shapes.cloud is not None:
        raise UserError(
          f"{path} holds points; the project's own metrics need meshes."
          " Choose --protocol=actionbench, motion324 or morphos."
        )
    return list(pair[0].meshes), list(pair[1].meshes)


def read_sequence(path: PathLike) -> list[TriangleMesh]:
  """Reads the meshes of a sequence; see `sequences`."""
  return list(sequences.read(local_copies.fetch(path)).meshes)


@dataclasses.dataclass(frozen=True)
class MemoryPair:
  """Two sequences, of which one or both are in memory.

  Attributes:
    name: Name of the clip.
    predicted: List of meshes, an object with `meshes`, or a path.
    truth: The true sequence, in one of these forms.
  """

  name: str
  predicted: Any
  truth: Any

  def read_shapes(self) -> tuple[ShapeSequence, ShapeSequence]:
    """The predicted and the true sequence.

    An animation in a file is played at as many times as the other side has
    frames.

    Raises:
      SequenceError: A file is damaged.
      ValueError: A side is no sequence of meshes.
    """
    sides = {"predicted": self.predicted, "truth": self.truth}
    shapes = {
      name: _in_memory(side, name)
      for name, side in sides.items()
      if not isinstance(side, _PATH)
    }
    frames = next(iter(shapes.values())).num_frames
    for name, side in sides.items():
      if name not in shapes:
        shapes[name] = sequences.read(_existing(side), frames)
    return shapes["predicted"], shapes["truth"]


def _in_memory(sequence: Any, name: str) -> ShapeSequence:
  """Meshes, or an object with `meshes`, as a sequence."""
  if isinstance(sequence, ShapeSequence):
    return sequence
  meshes = getattr(sequence, "meshes", sequence)
  is_list = isinstance(meshes, Sequence)
  odd = next((m for m in meshes if not _is_mesh(m)), None) if is_list else None
  if not is_list or odd is not None:
    got = type(sequence).__name__
    if odd is not None:
      got += f" with a {type(odd).__name__}"
    raise UserError(
      f"{name}: expected a path, an object with `meshes` or a list of meshes,"
      f" which have `vertices` and `faces`; got a {got}."
    )
  return ShapeSequence(
    tuple(TriangleMesh(m.vertices, m.faces) for m in meshes), source="memory"
  )


def _is_mesh(value: Any) -> bool:
  return hasattr(value, "vertices") and hasattr(value, "faces")


def find_pairs(
  predicted: PathLike, truth: PathLike, *, every_truth: bool = False
) -> list[SequencePair]:
  """Pairs the sequences of two folders by name, in the order of their names.

  Args:
    predicted: A sequence, or a folder of sequences.
    truth: The same; it may hold more sequences than were predicted.
    every_truth: Whether to include true sequences without a prediction, which
      is then None.

  Raises:
    ValueError: A folder is missing, holds no sequence, or the two do not fit.
  """
  predicted, truth = _existing(predicted), _existing(truth)
  singles = [sequences.is_sequence(path) for path in (predicted, truth)]
  if singles[0] != singles[1]:
    single, many = (predicted, truth) if singles[0] else (truth, predicted)
    raise UserError(
      f"{single} is one sequence, but {many} is a folder of several; give"
      " two of a kind."
    )
  if singles[0]:
    name = sequences.sequence_name(predicted) or "sequence"
    return [SequencePair(name, predicted, truth)]
  predictions, truths = _sequences(predicted), _sequences(truth)
  missing = [name for name in predictions if name not in truths]
  if missing:
    raise UserError(
      f"{truth} lacks {len(missing)} of the {len(predictions)} predicted"
      f" sequences: {_enumerate(missing)}."
    )
  names = truths if every_truth else predictions
  return [
    SequencePair(name, predictions.get(name), truths[name]) for name in names
  ]


def _existing(path: PathLike) -> pathlib.Path:
  path = local_copies.fetch(path)
  if path.is_dir() or (path.is_file() and sequences.is_sequence(path)):
    return path.resolve()
  what = "is not a mesh sequence" if path.exists() else "does not exist"
  raise UserError(
    f"{path} {what}; expected a folder with frame_0000.ply, frame_0001.ply,"
    " ... (or mesh_00.glb, ...), a .glb, USD, Alembic, .npy or .zip file, or a"
    " folder of these."
  )


def _sequences(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """The sequences in a folder by name."""
  found = {}
  for path in sorted(folder.iterdir()):
    if not sequences.is_sequence(path):
      continue
    name = sequences.sequence_name(path)
    if name in found:
      raise UserError(
        f"{folder} has two sequences named {name}: {found[name].name} and"
        f" {path.name}."
      )
    found[name] = path
  if not found:
    raise UserError(
      f"{folder} holds neither frame_*.ply files nor sequences (folders with"
      " numbered meshes; GLB, USD, Alembic, .npy or .zip files)."
    )
  return found


def _enumerate(names: Sequence[str]) -> str:
  more = ", ..." if len(names) > _MAX_NAMES else ""
  return ", ".join(names[:_MAX_NAMES]) + more
