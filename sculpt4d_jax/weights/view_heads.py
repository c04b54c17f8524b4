"""The file of a view head, next to the other weights of a folder."""

from collections.abc import Mapping
import pathlib
from typing import Any

from flax import nnx

from sculpt4d_jax.models import view_head
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights.tensor_files import safetensors_file

FILE = "view_head.safetensors"


def save(
  folder: pathlib.Path,
  head: view_head.ViewHead,
  details: Mapping[str, Any],
) -> pathlib.Path:
  """Writes a head.

  Args:
    folder: Folder of weights.
    head: The head.
    details: Description of the training; JSON values.

  Returns:
    The file.

  Raises:
    atomic.OutputError: The file cannot be written.
  """
  path = folder / FILE
  model_files.save(path, nnx.state(head), head.config, details)
  return path


def load(folder: pathlib.Path) -> view_head.ViewHead | None:
  """The head of a folder of weights, or None if it has none.

  Args:
    folder: Local folder of weights.

  Raises:
    ModelFileError: The file is damaged.
  """
  path = folder / FILE
  if not path.is_file():
    return None
  metadata = safetensors_file.SafetensorsFile(path).metadata
  config = _config(path, model_files.parse_header(path, metadata)["config"])
  graphdef, params = nnx.split(
    nnx.eval_shape(lambda: view_head.ViewHead(config, rngs=nnx.Rngs(0)))
  )
  params, _ = model_files.load(path, params, config)
  return nnx.merge(graphdef, params)


def _config(
  path: pathlib.Path, stored: Mapping[str, Any]
) -> view_head.ViewHeadConfig:
  try:
    return view_head.ViewHeadConfig(**stored)
  except (TypeError, ValueError) as error:
    raise model_files.ModelFileError(
      f"{path} does not describe a view head: {error}."
    ) from error
