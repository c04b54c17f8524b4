"""All formats that mesh sequences are written in, by name.

A new format is a module here with a function `write(path, meshes, fps, *,
times)`, and a line in EXPORTERS. Writers are imported when they are used, so
that a program's help can list the formats at once.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import importlib

from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import usd_modules


@dataclasses.dataclass(frozen=True)
class Exporter:
  """A format of mesh sequences.

  Attributes:
    file: Name of the file; with a *, a file for every frame.
    function: Module in this package and its function, which takes the path,
      meshes, frames a second and `times`, seconds at which frames start.
    purpose: Use of the format, for help texts.
    is_default: Whether the format is written by default.
    module: A module of the optional package that the writer needs.
    extra: The extra that installs this package.
  """

  file: str
  function: str
  purpose: str
  is_default: bool = False
  module: str | None = None
  extra: str | None = None

  @property
  def write(self) -> Callable[..., None]:
    """The writer itself."""
    module, _, name = self.function.partition(".")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)

  def is_available(self) -> bool:
    """Whether the optional package is installed."""
    if self.module is None:
      return True
    try:
      importlib.import_module(self.module)
    except ImportError:
      return False
    return True

  def need(self) -> str:
    """The sentence that says what to install."""
    return f"It needs an extra: pip install 'sculpt4d-jax[{self.extra}]'."


EXPORTERS: Mapping[str, Exporter] = {
  "ply": Exporter(
    "frame_*.ply", "ply_obj.write_frames", "a mesh a frame", is_default=True
  ),
  "obj": Exporter("frame_*.obj", "ply_obj.write_frames", "the same as text"),
  "glb": Exporter(
    "animation.glb",
    "glb.write_for_players",
    "one animation for glTF viewers",
    is_default=True,
  ),
  "usd": Exporter(
    "animation.usdc",
    "usd.write_animated_usd",
    "one animation for film and game tools",
    is_default=True,
    module="pxr",
    extra="usd",
  ),
  "usdz": Exporter(
    "animation.usdz",
    "usd.write_animated_usd",
    "the package that phones open",
    module="pxr",
    extra="usd",
  ),
}

DEFAULT = tuple(name for name, each in EXPORTERS.items() if each.is_default)


def load_libraries(names: Iterable[str] | None) -> None:
  """Imports the libraries of formats; to be called before threads write them.

  USD's library gives the interpreter away while the system loads it. If another
  thread then has it and needs the system's loader, both wait for ever.

  Args:
    names: Names out of `EXPORTERS`; None takes the default ones.
  """
  chosen = [EXPORTERS[name] for name in (DEFAULT if names is None else names)]
  if any(each.module == "pxr" and each.is_available() for each in chosen):
    usd_modules.load()


def check(names: Iterable[str]) -> tuple[str, ...]:
  """The named formats, without repetitions.

  Raises:
    UserError: A name is no format, or there are none.
    MissingPackageError: A format's optional package is not installed.
  """
  found = tuple(dict.fromkeys(names))
  unknown = [name for name in found if name not in EXPORTERS]
  if unknown or not found:
    raise UserError(
      f"formats={','.join(found) or 'none'}: expected some of"
      f" {', '.join(EXPORTERS)}."
    )
  for name in found:
    if not EXPORTERS[name].is_available():
      raise MissingPackageError(
        f"{name} cannot be written. {EXPORTERS[name].need()}"
      )
  return found


def parse(text: str) -> tuple[str, ...]:
  """The formats of a comma-separated list; see `check`."""
  return check(name.strip() for name in text.split(",") if name.strip())


def help_text() -> str:
  """What `--formats` takes, for the help of programs."""
  formats = (
    f"{name} ({each.purpose})"
    if each.extra is None
    else f"{name} ({each.purpose}; extra {each.extra})"
    for name, each in EXPORTERS.items()
  )
  return (
    f"formats to write, with commas between them: {', '.join(formats)};"
    f" default: {','.join(DEFAULT)}, as far as their packages are installed"
  )
