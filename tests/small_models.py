"""Folders of initial weights for tests."""

import pathlib

from flax import nnx
import ml_collections

from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.weights import model_files


def write(
  folder: pathlib.Path, config: ml_collections.ConfigDict, **details: float
) -> pathlib.Path:
  """Writes a preset's networks with initial values; returns the folder.

  Args:
    folder: It is made if it does not exist.
    config: A preset.
    **details: Further facts in the autoencoder's file, such as its scale.
  """
  folder.mkdir(parents=True, exist_ok=True)
  networks = preset_lib.from_config(config).model.parts()
  for name, (kind, part) in networks.items():
    params = nnx.state(kind(part, rngs=nnx.Rngs(0)), nnx.Param)
    said = details if name == "vae" else {}
    model_files.save(folder / f"{name}.safetensors", params, part, said)
  return folder
