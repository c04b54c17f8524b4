"""Reads presets by name or file, and changes their fields.

A name is that of a file in `configs/`, optionally with an argument after a
colon: "tiny", "pods:v5p-64". A path ending in .py, or .py:ARGUMENT, is a user's
file, usually based on another preset:

  from sculpt4d_jax.configs import tiny

  def get_config():
    config = tiny.get_config()
    config.sampling.num_frames = 12
    return config
"""

import ast
from collections.abc import Iterable, Mapping
import difflib
import importlib
import importlib.util
import os
import pathlib
import pkgutil
import types
from typing import Any

import ml_collections

from sculpt4d_jax import configs
from sculpt4d_jax.errors import UserError

_SUFFIX = ".py"


def names() -> list[str]:
  """Names of the built-in presets."""
  return sorted(
    module.name for module in pkgutil.iter_modules(configs.__path__)
  )


def read(preset: str | os.PathLike) -> ml_collections.ConfigDict:
  """Reads a preset.

  Args:
    preset: A name or a file, see the module.

  Raises:
    ValueError: There is no such preset, or its file has an error.
  """
  text = os.fspath(preset)
  name, colon, argument = text.partition(":")
  if text.endswith(_SUFFIX):  # The colon may follow a drive letter.
    name, colon, argument = text, "", ""
  elif f"{_SUFFIX}:" in text:
    name, colon, argument = text.rpartition(":")
  module = _load_file(name) if name.endswith(_SUFFIX) else _load_named(name)
  if not hasattr(module, "get_config"):
    raise UserError(f"{name} is no preset: it defines no get_config().")
  config = module.get_config(argument) if colon else module.get_config()
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(
      f"{name}: get_config() must return a ConfigDict, got"
      f" {type(config).__name__}."
    )
  return config


def change(
  config: ml_collections.ConfigDict, changes: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  """Changes fields of a preset, in place.

  Args:
    config: A preset.
    changes: Values by field, for instance {"sampling.num_steps": 20}. Text is
      parsed as the field's type, so {"sampling.num_steps": "20"} is the same.

  Returns:
    The same config.

  Raises:
    ValueError: A field is unknown or its value has another type.
  """
  for path, value in changes.items():
    *sections, field = path.split(".")
    section = config
    for name in sections:
      section = _member(section, name, path)
      if not isinstance(section, ml_collections.ConfigDict):
        raise UserError(f"{path}: {name} has no fields.")
    if isinstance(_member(section, field, path), ml_collections.ConfigDict):
      fields = ", ".join(f"{path}.{name}" for name in section[field])
      raise UserError(f"{path} is a section; change one of {fields}.")
    _assign(section, field, value, path)
  return config


def parse_changes(assignments: Iterable[str]) -> dict[str, str]:
  """Parses changes from a command line, such as "sampling.num_steps=20".

  Raises:
    ValueError: A change has no equals sign.
  """
  changes = {}
  for assignment in assignments:
    path, equals, text = assignment.partition("=")
    if not equals:
      raise UserError(
        f"{assignment!r} changes nothing: write FIELD=VALUE, for instance"
        " sampling.num_steps=20."
      )
    changes[path.strip()] = text
  return changes


def _load_named(name: str) -> types.ModuleType:
  if name not in names():
    near = difflib.get_close_matches(name, names(), 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
      f"There is no preset {name!r}: {hint}choose one of"
      f" {', '.join(names())}, or give a {_SUFFIX} file."
    )
  return importlib.import_module(f"{configs.__name__}.{name}")


def _load_file(name: str) -> types.ModuleType:
  path = pathlib.Path(name).expanduser()
  if not path.is_file():
    raise UserError(
      f"{path}: there is no such preset file; the shipped presets are"
      f" {', '.join(names())}."
    )
  spec = importlib.util.spec_from_file_location(f"preset_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except (ImportError, SyntaxError) as error:
    raise UserError(f"{path} cannot be read: {error}.") from error
  return module


def _member(section: ml_collections.ConfigDict, name: str, path: str) -> Any:
  if name not in section:
    near = difflib.get_close_matches(name, list(section), 1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise UserError(f"{path}: the preset has no field {name!r}{hint}")
  return section[name]


def _assign(
  section: ml_collections.ConfigDict, field: str, value: Any, path: str
) -> None:
  """Sets a field; text is parsed as the field's type."""
  kind = section.get_type(field)
  given = value
  try:
    if isinstance(value, str) and kind is not str:
      value = ast.literal_eval(_python_literal(value))
    if kind is tuple:
      value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    section[field] = value
  except (ValueError, SyntaxError, TypeError) as error:
    raise UserError(
      f"{path}={given}: expected {_KINDS.get(kind, kind.__name__)}."
    ) from error


def _python_literal(text: str) -> str:
  """Converts common spellings of booleans, and unquoted names in lists."""
  words = {"true": "True", "false": "False", "none": "None"}
  word = words.get(text.strip().lower())
  if word:
    return word
  bare = [part.strip() for part in text.split(",") if part.strip()]
  if bare and all(part.isidentifier() for part in bare):
    return repr(tuple(bare))
  return text


_KINDS = {
  int: "a whole number",
  float: "a number",
  bool: "true or false",
  tuple: "values with commas between them",
}
