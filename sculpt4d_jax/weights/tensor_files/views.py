"""A view of a tensor file with other names and transformed tensors."""

from collections.abc import Callable, Mapping
import dataclasses

import numpy as np

from sculpt4d_jax.weights.tensor_files import tensor_file

Change = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Entry:
  """A tensor of a view.

  Attributes:
    source: Name in the underlying file.
    info: Shape and dtype that the view shows.
    change: Applied to the data when they are read; None changes nothing.
  """

  source: str
  info: tensor_file.TensorInfo
  change: Change | None = None


class View(tensor_file.TensorFile):
  """Some tensors of a file.

  Attributes:
    original: Names in the file on disk, by the names of the view.
  """

  def __init__(
    self, file: tensor_file.TensorFile, entries: Mapping[str, Entry]
  ):
    below = file.original if isinstance(file, View) else {}
    self._file = file
    self._entries = dict(entries)
    self.original = {
      name: below.get(entry.source, entry.source)
      for name, entry in entries.items()
    }
    infos = {name: entry.info for name, entry in entries.items()}
    super().__init__(file.path, infos, file.metadata)

  def read(self, name: str) -> np.ndarray:
    """Reads a tensor by its name in the view, and applies its change."""
    entry = self._entries[name]
    array = self._file.read(entry.source)
    return entry.change(array) if entry.change else array


def renamed(file: tensor_file.TensorFile, sources: Mapping[str, str]) -> View:
  """A view with other names.

  Args:
    file: The file.
    sources: Names in the file by those of the view; others are left out.
  """
  return View(
    file,
    {new: Entry(old, file.tensors[old]) for new, old in sources.items()},
  )


def changed(
  file: tensor_file.TensorFile, changes: Mapping[str, Change]
) -> View:
  """A view with the same names, in which some tensors are transformed."""
  return View(
    file,
    {
      name: Entry(name, info, changes.get(name))
      for name, info in file.tensors.items()
    },
  )
