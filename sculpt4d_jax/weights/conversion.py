"""Finds released checkpoints, compares them with networks, converts them."""

from collections.abc import Callable, Mapping, Sequence
import os
from typing import Any

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.weights import checkpoint_parts
from sculpt4d_jax.weights import pretrained
from sculpt4d_jax.weights import rule_files
from sculpt4d_jax.weights.tensor_files import hub
from sculpt4d_jax.weights.tensor_files import open_file


def plan(
  sources: Sequence[str],
  configs: Mapping[str, Any],
  *,
  parts: Sequence[str] = checkpoint_parts.PARTS,
  rules: str | os.PathLike | None = None,
  temporal_heads: str | None = None,
  seed: int = 0,
  adapter_alpha: float | None = None,
  revision: str | None = None,
  cache: str | None = None,
  offline: bool = False,
) -> pretrained.Conversion:
  """Finds checkpoints and compares them with networks; writes nothing.

  Args:
    sources: Files, folders, or Hugging Face repositories (OWNER/NAME). A
      network that several contain is taken from the first.
    configs: Configurations of the networks, by part.
    parts: Names of the networks that are wanted.
    rules: A JSON or TOML file of rules for other names.
    temporal_heads: Layout of the heads of temporal attention, if the checkpoint
      does not specify it.
    seed: Seed of the temporal layers that a checkpoint lacks.
    adapter_alpha: Alpha of LoRA adapters whose files do not say it.
    revision: Branch, tag or commit of a repository.
    cache: Folder of downloads; None is huggingface_hub's own.
    offline: Whether only earlier downloads are used, without a connection.

  Raises:
    ValueError: A network is missing, or names, shapes or dtypes do not match.
  """
  unknown = set(parts) - set(checkpoint_parts.PARTS)
  if unknown or not parts:
    raise UserError(
      f"Networks {', '.join(parts) or 'none'}: choose some of"
      f" {', '.join(checkpoint_parts.PARTS)}."
    )
  found = rule_files.read(rules) if rules else rule_files.RuleFile()
  files = []
  for source in sources:
    paths = hub.resolve(source, revision=revision, cache=cache, offline=offline)
    files += [open_file.open_file(path) for path in paths]
  wanted = {n: configs[n] for n in checkpoint_parts.PARTS if n in parts}
  return pretrained.plan_conversion(
    files,
    wanted,
    heads=temporal_heads,
    rules=found,
    seed=seed,
    adapter_alpha=adapter_alpha,
  )


def write(
  conversion: pretrained.Conversion,
  folder: str | os.PathLike,
  *,
  sources: Sequence[str],
  dtype: str = pretrained.DTYPES[0],
  overwrite: bool = False,
  on_step: Callable[[], None] = lambda: None,
) -> None:
  """Writes a folder of weights; see `pretrained.write`.

  Args:
    conversion: Conversion from `plan`.
    folder: New folder.
    sources: Sources of the weights, for the folder's description.
    dtype: Type of the stored numbers, one of `pretrained.DTYPES`.
    overwrite: Whether an earlier conversion in the folder is replaced.
    on_step: Called after each rule.
  """
  pretrained.write(
    conversion,
    folder,
    dtype=dtype,
    details={"sources": list(sources)},
    overwrite=overwrite,
    on_step=on_step,
  )
