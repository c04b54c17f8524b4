"""Follows the fields of a typed preset to the functions that read them first.

See `config_walk.py`, the program.
"""

import collections
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import pathlib
import sys
from typing import Any

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# From the packages that others import to those that import others.
_ORDER = (
  ("array_types", "errors", "kernels"),
  ("geometry", "diffusion", "partitioning"),
  ("models", "rendering", "io"),
  ("data", "weights"),
  ("inference",),
  ("evaluation",),
  ("training",),
  ("benchmarks", "launch"),
)
_RANK = {name: rank for rank, names in enumerate(_ORDER) for name in names}

# This program stands in its place.
_PROGRAM = ("launch/train.py", "main")
_FOLLOWER = str(pathlib.Path(__file__).resolve().with_name("config_walk.py"))

Stay = tuple[str, str]  # File from the project's root, function.


@dataclasses.dataclass(frozen=True)
class Walk:
  """The way of a field to the function that reads it first.

  Attributes:
    stays: Functions from the program to the reader, each once in a row.
  """

  stays: tuple[Stay, ...]

  @property
  def rooms(self) -> int:
    """Number of files."""
    return len({file for file, _ in self.stays})

  @property
  def climbs(self) -> int:
    """Number of calls into a package that may import the caller's."""
    ranks = [_rank(file) for file, _ in self.stays]
    return sum(after > before for before, after in zip(ranks, ranks[1:]))


def _rank(file: str) -> int:
  parts = pathlib.PurePath(file).with_suffix("").parts
  return _RANK[parts[1] if parts[0] == "sculpt4d_jax" else parts[0]]


def sections(preset: Any, name: str = "") -> Iterator[tuple[str, Any]]:
  """Name and object of a preset and of all sections inside of it."""
  yield name, preset
  for field in dataclasses.fields(preset):
    value = getattr(preset, field.name)
    if dataclasses.is_dataclass(value):
      yield from sections(value, f"{name}.{field.name}".lstrip("."))


@contextlib.contextmanager
def followed(preset: Any) -> Iterator[dict[str, Walk]]:
  """Fills a dictionary, field -> walk, with what is read meanwhile."""
  names = {id(section): name for name, section in sections(preset)}
  kinds = {type(section) for _, section in sections(preset)}
  walks: dict[str, Walk] = {}

  def getter(kind: type[Any]) -> Any:
    plain = kind.__getattribute__
    leaves = {field.name for field in dataclasses.fields(kind)}

    def get(self: Any, name: str) -> Any:
      value = plain(self, name)
      section = names.get(id(self))
      if section is not None and name in leaves:
        # A nested section is passed on here; its own fields are used later.
        key = f"{section}.{name}".lstrip(".")
        if key not in walks and not dataclasses.is_dataclass(value):
          walks[key] = Walk(_stays())
      return value

    return get

  for kind in kinds:
    kind.__getattribute__ = getter(kind)
  try:
    yield walks
  finally:
    for kind in kinds:
      del kind.__getattribute__


def _stays() -> tuple[Stay, ...]:
  """Functions of this project on the stack, from the program on."""
  stays = []
  frame = sys._getframe(2)
  while frame is not None and frame.f_code.co_filename != _FOLLOWER:
    path = pathlib.Path(frame.f_code.co_filename)
    # Lambdas and comprehensions stand for the function around them.
    function = frame.f_code.co_qualname.partition(".<locals>")[0]
    is_ours = path.is_relative_to(_ROOT) and ".venv" not in path.parts
    if is_ours and frame.f_code.co_filename != __file__:
      stay = (str(path.relative_to(_ROOT)), function)
      if not stays or stays[-1] != stay:
        stays.append(stay)
    frame = frame.f_back
  return (_PROGRAM, *reversed(stays))


def table(walks: Mapping[str, Walk]) -> str:
  """The longest walk of each section, in Markdown."""
  groups = collections.defaultdict(list)
  for name, walk in walks.items():
    groups[name.rpartition(".")[0] or "(the preset)"].append(walk)
  rows = [
    "| section | fields read | most stays | rooms | climbs |",
    "|---|---|---|---|---|",
  ]
  for section, found in groups.items():
    longest = max(found, key=lambda walk: len(walk.stays))
    rows.append(
      f"| `{section}` | {len(found)} | {len(longest.stays)} |"
      f" {max(walk.rooms for walk in found)} |"
      f" {max(walk.climbs for walk in found)} |"
    )
  return "\n".join(rows)
