"""Finds the shipped preset of a folder of weights."""

from collections.abc import Mapping
import pathlib

from sculpt4d_jax import preset_files
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights import model_folders


def preset_of(folder: pathlib.Path) -> str:
  """Name of the shipped preset whose networks a folder of weights holds."""
  stored = model_folders.open_parts(folder)
  for name in preset_files.names():
    config = preset_lib.from_config(preset_files.read(name))
    # A file whose preset has another name is a variant.
    if config.name == name and _fits(folder, stored, config):
      return name
  raise UserError(
    f"The networks in {folder} have the sizes of no shipped preset"
    f" ({', '.join(preset_files.names())}); name theirs too:"
    f" load(preset, {str(folder)!r})."
  )


def _fits(
  folder: pathlib.Path,
  stored: Mapping[str, model_folders.StoredPart],
  config: preset_lib.Preset,
) -> bool:
  for name, (_, ours) in config.model.parts().items():
    if name in stored:
      found = model_files.fields(stored[name].config)
      try:
        model_files.check_config(folder / name, found, ours)
      except model_files.ModelFileError:
        return False
  return True
