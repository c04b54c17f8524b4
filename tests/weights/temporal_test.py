"""Temporal attention under the names and layouts a fork may use."""

import pathlib

from flax import nnx
import numpy as np
import pytest

from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.weights import pretrained
from sculpt4d_jax.weights import rule_files
from sculpt4d_jax.weights import rules as weight_rules
from sculpt4d_jax.weights import temporal as temporal_weights
from sculpt4d_jax.weights.tensor_files import tensor_file
from tests.weights import hunyuan_checkpoints as checkpoints

S = checkpoints.DiTSizes(
  depth=3, width=8, heads=2, channels=3, context=4, num_moe=1, experts=2
)
CONFIG = dit_lib.DiTConfig(
  depth=3,
  width=8,
  num_heads=2,
  latent_channels=3,
  context_width=4,
  num_moe_blocks=1,
  num_experts=2,
  temporal_block_size=1,
)
SEPARATE = {"to_q.weight": (8, 8), "to_k.weight": (8, 8), "to_v.weight": (8, 8)}
REST = {
  "out_proj.weight": (8, 8),
  "out_proj.bias": (8,),
  "q_norm.weight": (4,),
  "k_norm.weight": (4,),
}


class Memory(tensor_file.TensorFile):
  """A checkpoint of arrays."""

  def __init__(self, arrays, metadata=None):
    self.arrays = arrays
    infos = {
      n: tensor_file.TensorInfo(a.shape, a.dtype.name)
      for n, a in arrays.items()
    }
    super().__init__(pathlib.Path("memory.ckpt"), infos, metadata)

  def read(self, name):
    return self.arrays[name]


def checkpoint(projections, module="attn3", norm="norm4", rest=None, **extra):
  """A DiT with further layers in every block."""
  shapes = checkpoints.dit_shapes(S)
  for block in range(S.depth):
    layer = projections | (REST if rest is None else rest)
    shapes |= {f"blocks.{block}.{module}.{n}": s for n, s in layer.items()}
    shapes |= {f"blocks.{block}.{norm}.{n}": (8,) for n in ("weight", "bias")}
    shapes |= {f"blocks.{block}.{n}": s for n, s in extra.items()}
  return checkpoints.state(shapes, 0, "float32")


def convert(arrays, **options):
  """Our parameters by path."""
  conversion = pretrained.plan_conversion(
    [Memory(arrays)], {"dit": CONFIG}, **options
  )
  (part,) = conversion.parts
  values = {
    path: np.full(shape, np.nan, np.float32)
    for path, shape in part.shapes.items()
  }
  for slot, array in part.plan.run(arrays.__getitem__):
    values[slot.path][slot.index] = array
  return values


def kernels(values, block):
  stage, slot = CONFIG.locate(block)
  prefix = f"stages.{stage}.temporal_attention."
  names = ("query", "key", "value")
  return [values[f"{prefix}{name}.kernel"][slot] for name in names]


def test_layouts_of_separate_matrices():
  arrays = checkpoint(SEPARATE)
  for block in range(S.depth):
    names = [f"blocks.{block}.attn3.to_{p}.weight" for p in "qkv"]
    q, k, v = (arrays[n] for n in names)
    plain = kernels(convert(arrays, heads="plain"), block)
    # Head h is rows 4h to 4h + 3 of its matrix.
    np.testing.assert_array_equal(plain[0][:, 1], q[4:].T)
    np.testing.assert_array_equal(plain[2][:, 0], v[:4].T)
    joined = np.concatenate([q, k, v])  # 24 rows, 12 a head.
    scrambled = kernels(convert(arrays, heads="interleaved"), block)
    np.testing.assert_array_equal(scrambled[0][:, 1], joined[12:16].T)
    np.testing.assert_array_equal(scrambled[2][:, 0], joined[8:12].T)


def test_layouts_of_a_fused_matrix():
  arrays = checkpoint({"qkv.weight": (24, 8)}, module="temporal_attn")
  fused = arrays["blocks.1.temporal_attn.qkv.weight"]
  plain = kernels(convert(arrays, heads="plain"), 1)
  np.testing.assert_array_equal(plain[1][:, 1], fused[12:16].T)
  scrambled = kernels(convert(arrays, heads="interleaved"), 1)
  np.testing.assert_array_equal(scrambled[1][:, 1], fused[16:20].T)
  half = checkpoint({"c_q.weight": (8, 8), "c_kv.weight": (16, 8)})
  fused = half["blocks.1.attn3.c_kv.weight"]
  plain = kernels(convert(half, heads="plain"), 1)
  np.testing.assert_array_equal(plain[2][:, 0], fused[8:12].T)


@pytest.mark.parametrize("module", ["attn3", "attn_t", "temporal.attention"])
@pytest.mark.parametrize(
  "names",
  [
    ("q_proj", "k_proj", "v_proj", "o_proj", "norm_q", "norm_k"),
    ("query", "key", "value", "to_out.0", "query_norm", "key_norm"),
  ],
)
def test_other_names_and_the_norm_by_its_shape(module, names):
  projections = {f"{name}.weight": (8, 8) for name in names[:3]}
  rest = {
    f"{names[3]}.weight": (8, 8),
    f"{names[3]}.bias": (8,),
    f"{names[4]}.weight": (4,),
    f"{names[5]}.weight": (4,),
  }
  arrays = checkpoint(projections, module=module, norm="ln_zeit", rest=rest)
  values = convert(arrays, heads="plain")
  assert all(np.isfinite(value).all() for value in values.values())
  np.testing.assert_array_equal(
    values["stages.1.norm_temporal.scale"][0],
    arrays["blocks.1.ln_zeit.weight"],
  )


def test_layers_outside_the_blocks():
  arrays = {
    name.replace("blocks.", "temporal_blocks.", 1)
    if "attn3" in name or "norm4" in name
    else name: array
    for name, array in checkpoint(SEPARATE).items()
  }
  values = convert(arrays, heads="plain")
  assert np.isfinite(kernels(values, 2)).all()


def test_heads_are_asked_for():
  with pytest.raises(ValueError, match="--temporal_heads=plain"):
    convert(checkpoint(SEPARATE))
  with pytest.raises(ValueError, match="choose one of"):
    convert(checkpoint(SEPARATE), heads="mixed")


def test_our_own_files_say_which_layout_they_have():
  arrays = checkpoint(SEPARATE)
  conversion = pretrained.plan_conversion(
    [Memory(arrays, {temporal_weights.METADATA: "plain"})], {"dit": CONFIG}
  )
  assert not conversion.parts[0].plan.unfilled


def test_missing_biases_are_zero():
  rest = {k: v for k, v in REST.items() if k != "out_proj.bias"}
  conversion = pretrained.plan_conversion(
    [Memory(checkpoint(SEPARATE, rest=rest))], {"dit": CONFIG}, heads="plain"
  )
  assert set(conversion.parts[0].plan.unfilled) == {
    f"stages.{stage}.temporal_attention.out.bias"
    for stage in range(len(CONFIG.stages))
  }


@pytest.mark.parametrize(
  "changes, reason",
  [
    (dict(rest={"out_proj.weight": (8, 8)}), "as query_norm"),
    (dict(rest=REST | {"to_q.bias": (8,)}), "no such parameter"),
    (dict(rest=REST | {"gate": (1,)}), "gate"),
    (dict(projections={"to_q.weight": (8, 8)}), "no complete set"),
    (dict(projections={"qkv.weight": (16, 8)}), "instead of"),
    (
      {"second.to_q.weight": (8, 8), "second.to_k.weight": (8, 8)},
      "not recognised",
    ),
  ],
)
def test_what_is_not_understood_is_listed(changes, reason):
  changes = dict(changes)
  arrays = checkpoint(changes.pop("projections", SEPARATE), **changes)
  with pytest.raises(ValueError, match=reason) as error:
    convert(arrays, heads="plain")
  assert "blocks." in str(error.value)


def test_a_rule_file_explains_what_is_not_understood():
  arrays = checkpoint({"mix.weight": (24, 8)}, module="zeit")
  target = "stages.{stage}.temporal_attention."
  entries = [
    (
      "blocks.{block}.zeit.mix.weight",
      [f"{target}{n}.kernel[{{slot}}]" for n in ("query", "key", "value")],
      "stacked_heads",
    ),
    (
      "blocks.{block}.zeit.out_proj.weight",
      target + "out.kernel[{slot}]",
      "linear_out",
    ),
    (
      "blocks.{block}.zeit.out_proj.bias",
      target + "out.bias[{slot}]",
      "identity",
    ),
    (
      "blocks.{block}.zeit.q_norm.weight",
      target + "query_norm.scale[{slot}]",
      "identity",
    ),
    (
      "blocks.{block}.zeit.k_norm.weight",
      target + "key_norm.scale[{slot}]",
      "identity",
    ),
    (
      "blocks.{block}.norm4.weight",
      "stages.{stage}.norm_temporal.scale[{slot}]",
      "identity",
    ),
    (
      "blocks.{block}.norm4.bias",
      "stages.{stage}.norm_temporal.bias[{slot}]",
      "identity",
    ),
  ]
  rules = rule_files.RuleFile(
    entries=tuple(
      dict(part="dit", sources=s, targets=t, transform=f) for s, t, f in entries
    )
  )
  values = convert(arrays, rules=rules)
  assert all(np.isfinite(value).all() for value in values.values())
  with pytest.raises(ValueError, match="Explain these names in a rule file"):
    convert(arrays)


def test_exports_use_known_names():
  model = nnx.eval_shape(lambda: dit_lib.DiT(CONFIG, rngs=nnx.Rngs(0)))
  shapes = weight_rules.param_shapes(model)
  paths = {
    path
    for rule in temporal_weights.export_rules(CONFIG)
    for path, _ in map(weight_rules.split_path, rule.targets)
  }
  assert paths == {path for path in shapes if "temporal" in path}
