"""The mesh and its rules; every mesh gives the results of one device."""

import jax
import numpy as np
import pytest

from sculpt4d_jax import partitioning


def test_sizes_are_resolved_and_checked():
  config = partitioning.MeshConfig(context=2)
  assert config.resolve(8) == (1, 4, 1, 2, 1)
  assert partitioning.MeshConfig().resolve(1) == (1, 1, 1, 1, 1)
  with pytest.raises(ValueError, match="needs 3 devices or a multiple"):
    partitioning.MeshConfig(tensor=3).resolve(8)
  with pytest.raises(ValueError, match="there are 8"):
    partitioning.MeshConfig(fsdp=4).resolve(8)
  with pytest.raises(ValueError, match="at most once"):
    partitioning.MeshConfig(data=-1)
  with pytest.raises(ValueError, match="positive"):
    partitioning.MeshConfig(data=0)


def _mesh(**sizes):
  """An abstract mesh: rules need no devices."""
  shape = tuple(sizes.get(name, 1) for name in partitioning.MESH_AXES)
  return jax.sharding.AbstractMesh(shape, partitioning.MESH_AXES)


def test_parameters_are_split_by_their_axes():
  mesh = _mesh(fsdp=4, context=2, tensor=2)
  spec = partitioning.parameter_spec
  P = partitioning.Spec
  # The layers' axis in front is whole.
  assert spec((7, 512, 2048), ("embed", "mlp"), mesh) == P(
    None, ("fsdp", "context"), "tensor"
  )
  # 500 is a multiple of 4, not of 4 * 2; small parameters stay whole.
  assert spec((500, 2048), ("embed", "mlp"), mesh) == P("fsdp", "tensor")
  assert spec((2048,), ("embed",), mesh) == P()
  mesh = _mesh(fsdp=2, expert=4)
  assert spec((8, 64, 128), ("expert", "embed", "mlp"), mesh) == P(
    "expert", "fsdp", None
  )


def test_training_that_does_not_divide_is_refused():
  mesh = _mesh(fsdp=4, context=2, tensor=2)
  good = dict(batch_size=8, num_frames=4, num_heads=8, hidden_width=64)
  partitioning.check_training(mesh, **good)
  for name, value, message in (
    ("batch_size", 6, "6 clips a step .* over 4 devices"),
    ("num_frames", 3, "3 frames"),
    ("num_heads", 6, "context=2 \\* tensor=2"),
    ("accumulation_steps", 3, "accumulation_steps=3"),
    ("accumulation_steps", 4, "2 clips a step"),
  ):
    with pytest.raises(ValueError, match=message):
      partitioning.check_training(mesh, **(good | {name: value}))


_MODEL_ON_MESHES = """
import jax, numpy as np, jax.numpy as jnp
from flax import nnx
from sculpt4d_jax import partitioning
from sculpt4d_jax.models import dit as dit_lib

# All parameters count as large, so that their splitting is tried.
partitioning.MIN_SPLIT_SIZE = 0
config = dit_lib.DiTConfig(
    depth=3, width=16, num_heads=4, latent_channels=4, context_width=8,
    num_moe_blocks=1, num_experts=4, temporal_block_size=2,
    temporal_schedule=(1, 2), remat_policy="full")
model = dit_lib.DiT(config, rngs=nnx.Rngs(0))
graphdef, params = nnx.split(model)
keys = iter(jax.random.split(jax.random.key(1), 9))
# Zeros would hide temporal attention.
params = jax.tree.map(
    lambda p: p + 0.2 * jax.random.normal(jax.random.key(p.size), p.shape),
    params)
latents = jax.random.normal(next(keys), (8, 4, 8, 4))
context = jax.random.normal(next(keys), (8, 4, 5, 8))
time = jax.random.uniform(next(keys), (8,))

def loss(params, latents, time, context):
  out = nnx.merge(graphdef, params)(latents, time, context)
  return (out.velocity**2).mean() + out.aux_losses.sum(), out.router_load

run = jax.value_and_grad(loss, has_aux=True)
(value, load), grads = jax.jit(run)(params, latents, time, context)
for sizes in %(meshes)s:
  mesh = partitioning.make_mesh(partitioning.MeshConfig(**sizes))
  place = lambda x: jax.device_put(
      x, partitioning.batch_sharding(x.shape, mesh))
  with partitioning.use_mesh(mesh):
    where = partitioning.shardings(params, mesh)
    split = jax.device_put(params, where)
    (v, l), g = jax.jit(run, out_shardings=(None, where))(
        split, *map(place, (latents, time, context)))
  np.testing.assert_allclose(v, value, rtol=2e-6)
  np.testing.assert_array_equal(l, load)
  for (path, a), b in zip(
      jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(g)):
    scale = np.abs(a).max()
    np.testing.assert_allclose(
        b, a, atol=5e-6 * max(scale, 1e-2), rtol=0,
        err_msg=f"{sizes} {jax.tree_util.keystr(path)}")
  print("equal", sizes)
"""

MESHES = (
  dict(fsdp=2, context=2, tensor=2),
  dict(fsdp=1, expert=2, context=2, tensor=2),
  dict(data=8, fsdp=1),
  dict(fsdp=8),
  dict(fsdp=2, context=4),
  dict(fsdp=2, expert=4),
  dict(fsdp=2, tensor=4),
  dict(data=2, fsdp=1, expert=2, context=2),
)


@pytest.mark.slow  # Compiles for every mesh.
def test_every_mesh_gives_the_numbers_of_one_device(run_on_devices):
  meshes = list(MESHES[:2])
  out = run_on_devices(8, _MODEL_ON_MESHES % {"meshes": meshes})
  assert out.count("equal") == len(meshes)


@pytest.mark.sweep
@pytest.mark.slow  # A compile for every mesh.
def test_all_other_meshes_too(run_on_devices):
  out = run_on_devices(8, _MODEL_ON_MESHES % {"meshes": list(MESHES[2:])}, 1800)
  assert out.count("equal") == len(MESHES) - 2


def test_a_batch_is_put_together_from_its_rows():
  mesh = partitioning.make_mesh(partitioning.MeshConfig())
  rows = partitioning.local_rows(4, mesh)
  np.testing.assert_array_equal(rows, np.arange(4))
  local = {"x": np.arange(24.0).reshape(4, 3, 2)}
  batch = partitioning.global_batch(local, rows, 4, mesh)
  np.testing.assert_array_equal(batch["x"], local["x"])
