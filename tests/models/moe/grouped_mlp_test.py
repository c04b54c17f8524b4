"""The experts on the TPU's kernels, in the interpreter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models.moe import experts
from sculpt4d_jax.models.moe import grouped_mlp


def _case():
  keys = jax.random.split(jax.random.key(0), 7)
  normal = lambda key, *shape: 0.1 * jax.random.normal(key, shape)
  weights = experts.ExpertWeights(
    normal(keys[0], 4, 128, 256),
    normal(keys[1], 4, 256),
    normal(keys[2], 4, 256, 128),
    normal(keys[3], 4, 128),
  )
  x = normal(keys[4], 40, 128)
  gates = jax.random.uniform(keys[5], (40, 2))
  # Expert 2 is never chosen; 4 is an expert of another device.
  chosen = jnp.arange(40)[:, None] % jnp.array([[2, 4]])
  chosen = chosen.at[:, 1].set(jnp.where(jnp.arange(40) < 9, 4, 3))
  return x, gates, chosen, weights


def _value_and_gradients(apply):
  x, gates, chosen, weights = _case()

  def loss(x, gates, weights):
    y = apply(x, gates, chosen, weights)
    return (y * jnp.cos(jnp.arange(128.0))).sum(), y

  return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(x, gates, weights)


@pytest.mark.parametrize("part_width", [128, 256])
def test_parts_of_the_hidden_units_equal_the_dense_evaluation(part_width):
  def parts(x, gates, chosen, weights):
    return grouped_mlp.apply(x, gates, chosen, weights, lambda w: w, part_width)

  def dense(*args):
    return experts.apply_experts(*args, implementation="dense")

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    _value_and_gradients(parts),
    _value_and_gradients(dense),
  )


@pytest.mark.parametrize("implementation", ["grouped", "blocked", "ragged"])
def test_choices_of_other_devices_add_nothing(implementation):
  def of(name):
    return lambda *args: experts.apply_experts(*args, implementation=name)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    _value_and_gradients(of(implementation)),
    _value_and_gradients(of("dense")),
  )


_ON_MESHES = """
import jax, numpy as np, jax.numpy as jnp
from flax import nnx
from sculpt4d_jax import partitioning
from sculpt4d_jax.models.moe import experts, grouped_mlp

grouped_mlp.PART_WIDTH = 128
module = experts.Experts(4, 128, 256, rngs=nnx.Rngs(0))
graphdef, params = nnx.split(module)
x = jax.random.normal(jax.random.key(0), (4, 2, 6, 128))
gates, chosen = jax.lax.top_k(jax.nn.softmax(
    jax.random.normal(jax.random.key(1), (4, 2, 6, 4))), 2)

def loss(implementation):
  def run(params, x, gates):
    y = nnx.merge(graphdef, params)(
        x, gates, chosen, implementation=implementation)
    return (y * jnp.cos(jnp.arange(128.0))).sum(), y
  return jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True))

expected = loss("dense")(params, x, gates)
for sizes in (dict(fsdp=2, context=2), dict(fsdp=1, expert=2, context=2)):
  mesh = partitioning.make_mesh(
      partitioning.MeshConfig(**sizes), jax.devices()[:4])
  with partitioning.use_mesh(mesh):
    split = jax.device_put(params, partitioning.shardings(params, mesh))
    ours = loss("grouped")(split, x, gates)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
               ours, expected)
  print("equal", sizes)
"""


def test_meshes_gather_parts_and_give_the_same(run_on_devices):
  assert run_on_devices(4, _ON_MESHES).count("equal") == 2
