"""Finds the files that are shipped with the code: small weights and a clip.

In a checkout they lie in the folders `weights/` and `demo/`. A wheel has the
same folders here.
"""

import os
import pathlib

_HERE = pathlib.Path(__file__).resolve().parent


def folder() -> pathlib.Path:
  """The folder that `weights/` and `demo/` are in."""
  return _HERE if (_HERE / "weights").is_dir() else _HERE.parents[1]


def find(path: str | os.PathLike) -> pathlib.Path:
  """A path as the user means it: their own file, else the shipped one.

  Args:
    path: Relative to the working directory, or a name such as "weights/tiny".

  Returns:
    The path as given, unless it does not exist and a shipped file has its name.
  """
  given = pathlib.Path(path).expanduser()
  shipped = folder() / given
  return shipped if not given.exists() and shipped.exists() else given


def demo_clip() -> pathlib.Path:
  """A short clip that the shipped model was not trained on."""
  return folder() / "demo" / "clip.mp4"


def weight_names() -> list[str]:
  """Names of the shipped models: "tiny" and so on."""
  found = (folder() / "weights").glob("*/dit.safetensors")
  return sorted(path.parent.name for path in found)
