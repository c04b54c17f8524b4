"""Which tensors of a checkpoint belong to which network.

Released files hold one network or several, nested or flat, with or without
words in front of their names: `model.`, `vae.`, `conditioner.main_image_encoder
.model.`, `module.`. Each network has tensors whose last words no other has;
what stands in front of those is the network's prefix in this file, and every
name with that prefix is the network's.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from sculpt4d_jax.models import networks
from sculpt4d_jax.weights.tensor_files import tensor_file

CheckpointError = tensor_file.CheckpointError

PARTS = tuple(networks.KINDS)

# One set of names for each naming in use.
_MARKERS = {
  "dit": (
    (
      "x_embedder.weight",
      "t_embedder.mlp.0.weight",
      "final_layer.linear.weight",
    ),
  ),
  "vae": (
    (
      "post_kl.weight",
      "geo_decoder.query_proj.weight",
      "geo_decoder.output_proj.weight",
    ),
  ),
  "image_encoder": (
    (
      "embeddings.cls_token",
      "embeddings.position_embeddings",
      "embeddings.patch_embeddings.projection.weight",
    ),
    ("cls_token", "pos_embed", "patch_embed.proj.weight"),
  ),
}


@dataclasses.dataclass(frozen=True)
class Part:
  """A network's tensors in a file, without their prefix.

  Attributes:
    file: File that contains them.
    prefix: Prefix of every name in the file.
    names: Names without the prefix.
  """

  file: tensor_file.TensorFile
  prefix: str
  names: tuple[str, ...]

  @property
  def tensors(self) -> Mapping[str, tensor_file.TensorInfo]:
    """Shape and dtype of every tensor, by its name without the prefix."""
    infos = self.file.tensors
    return {name: infos[self.prefix + name] for name in self.names}

  def read(self, name: str) -> np.ndarray:
    """Reads a tensor by its name without the prefix."""
    return self.file.read(self.prefix + name)


def split(
  file: tensor_file.TensorFile, prefixes: Mapping[str, str] | None = None
) -> tuple[dict[str, Part], list[str]]:
  """Finds the networks in a file.

  Args:
    file: The checkpoint.
    prefixes: Network -> prefix, if the file has several copies of one.

  Returns:
    The networks, and the names that belong to none.

  Raises:
    CheckpointError: A network occurs twice, or two share a prefix.
  """
  found = {}
  for part in PARTS:
    prefix = (prefixes or {}).get(part)
    if prefix is None:
      prefix = _prefix(file, part)
    if prefix is not None:
      found[part] = prefix
  if len(set(found.values())) < len(found):
    raise CheckpointError(
      f"{file.path} holds several networks whose names have the same prefix:"
      f" {found}. Rename them with a rule file (--rules)."
    )
  names: dict[str, list[str]] = {part: [] for part in found}
  rest = []
  by_length = sorted(found.items(), key=lambda item: -len(item[1]))
  for name in file.tensors:
    for part, prefix in by_length:
      if name.startswith(prefix):
        names[part].append(name[len(prefix) :])
        break
    else:
      rest.append(name)
  return {
    part: Part(file, found[part], tuple(names[part])) for part in found
  }, rest


def _prefix(file: tensor_file.TensorFile, part: str) -> str | None:
  whole, partly = [], []
  for markers in _MARKERS[part]:
    counts: dict[str, int] = {}
    for name in file.tensors:
      for marker in markers:
        prefix = name.removesuffix(marker)
        if prefix != name and (not prefix or prefix.endswith(".")):
          counts[prefix] = counts.get(prefix, 0) + 1
    whole += [p for p, count in counts.items() if count == len(markers)]
    # The usual naming alone is recognised by a part of its names.
    partly = partly or list(counts)
  best = whole or partly
  if len(best) > 1:
    raise CheckpointError(
      f"{file.path} holds {len(best)} copies of the {part}, with the prefixes"
      f" {_shown(best)}. Say which one in a rule file (--rules):"
      f' {{"prefixes": {{"{part}": "{best[0]}"}}}}.'
    )
  return best[0] if best else None


def _shown(prefixes: Sequence[str]) -> str:
  return ", ".join(repr(prefix) for prefix in prefixes)
