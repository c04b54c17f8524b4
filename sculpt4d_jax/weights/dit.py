"""Hunyuan3D 2.1's DiT checkpoint: its names and our parameters.

The checkpoint has no temporal attention: `TEMPORAL` names what it cannot fill.
Those parameters keep their initial values, an output projection of zero among
them, with which the 4D model equals the per-frame one.

The query, key and value of the self-attention are three matrices that the
model concatenates and cuts into heads afterwards, so a head's rows lie
elsewhere than their names say; `rules.interleaved_heads` puts them
right. The same holds for key and value of the cross-attention.
"""

from sculpt4d_jax.models import dit
from sculpt4d_jax.weights import rules as weight_rules

Rule = weight_rules.Rule
LINEAR = weight_rules.linear()

# Paths, as patterns, of parameters that Hunyuan3D 2.1 does not have.
TEMPORAL = (r".*\.(norm_temporal|temporal_attention)\..*",)


def rules(config: dit.DiTConfig) -> list[weight_rules.Rule]:
  """The table for a DiT of this shape."""
  table = _ends()
  for block, kind in enumerate(config.block_kinds):
    stage, slot = config.locate(block)
    place = dict(block=block, stage=stage, slot=slot)
    entries = _attentions()
    entries += _skip() if kind.has_skip else []
    entries += [] if kind.is_moe else _mlp("mlp", "mlp", "fc1", "fc2")
    table += [rule.fill(**place) for rule in entries]
    if kind.is_moe:
      table += [rule.fill(**place) for rule in _router_and_shared_expert()]
      for expert in range(config.num_experts):
        table += [rule.fill(expert=expert, **place) for rule in _expert()]
  return table


def _linear(source: str, target: str, *, bias: bool = True) -> list[Rule]:
  entries = [Rule(f"{source}.weight", f"{target}.kernel", LINEAR)]
  if bias:
    entries.append(Rule(f"{source}.bias", f"{target}.bias"))
  return entries


def _norm(source: str, target: str) -> list[Rule]:
  return [
    Rule(f"{source}.weight", f"{target}.scale"),
    Rule(f"{source}.bias", f"{target}.bias"),
  ]


def _ends() -> list[Rule]:
  """Rules for the layers before and after the blocks."""
  return [
    *_linear("x_embedder", "latent_embedding"),
    *_linear("t_embedder.mlp.0", "time_embedding.mlp.fc1"),
    *_linear("t_embedder.mlp.2", "time_embedding.mlp.fc2"),
    *_norm("final_layer.norm_final", "final_norm"),
    *_linear("final_layer.linear", "final_linear"),
  ]


def _in_block(entries: list[Rule]) -> list[Rule]:
  """Completes names within a block: its prefix, its slot in the stack."""

  def complete(rule: Rule) -> Rule:
    return Rule(
      tuple(f"blocks.{{block}}.{name}" for name in rule.sources),
      tuple(f"stages.{{stage}}.{path}[{{slot}}]" for path in rule.targets),
      rule.transform,
    )

  return [complete(rule) for rule in entries]


def _attention(source: str, target: str) -> list[Rule]:
  """The parts that self- and cross-attention share."""
  return [
    Rule(f"{source}.q_norm.weight", f"{target}.query_norm.scale"),
    Rule(f"{source}.k_norm.weight", f"{target}.key_norm.scale"),
    Rule(
      f"{source}.out_proj.weight",
      f"{target}.out.kernel",
      weight_rules.linear(num_in_axes=2),
    ),
    Rule(f"{source}.out_proj.bias", f"{target}.out.bias"),
  ]


def _attentions() -> list[Rule]:
  projections = ("query", "key", "value")
  return _in_block(
    [
      *_norm("norm1", "norm_spatial"),
      Rule(
        tuple(f"attn1.to_{name[0]}.weight" for name in projections),
        tuple(f"spatial_attention.{name}.kernel" for name in projections),
        weight_rules.interleaved_heads(num_sources=3),
      ),
      *_attention("attn1", "spatial_attention"),
      *_norm("norm2", "norm_cross"),
      *_linear("attn2.to_q", "cross_attention.query", bias=False),
      Rule(
        ("attn2.to_k.weight", "attn2.to_v.weight"),
        ("cross_attention.key.kernel", "cross_attention.value.kernel"),
        weight_rules.interleaved_heads(num_sources=2),
      ),
      *_attention("attn2", "cross_attention"),
      *_norm("norm3", "norm_mlp"),
    ]
  )


def _skip() -> list[Rule]:
  return _in_block(
    [
      *_linear("skip_linear", "skip_linear"),
      *_norm("skip_norm", "skip_norm"),
    ]
  )


def _mlp(source: str, target: str, fc1: str, fc2: str) -> list[Rule]:
  return _in_block(
    [
      *_linear(f"{source}.{fc1}", f"{target}.fc1"),
      *_linear(f"{source}.{fc2}", f"{target}.fc2"),
    ]
  )


def _router_and_shared_expert() -> list[Rule]:
  shared = _mlp("moe.shared_experts.net", "moe.shared_expert", "0.proj", "2")
  gate = Rule("moe.gate.weight", "moe.router.kernel", LINEAR)
  return _in_block([gate]) + shared


def _expert() -> list[Rule]:
  source = "blocks.{block}.moe.experts.{expert}.net"
  target = "stages.{stage}.moe.experts"
  slot = "[{slot},{expert}]"
  return [
    Rule(f"{source}.{name}.weight", f"{target}.{fc}.kernel{slot}", LINEAR)
    for name, fc in (("0.proj", "fc1"), ("2", "fc2"))
  ] + [
    Rule(f"{source}.{name}.bias", f"{target}.{fc}.bias{slot}")
    for name, fc in (("0.proj", "fc1"), ("2", "fc2"))
  ]
