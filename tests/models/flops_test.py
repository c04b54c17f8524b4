"""Counts of operations equal XLA's own, part by part."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from sculpt4d_jax.models import attention
from sculpt4d_jax.models import dit
from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import flops
from sculpt4d_jax.models import image_encoder
from sculpt4d_jax.models import layers
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.models import time_embedding
from sculpt4d_jax.models.moe import dispatch
from sculpt4d_jax.models.moe import experts

# XLA counts norms, softmax and GELU too: wide layers with few tokens keep them
# below one per cent. Nothing is run.
WIDTH = 2048
FRAMES, TOKENS, CONTEXT = 2, 8, 5
CONFIG = dit_config.DiTConfig(
  depth=5,
  width=WIDTH,
  num_heads=1,
  context_width=512,
  num_moe_blocks=2,
  # XLA counts the body of a loop once, and "dense" loops over experts.
  num_experts=1,
  num_experts_per_token=1,
  moe_implementation="dense",
  temporal_mode="full",
  temporal_block_size=4,
  temporal_implementation="reference",
  scan_unroll=True,
)


def array(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def count_by_xla(function, *arrays):
  return jax.jit(function).lower(*arrays).cost_analysis()["flops"]


def count_module(make, call, *arrays):
  abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
  graphdef, params = nnx.split(abstract)
  run = lambda params, *arrays: call(nnx.merge(graphdef, params), *arrays)
  return count_by_xla(run, params, *arrays)


def attention_parts():
  rows = FRAMES * (TOKENS + 1)
  part = flops.dit_call(CONFIG, FRAMES, TOKENS, CONTEXT)
  one = lambda *names: sum(part[name] for name in names) // CONFIG.depth
  kwargs = dict(width=WIDTH, num_heads=1)
  x = array(1, FRAMES, TOKENS + 1, WIDTH)
  heads = array(1, FRAMES, CONTEXT, 1, WIDTH)
  assert rows * WIDTH == x.size
  return {
    "spatial": (
      one("spatial attention: projections", "spatial attention: scores"),
      lambda rngs: attention.SelfAttention(rngs=rngs, **kwargs),
      lambda module, x: module(x),
      (x,),
    ),
    "cross": (
      one("cross-attention: projections", "cross-attention: scores"),
      lambda rngs: attention.CrossAttention(
        context_width=512, rngs=rngs, **kwargs
      ),
      lambda module, x, k, v: module(x, attention.KeyValues(k, v)),
      (x, heads, heads),
    ),
    "temporal": (
      one("temporal attention: projections", flops.TEMPORAL_SCORES),
      lambda rngs: attention.TemporalAttention(
        block_size=4, implementation="reference", rngs=rngs, **kwargs
      ),
      lambda module, x: module(x, mode="full"),
      (array(1, FRAMES, TOKENS, WIDTH),),
    ),
  }


@pytest.mark.parametrize("name", ["spatial", "cross", "temporal"])
def test_attention(name):
  ours, make, call, arrays = attention_parts()[name]
  assert ours == pytest.approx(count_module(make, call, *arrays), rel=0.01)


def test_layers_of_the_transformer():
  parts = flops.dit_call(CONFIG, FRAMES, TOKENS, CONTEXT)
  x = array(1, FRAMES, TOKENS + 1, WIDTH)
  latents = array(1, FRAMES, TOKENS, 64)
  apply = lambda module, *xs: module(*xs)
  layer = lambda *sizes: (
    lambda rngs: layers.Linear(*sizes, kernel_axes=(None, None), rngs=rngs)
  )
  hidden = CONFIG.mlp_ratio * WIDTH
  expected = {
    "latent embedding": (layer(64, WIDTH), (latents,)),
    "time token": (
      lambda rngs: time_embedding.TimeEmbedding(WIDTH, rngs=rngs),
      (array(1),),
    ),
    "skips": (layer(2 * WIDTH, WIDTH), (array(*x.shape[:3], 2 * WIDTH),)),
    "MLP": (lambda rngs: layers.MLP(WIDTH, hidden, rngs=rngs), (x,)),
    "final layer": (layer(WIDTH, 64), (array(1, FRAMES, TOKENS, WIDTH),)),
    "MoE: router": (layer(WIDTH, 1), (x,)),
  }
  number = {"skips": 2, "MLP": 3, "MoE: router": 2}
  for name, (make, arrays) in expected.items():
    by_xla = number.get(name, 1) * count_module(make, apply, *arrays)
    assert parts[name] == pytest.approx(by_xla, rel=0.01), name
  assert parts["MoE: shared expert"] == parts["MLP"] * 2 // 3


def test_routed_experts():
  tokens, num_chosen = 30000, 2
  weights = experts.ExpertWeights(
    array(4, WIDTH, 4096),
    array(4, 4096),
    array(4, 4096, WIDTH),
    array(4, WIDTH),
  )
  chosen = jax.ShapeDtypeStruct((tokens, num_chosen), jnp.int32)

  def apply(x, gates, chosen, weights):
    return experts.apply_experts(
      x,
      gates,
      chosen,
      weights,
      implementation="blocked",
      block_size=32,
      max_gathered_weights=2**40,
    )

  by_xla = count_by_xla(
    apply, array(tokens, WIDTH), array(tokens, num_chosen), chosen, weights
  )
  # Before optimisation, the plan's running count is a window over all choices,
  # counted as their square; what is compiled is linear.
  by_xla -= count_by_xla(lambda c: dispatch.plan(c, 4, 32), chosen)
  ours = num_chosen * flops.mlp(tokens, WIDTH, 4096)
  # Every expert's rows are padded to a multiple of the block.
  assert ours == pytest.approx(by_xla, rel=0.01)
  config = dataclasses.replace(
    CONFIG, mlp_ratio=2, num_experts=4, num_experts_per_token=num_chosen
  )
  parts = flops.dit_call(config, 1, tokens, CONTEXT)  # And the time token.
  assert parts["MoE: routed experts"] == pytest.approx(2 * ours, rel=0.001)


def test_whole_transformer():
  def call(module, latents, time, context):
    return module(latents, time, module.encode_context(context)).velocity

  by_xla = count_module(
    lambda rngs: dit.DiT(CONFIG, rngs=rngs),
    call,
    array(1, FRAMES, TOKENS, 64),
    array(1),
    array(1, FRAMES, CONTEXT, 512),
  )
  # The body of the loop over a stage's layers that makes keys and values is
  # counted once a stage.
  stages = len(CONFIG.stages)
  context = flops.dit_context(CONFIG, FRAMES, CONTEXT)
  once = sum(context.values()) * stages / CONFIG.depth
  parts = flops.dit_call(CONFIG, FRAMES, TOKENS, CONTEXT)
  assert sum(parts.values()) + once == pytest.approx(by_xla, rel=0.01)


def test_image_encoder():
  config = image_encoder.ImageEncoderConfig(
    image_size=28, width=WIDTH, num_layers=2, num_heads=1, scan_unroll=True
  )

  def call(module, pixels):
    x, _ = layers.scan_layers(
      lambda block, x, _: (block(x), None),
      module.blocks,
      module.embed(pixels),
      unroll=True,
    )
    return module.norm(x)

  by_xla = count_module(
    lambda rngs: image_encoder.ImageEncoder(config, rngs=rngs),
    call,
    array(3, 28, 28, 3),
  )
  ours = flops.image_encoder(config, 3)["image encoder"]
  assert ours == pytest.approx(by_xla, rel=0.01)


def test_autoencoder():
  config = shape_vae.ShapeVAEConfig(
    num_latents=8,
    width=WIDTH,
    num_heads=1,
    num_encoder_layers=1,
    num_decoder_layers=2,
    scan_unroll=True,
  )
  make = lambda rngs: shape_vae.ShapeVAE(config, rngs=rngs)
  decode = lambda vae, z: vae.field_keys_values(vae.decode_from_diffusion(z))
  by_xla = count_module(make, decode, array(2, 8, 64))
  ours = flops.vae_decoder(config, 2)["VAE decoder"]
  assert ours == pytest.approx(by_xla, rel=0.01)
  heads = array(1, 8, 1, WIDTH)
  query = lambda vae, k, v, points: vae.query_field(
    attention.KeyValues(k, v), points
  )
  by_xla = count_module(make, query, heads, heads, array(1, 100, 3))
  ours = flops.field_queries(config, 100)["VAE field queries"]
  assert ours == pytest.approx(by_xla, rel=0.01)
  rows = 8 * config.downsample_ratio
  encode = lambda vae, surface, queries: vae.encode(surface, queries).mean
  by_xla = count_module(make, encode, array(2, rows, 7), array(2, 8, 7))
  ours = flops.vae_encoder(config, 2)["VAE encoder"]
  assert ours == pytest.approx(by_xla, rel=0.01)


@pytest.mark.parametrize(
  "num_frames, percent", [(8, 58.11), (16, 35.23), (32, 21.50), (64, 14.07)]
)
def test_attention_column_of_the_paper(num_frames, percent):
  config = dit_config.DiTConfig()
  counts = [
    flops.temporal_scores(config, num_frames, 4096, mode)
    for mode in ("sparse", "full")
  ]
  assert f"{100 * counts[0] / counts[1]:.2f}" == f"{percent:.2f}"


def test_modes_of_temporal_attention_by_hand():
  config = dit_config.DiTConfig(width=2, num_heads=1, temporal_block_size=2)
  count = lambda mode: flops.temporal_scores(config, 3, 4, mode)
  assert count("full") == 4 * 12 * 12 * 2
  assert count("token") == 4 * 12 * 3 * 2
  assert count("none") == 0
  # Two blocks a frame; only frame 0 sees frame 2 at distance 2, by stride 2,
  # which leaves two of four pairs of blocks. Frame 0 is the anchor of frame 2.
  assert count("sparse") == 4 * 2 * 2 * 2 * (9 * 4 - 2)
  with pytest.raises(ValueError, match="Unknown temporal mode 'dense'"):
    count("dense")
