"""Exports our weights to one safetensors file with the published names.

Names are those of Hunyuan3D 2.1, with the prefixes of its safetensors files, so
that its own code can load models trained here; temporal attention has the names
of `weights/temporal.py`. Tensors are written one at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import output_checks
from sculpt4d_jax.io import paths
from sculpt4d_jax.weights import dit as dit_weights
from sculpt4d_jax.weights import image_encoder as image_encoder_weights
from sculpt4d_jax.weights import model_folders
from sculpt4d_jax.weights import rules as weight_rules
from sculpt4d_jax.weights import temporal as temporal_weights
from sculpt4d_jax.weights import vae as vae_weights
from sculpt4d_jax.weights.tensor_files import safetensors_file
from sculpt4d_jax.weights.tensor_files import tensor_file

# Prefixes of the names of each network in the file.
PREFIXES = {
  "dit": "model.",
  "vae": "vae.",
  "image_encoder": "conditioner." + image_encoder_weights.CONDITIONER_PREFIX,
}
# Metadata key of the latents' scale, if it was measured.
SCALE = "sculpt4d_scale_factor"


def export(
  folder: paths.PathLike,
  output: paths.PathLike,
  *,
  dtype: str | None = None,
  with_temporal: bool = True,
  on_tensor: Callable[[], None] = lambda: None,
) -> list[str]:
  """Writes our weights to one safetensors file with the published names.

  Args:
    folder: Folder written by `pretrained.write` or launch.train.
    output: Output file.
    dtype: Dtype of the result; None keeps that of the folder.
    with_temporal: Whether temporal attention is exported. Without it, Hunyuan3D
      2.1's own code can load the DiT.
    on_tensor: Called after each tensor.

  Returns:
    Names of all tensors.

  Raises:
    ValueError: The folder holds no weights of this project.
    atomic.OutputError: The file cannot be written.
  """
  output_checks.check_file(output)
  parts = model_folders.open_parts(folder)
  tensors, tables = {}, {}
  for name, part in parts.items():
    table = table_of(name, part.config, with_temporal)
    tables[name] = table
    tensors |= _infos(name, table, part, dtype)

  mask = {}
  if "image_encoder" in parts:
    # Never used, but required by code that loads strictly.
    part = parts["image_encoder"]
    name = PREFIXES["image_encoder"] + "embeddings.mask_token"
    shape = (1, part.config.width)
    mask[name] = tensor_file.TensorInfo(shape, dtype or part.dtype)
    tensors |= mask

  def values() -> Iterator[tuple[str, np.ndarray]]:
    for name, part in parts.items():
      prefix = PREFIXES[name]
      for key, array in weight_rules.export_each(tables[name], part.read):
        info = tensors[prefix + key]
        yield (
          prefix + key,
          array.astype(tensor_file.to_dtype(info.dtype), copy=False),
        )
        on_tensor()
    for name in mask:
      yield (
        name,
        np.zeros(
          tensors[name].shape, tensor_file.to_dtype(tensors[name].dtype)
        ),
      )

  metadata = {"format": "pt"}
  if "dit" in parts and parts["dit"].config.temporal_mode != "none":
    if with_temporal:
      metadata[temporal_weights.METADATA] = temporal_weights.HEADS[0]
  scale = parts["vae"].details.get("scale_factor") if "vae" in parts else None
  if scale is not None:
    metadata[SCALE] = repr(scale)
  with atomic.atomic_write(output) as file:
    safetensors_file.write(file, tensors, values(), metadata)
  return list(tensors)


def table_of(
  name: str, config: Any, with_temporal: bool
) -> list[weight_rules.Rule]:
  """The rules by which `export` writes a network."""
  if name == "dit":
    table = dit_weights.rules(config)
    if with_temporal:
      table += temporal_weights.export_rules(config)
    return table
  if name == "vae":
    return vae_weights.rules(config)
  return image_encoder_weights.rules(config.num_layers)


def _infos(
  name: str,
  table: Sequence[weight_rules.Rule],
  part: model_folders.StoredPart,
  dtype: str | None,
) -> Mapping[str, tensor_file.TensorInfo]:
  """Shapes of an export, found with a broadcast of one byte."""

  def read(path: str, index: tuple[int, ...]) -> np.ndarray:
    shape = part.shapes[path][len(index) :]
    return np.broadcast_to(np.zeros((), np.int8), shape)

  missing = {
    path
    for rule in table
    for path, _ in map(weight_rules.split_path, rule.targets)
    if path not in part.shapes
  }
  if missing:
    raise UserError(
      f"The {name} lacks {sorted(missing)[:5]}; export it without temporal"
      " attention (--notemporal) if that is what is missing."
    )
  prefix = PREFIXES[name]
  return {
    prefix + key: tensor_file.TensorInfo(array.shape, dtype or part.dtype)
    for key, array in weight_rules.export_each(table, read)
  }
