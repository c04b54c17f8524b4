"""Finds temporal attention in a checkpoint, whose names are not published.

Sculpt4D is a fork of Hunyuan3D 2.1, and the names of its extra layers are not
published with the paper. `ALTERNATIVES` lists likely names; the extra names of
a checkpoint are matched against them, the same in every block, and shapes
decide where names are ambiguous. The user must supply the rest:

- The layout of the heads. Hunyuan3D 2.1 joins q, k and v and cuts the result
  into heads afterwards ("interleaved"), and a fork may or may not do so in its
  new layers ("plain": a head's rows are neighbours in each matrix). The shapes
  are the same, so the user must choose with --temporal_heads.
- Names that are not matched, which a rule file (--rules) can explain.

Our exports use the first alternative of each kind and store the layout in the
file's metadata.
"""

from collections.abc import Mapping, Sequence
import re
from typing import Any, NamedTuple

from sculpt4d_jax.models import dit
from sculpt4d_jax.weights import rules as weight_rules
from sculpt4d_jax.weights.tensor_files import tensor_file

CheckpointError = tensor_file.CheckpointError
Rule = weight_rules.Rule

HEADS = ("plain", "interleaved")
# Key of a safetensors file's metadata.
METADATA = "sculpt4d_temporal_heads"

# Role -> possible last words of a name.
ALTERNATIVES: Mapping[str, tuple[str, ...]] = {
  "query": ("to_q", "q_proj", "query", "c_q", "wq", "q"),
  "key": ("to_k", "k_proj", "key", "c_k", "wk", "k"),
  "value": ("to_v", "v_proj", "value", "c_v", "wv", "v"),
  "query_key_value": ("to_qkv", "qkv", "c_qkv", "qkv_proj", "Wqkv", "wqkv"),
  "key_value": ("to_kv", "kv", "c_kv", "kv_proj", "wkv"),
  "out": ("out_proj", "to_out.0", "to_out", "o_proj", "proj", "c_proj", "wo"),
  "query_norm": ("q_norm", "norm_q", "query_norm", "q_ln"),
  "key_norm": ("k_norm", "norm_k", "key_norm", "k_ln"),
}
# Names of the layer and of the norm before it, which exports use. On import
# the layer may have any name, and the norm is the only vector of width D left.
MODULE, NORM = "attn_temporal", "norm_temporal"

_TARGET = "stages.{stage}.temporal_attention."
_NORM_TARGET = "stages.{stage}.norm_temporal."
_ROLES_WITHOUT_PLACE = (
  "Explain these names in a rule file and give it with --rules=FILE; see"
  " sculpt4d_jax/weights/rule_files.py."
)


class _Extra(NamedTuple):
  """An extra tensor of every block: its name with {block}, and its shape."""

  name: str
  shape: tuple[int, ...]

  @property
  def stem(self) -> str:
    return self.name.rpartition(".")[0]

  @property
  def kind(self) -> str:
    return self.name.rpartition(".")[2]


def export_rules(config: dit.DiTConfig) -> list[Rule]:
  """The table of our own exports: first alternatives, plain heads."""
  if config.temporal_mode == "none":
    return []
  first = {role: names[0] for role, names in ALTERNATIVES.items()}
  source = f"blocks.{{block}}.{MODULE}."
  entries = [
    Rule(
      f"{source}{first[role]}.weight",
      f"{_TARGET}{role}.kernel[{{slot}}]",
      weight_rules.linear(),
    )
    for role in ("query", "key", "value")
  ]
  entries += _out(source + first["out"], has_bias=True)
  entries += [
    Rule(f"{source}{first[role]}.weight", f"{_TARGET}{role}.scale[{{slot}}]")
    for role in ("query_norm", "key_norm")
  ]
  entries += _norm(f"blocks.{{block}}.{NORM}", has_bias=True)
  return _for_all_blocks(config, entries)


def find_rules(
  config: dit.DiTConfig,
  tensors: Mapping[str, Any],
  known: Sequence[Rule],
  heads: str | None,
) -> list[Rule]:
  """Finds rules for a checkpoint's extra tensors, if there are any.

  Args:
    config: Shape of the DiT.
    tensors: Name -> object with a shape.
    known: Rules for the other tensors.
    heads: One of HEADS, or None if unknown.

  Raises:
    CheckpointError: Extra tensors look like temporal attention, but the user
      must supply more information.
  """
  taken = {name for rule in known for name in rule.sources}
  extra = {n: t for n, t in tensors.items() if n not in taken}
  if config.temporal_mode == "none" or not extra:
    return []
  groups, roles = _match(_templates(config, extra))
  if not roles:
    return []  # Nothing like attention: the plan reports the names.
  problems = _problems(config, groups, roles)
  if problems:
    listed = "\n".join(
      f"    {e.name} {list(e.shape)}" for group in groups for e in group
    )
    raise CheckpointError(
      "The checkpoint has temporal attention, but not in a known form: "
      + "; ".join(problems)
      + f".\n  Its extra tensors, {{block}} in the place of a block:\n"
      f"{listed}\n{_ROLES_WITHOUT_PLACE}"
    )
  if heads is None and config.num_heads > 1:
    raise CheckpointError(
      "The checkpoint has temporal attention ("
      + ", ".join(e.name for e in roles.values())
      + "), and shapes do not tell how its heads are laid out. Say"
      " --temporal_heads=plain if a head's rows are neighbours in each"
      " matrix, --temporal_heads=interleaved if q, k and v are joined first"
      " and cut into heads then, as Hunyuan3D 2.1 does in its other layers."
    )
  return _for_all_blocks(config, _rules(roles, heads or HEADS[0]))


def _templates(config: dit.DiTConfig, extra: Mapping[str, Any]) -> list[_Extra]:
  """Extra tensors that occur in every block, with {block} for its number."""
  groups: dict[str, dict[int, tuple[int, ...]]] = {}
  for name, tensor in extra.items():
    found = re.match(r"(.*?\.|)(\d+)(\..*)", name)
    if found:
      template = f"{found[1]}{{block}}{found[3]}"
      groups.setdefault(template, {})[int(found[2])] = tuple(tensor.shape)
  blocks = set(range(config.depth))
  return [
    _Extra(template, shapes[0])
    for template, shapes in groups.items()
    if set(shapes) == blocks and len(set(shapes.values())) == 1
  ]


def _match(
  extras: Sequence[_Extra],
) -> tuple[tuple[list[_Extra], list[_Extra]], dict[str, _Extra]]:
  """Roles of the extra tensors: (the layer's and the others), by role."""
  roles: dict[str, _Extra] = {}
  used, twice = set(), []
  for role, names in ALTERNATIVES.items():
    for extra in extras:
      if any(extra.stem.endswith(f".{name}") for name in names):
        key = role if extra.kind == "weight" else f"{role}.{extra.kind}"
        if key in roles:
          twice.append(extra)
        else:
          roles[key] = extra
        used.add(extra.name)
  rest = [extra for extra in extras if extra.name not in used]
  vectors = [e for e in rest if len(e.shape) == 1]
  if roles:
    for kind in ("weight", "bias"):
      of_kind = [e for e in vectors if e.kind == kind]
      if len(of_kind) == 1:
        roles[f"norm.{kind}"] = of_kind[0]
        rest.remove(of_kind[0])
  return (list(extras), twice + rest), roles


def _problems(
  config: dit.DiTConfig,
  groups: tuple[list[_Extra], list[_Extra]],
  roles: Mapping[str, _Extra],
) -> list[str]:
  _, unplaced = groups
  problems = []
  has = roles.__contains__
  separate = all(map(has, ("query", "key", "value")))
  halves = has("query") and has("key_value")
  if not (separate or halves or has("query_key_value")):
    problems.append("no complete set of query, key and value is recognised")
  if separate and (has("query_key_value") or has("key_value")):
    problems.append("query, key and value are both separate and joined")
  for role in ("out", "query_norm", "key_norm", "norm.weight"):
    if not has(role):
      problems.append(f"nothing is recognised as {role.partition('.')[0]}")
  width = config.width
  square, head = (width, width), (config.head_dim,)
  shapes = dict.fromkeys(("query", "key", "value", "out"), square)
  shapes |= {"key_value": (2 * width, width), "out.bias": (width,)}
  shapes |= {"query_key_value": (3 * width, width)}
  shapes |= {"query_norm": head, "key_norm": head}
  shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
  for role, extra in roles.items():
    if role not in shapes:
      problems.append(f"{extra.name}: there is no such parameter here")
    elif extra.shape != shapes[role]:
      problems.append(
        f"{extra.name} is {extra.shape} instead of {shapes[role]}"
      )
  problems += [f"{extra.name} is not recognised" for extra in unplaced]
  return problems


def _rules(roles: Mapping[str, _Extra], heads: str) -> list[Rule]:
  interleaved = heads == "interleaved"
  projections = ("query", "key", "value")
  targets = tuple(f"{_TARGET}{role}.kernel[{{slot}}]" for role in projections)
  if "query_key_value" in roles:
    groups = [(("query_key_value",), targets)]
  elif "key_value" in roles:
    groups = [(("query",), targets[:1]), (("key_value",), targets[1:])]
  elif interleaved:
    groups = [(projections, targets)]
  else:
    groups = [((r,), (t,)) for r, t in zip(projections, targets)]
  entries = []
  for sources, made in groups:
    names = tuple(roles[role].name for role in sources)
    if len(made) == 1:
      transform = weight_rules.linear()
    elif interleaved:
      transform = weight_rules.interleaved_heads(len(names))
    else:
      transform = weight_rules.stacked_heads(len(names))
    entries.append(Rule(names, made, transform))
  entries += _out(roles["out"].stem, has_bias="out.bias" in roles)
  entries += [
    Rule(roles[role].name, f"{_TARGET}{role}.scale[{{slot}}]")
    for role in ("query_norm", "key_norm")
  ]
  return entries + _norm(
    roles["norm.weight"].stem, has_bias="norm.bias" in roles
  )


def _out(source: str, *, has_bias: bool) -> list[Rule]:
  entries = [
    Rule(
      f"{source}.weight",
      _TARGET + "out.kernel[{slot}]",
      weight_rules.linear(num_in_axes=2),
    )
  ]
  if has_bias:
    entries.append(Rule(f"{source}.bias", _TARGET + "out.bias[{slot}]"))
  return entries


def _norm(source: str, *, has_bias: bool) -> list[Rule]:
  entries = [Rule(f"{source}.weight", _NORM_TARGET + "scale[{slot}]")]
  if has_bias:
    entries.append(Rule(f"{source}.bias", _NORM_TARGET + "bias[{slot}]"))
  return entries


def _for_all_blocks(
  config: dit.DiTConfig, entries: Sequence[Rule]
) -> list[Rule]:
  rules = []
  for block in range(config.depth):
    stage, slot = config.locate(block)
    place = dict(block=block, stage=stage, slot=slot)
    rules += [rule.fill(**place) for rule in entries]
  return rules
