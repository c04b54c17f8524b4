"""Adapters add nothing at first, and what they add can be folded in."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models import dit
from sculpt4d_jax.models import lora

CONFIG = dit.DiTConfig(
  depth=3,
  width=16,
  num_heads=2,
  latent_channels=4,
  context_width=8,
  num_moe_blocks=1,
  num_experts=2,
  temporal_block_size=2,
)
LORA = lora.LoRAConfig(rank=2, alpha=4.0, modules=("temporal_attention", "fc1"))


def _inputs():
  keys = jax.random.split(jax.random.key(1), 3)
  return (
    jax.random.normal(keys[0], (1, 2, 4, 4)),
    jnp.array([0.3]),
    jax.random.normal(keys[1], (1, 2, 3, 8)),
  )


@pytest.fixture(scope="module")
def plain():
  return dit.DiT(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def adapted():
  model = dit.DiT(CONFIG, rngs=nnx.Rngs(0))
  lora.attach(model, LORA, rngs=nnx.Rngs(1))
  return model


def _velocity(model):
  graphdef, params = nnx.split(model)
  return jax.jit(
    lambda params: nnx.merge(graphdef, params)(*_inputs()).velocity
  )(params)


def _is_adapter(path, _):
  return lora.ADAPTER in path


def _trained(model):
  """The same model with adapters that are not zero."""
  graphdef, params, rest = nnx.split(model, _is_adapter, ...)
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(5), len(leaves))
  leaves = [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
  return nnx.merge(graphdef, jax.tree.unflatten(tree, leaves), rest)


def test_fresh_adapters_change_nothing(plain, adapted):
  np.testing.assert_array_equal(_velocity(adapted), _velocity(plain))


def test_only_chosen_maps_have_adapters(adapted):
  params = nnx.split(adapted, _is_adapter, ...)[1]
  paths = {path for path, _ in nnx.to_flat_state(params)}
  assert paths
  for path in paths:
    assert "temporal_attention" in path or "fc1" in path, path
  # Three blocks of temporal attention with four maps each, and the first maps
  # of three MLPs and the time embedding: stages stack equal blocks.
  sizes = sum(x.size for x in jax.tree.leaves(params))
  temporal = 3 * 4 * 2 * (16 + 16)
  mlps = 3 * 2 * (16 + 64) + 2 * (16 + 64)
  assert sizes == temporal + mlps


def test_folded_in_it_is_the_adapted_model(plain, adapted):
  trained = _trained(adapted)
  expected = _velocity(trained)
  assert not np.allclose(expected, _velocity(plain), atol=1e-3)
  lora.fold(trained)
  assert jax.tree.structure(nnx.state(trained)) == jax.tree.structure(
    nnx.state(plain)
  )
  np.testing.assert_allclose(_velocity(trained), expected, rtol=1e-4, atol=1e-5)


def test_settings_are_checked(plain):
  with pytest.raises(ValueError, match="rank=-1"):
    lora.LoRAConfig(rank=-1)
  with pytest.raises(ValueError, match="adapts nothing"):
    lora.LoRAConfig(rank=1, modules=())
  with pytest.raises(ValueError, match="wings.*choose among .*'query'"):
    lora.attach(
      plain, lora.LoRAConfig(rank=1, modules=("wings",)), rngs=nnx.Rngs(0)
    )
