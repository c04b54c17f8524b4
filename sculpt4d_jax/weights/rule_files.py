r"""A user's rules for checkpoints with unknown names.

A rule file is JSON or TOML. In TOML:

    [[rules]]
    part = "dit"
    sources = ["blocks.{block}.time_attn.qkv.weight"]
    targets = [
      "stages.{stage}.temporal_attention.query.kernel[{slot}]",
      "stages.{stage}.temporal_attention.key.kernel[{slot}]",
      "stages.{stage}.temporal_attention.value.kernel[{slot}]",
    ]
    transform = "stacked_heads"

    [[rename]]               # A regular expression; applied before all rules.
    from = "^denoiser\\."
    to = "model."

    ignore = ["ema_step"]    # Patterns of names that are not needed.

    [prefixes]               # Where a file holds two copies of a network.
    dit = "ema.model."

`part` is dit, vae or image_encoder. {block} runs over the blocks of the DiT,
with {stage} and {slot}, the block's place in our stacks; "blocks" selects some
of them. {expert} runs over the experts, {layer} over as many layers as "layers"
says. A rule replaces built-in rules with the same sources or targets. The
transforms are identity, linear, linear_out, flat, interleaved_heads,
stacked_heads, convolution and squeezed; see `transforms.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import json
import pathlib
import re
import tomllib
from typing import Any

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.models import dit_config
from sculpt4d_jax.weights import checkpoint_parts
from sculpt4d_jax.weights import rules as weight_rules
from sculpt4d_jax.weights import transforms as weight_transforms

Rule = weight_rules.Rule

_KEYS = ("rules", "rename", "ignore", "prefixes")
_RULE_KEYS = ("part", "sources", "targets", "transform", "blocks", "layers")


@dataclasses.dataclass(frozen=True)
class RuleFile:
  """Content of a rule file; by default empty.

  Attributes:
    entries: The rules as written.
    renames: Pairs of a compiled expression and its replacement.
    ignore: Patterns of names that are not needed.
    prefixes: Prefixes of networks, by part.
  """

  entries: tuple[Mapping[str, Any], ...] = ()
  renames: tuple[tuple[re.Pattern, str], ...] = ()
  ignore: tuple[str, ...] = ()
  prefixes: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def rename(self, name: str) -> str:
    """Applies the renames to a name of the checkpoint."""
    for pattern, replacement in self.renames:
      name = pattern.sub(replacement, name)
    return name

  def merge(self, part: str, config: Any, table: Iterable[Rule]) -> list[Rule]:
    """Merges this file's rules for a part into the built-in table."""
    own = [
      rule
      for entry in self.entries
      if entry["part"] == part
      for rule in _fill(entry, config)
    ]
    sources = {name for rule in own for name in rule.sources}
    targets = {path for rule in own for path in rule.targets}
    kept = [
      rule
      for rule in table
      if sources.isdisjoint(rule.sources) and targets.isdisjoint(rule.targets)
    ]
    return kept + own


def read(path: str | pathlib.Path) -> RuleFile:
  """Reads a rule file.

  Raises:
    ValueError: The file is malformed; the message says where.
  """
  path = local_copies.fetch(path)
  try:
    text = path.read_text()
    content = (
      tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    )
  except ValueError as error:
    kind = "TOML" if path.suffix == ".toml" else "JSON"
    raise UserError(f"{path} is no valid {kind}: {error}.") from error
  if not isinstance(content, dict):
    raise UserError(f"{path} must hold an object with some of {_KEYS}.")
  _check_keys(path, content, _KEYS)
  entries = tuple(content.get("rules", ()))
  for number, entry in enumerate(entries):
    _check_entry(f"{path}, rule {number}", entry)
  renames = []
  for entry in content.get("rename", ()):
    try:
      renames.append((re.compile(entry["from"]), entry["to"]))
    except (re.error, KeyError, TypeError) as error:
      raise UserError(
        f"{path}: a rename needs 'from', a regular expression, and 'to'"
        f" ({error})."
      ) from error
  prefixes = content.get("prefixes", {})
  _check_keys(path, prefixes, checkpoint_parts.PARTS)
  return RuleFile(
    entries, tuple(renames), tuple(content.get("ignore", ())), prefixes
  )


def _check_keys(
  place: str | pathlib.Path, content: Mapping[str, Any], allowed: Sequence[str]
) -> None:
  unknown = set(content) - set(allowed)
  if unknown:
    raise UserError(
      f"{place}: unknown {sorted(unknown)}; expected some of {allowed}."
    )


def _check_entry(place: str, entry: Any) -> None:
  if not isinstance(entry, dict):
    raise UserError(f"{place} is no object.")
  _check_keys(place, entry, _RULE_KEYS)
  missing = {"part", "sources", "targets"} - set(entry)
  if missing:
    raise UserError(f"{place} lacks {sorted(missing)}.")
  if entry["part"] not in checkpoint_parts.PARTS:
    raise UserError(
      f"{place}: part={entry['part']!r}; choose one of"
      f" {checkpoint_parts.PARTS}."
    )
  transform = entry.get("transform", "identity")
  if transform not in weight_transforms.BY_NAME:
    raise UserError(
      f"{place}: transform={transform!r}; choose one of"
      f" {tuple(weight_transforms.BY_NAME)}."
    )


def _fill(entry: Mapping[str, Any], config: Any) -> list[Rule]:
  """Rules of an entry, with the names in braces filled."""
  name = entry.get("transform", "identity")
  make = weight_transforms.BY_NAME[name]
  sources = _tuple(entry["sources"])
  if name in ("interleaved_heads", "stacked_heads"):
    transform = make(num_sources=len(sources))
  else:
    transform = make()
  rule = Rule(sources, _tuple(entry["targets"]), transform)
  text = " ".join(rule.sources + rule.targets)
  places: list[dict[str, int]] = [{}]
  if "{block}" in text and isinstance(config, dit_config.DiTConfig):
    places = []
    for block in entry.get("blocks", range(config.depth)):
      stage, slot = config.locate(block)
      places.append(dict(block=block, stage=stage, slot=slot))
  if "{expert}" in text:
    experts = range(config.num_experts)
    places = [p | {"expert": e} for p in places for e in experts]
  if "{layer}" in text:
    layers = range(int(entry.get("layers", 0)))
    places = [p | {"layer": i} for p in places for i in layers]
  try:
    return [rule.fill(**place) for place in places]
  except KeyError as error:
    raise UserError(
      f"Rule {sources}: nothing is known to put in the place of {error}."
    ) from error


def _tuple(names: str | Iterable[str]) -> tuple[str, ...]:
  return (names,) if isinstance(names, str) else tuple(names)
