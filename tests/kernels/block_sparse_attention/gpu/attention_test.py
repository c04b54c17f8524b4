"""The NVIDIA GPU backend equals the reference, as far as a CPU can show.

Three layers: the lists cover the mask; the lists with the kernels' mathematics,
walked in plain JAX, give outputs and gradients; jax's GPU interpreter runs the
kernels themselves, with their copies, barriers and warpgroups, on small shapes.
"""

import importlib.util
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.kernels.block_sparse_attention import reference
from sculpt4d_jax.kernels.block_sparse_attention import shapes
from sculpt4d_jax.kernels.block_sparse_attention.bench import aot_gpu
from sculpt4d_jax.kernels.block_sparse_attention.gpu import (
  attention as pallas_gpu,
)
from sculpt4d_jax.kernels.block_sparse_attention.gpu import tiles as tiles_lib
from tests.kernels.block_sparse_attention import ablation_masks

BlockMask = bsa.BlockMask
Tile = tiles_lib.Tile
GpuTiles = tiles_lib.GpuTiles
AmpereTile = tiles_lib.AmpereTile
NO_SPILLS = {"forward": 0, "query_bar": 0, "key_value_bar": 0}

MASKS = [
  BlockMask(1, 1),
  BlockMask(3, 8, (1, 2, 4)),
  BlockMask(2, 33, (1, 2, 4)),
  BlockMask(4, 6, (1, 3, 5), anchor_frames=(1, 3)),
  BlockMask(9, 2, (1, 4), anchor_frames=()),
  BlockMask(4, 8, (2, 6)) | BlockMask(4, 8, (5,), ()),
  BlockMask.dense(3, 4),
]


def walk(*args, **kwargs):
  return pallas_gpu.attention(*args, interpret=True, **kwargs)


def results_and_gradients(attend, inputs):
  """Output, log-sum-exp, and gradients for random cotangents of both."""
  keys = jax.random.split(jax.random.key(7), 2)
  output_bar = jax.random.normal(keys[0], inputs[0].shape)
  log_sum_exp_bar = jax.random.normal(keys[1], inputs[0].shape[:-1])

  def loss(*inputs):
    output, log_sum_exp = attend(*inputs)
    product = (output.astype(jnp.float32) * output_bar).sum()
    product += (log_sum_exp * log_sum_exp_bar).sum()
    return product, (output, log_sum_exp)

  differentiate = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
  # Compiling takes far longer than running: optimise less.
  options = {"xla_backend_optimization_level": 0}
  jitted = jax.jit(differentiate, compiler_options=options)
  (_, results), gradients = jitted(*inputs)
  return dict(
    zip(
      ("output", "log_sum_exp", "query", "key", "value"),
      (np.asarray(x, np.float32) for x in (*results, *gradients)),
    )
  )


def assert_walk_equals_reference(
  mask,
  block_size=64,
  tolerance=2e-5,
  scale=0.2,
  token_order="natural",
  heads=1,
  head_dim=8,
  tiles=None,
  **inputs,
):
  """Compares results and gradients, relative to the largest of each."""
  shape = (1, heads, mask.num_blocks * block_size, head_dim)
  inputs = shapes.random_inputs(shape, **inputs)
  kwargs = dict(scale=scale, token_order=token_order)
  actual = results_and_gradients(
    lambda *xs: walk(*xs, mask, tiles=tiles, **kwargs), inputs
  )
  expected = results_and_gradients(
    lambda *xs: reference.attention(*xs, mask, **kwargs), inputs
  )
  for name, value in expected.items():
    np.testing.assert_allclose(
      actual[name],
      value,
      rtol=tolerance,
      atol=tolerance * max(1.0, np.abs(value).max()),
      err_msg=f"{name} of {mask}",
    )


def covered(lists, num_blocks, size, by_key):
  """Block pairs on the lists, [blocks, blocks] counts."""
  granules = num_blocks // size
  table = np.zeros((granules, granules), int)
  for position, row in enumerate(lists.rows):
    start, stop = lists.offsets[position : position + 2]
    np.add.at(table[row], lists.columns[start:stop], 1)
  table = table.T if by_key else table
  return table.repeat(size, 0).repeat(size, 1)


def assert_lists_cover_exactly(mask):
  for order, by_key in itertools.product(
    ("natural", "bit_reversed"), (False, True)
  ):
    size = tiles_lib.granule_blocks(mask, order)
    lists = tiles_lib.tile_lists(mask, order, by_key)
    np.testing.assert_array_equal(
      covered(lists, mask.num_blocks, size, by_key), mask.dense_blocks(order)
    )
    assert (np.diff(np.diff(lists.offsets)) <= 0).all(), "longest rows first"


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_lists_cover_exactly_the_mask(mask):
  assert_lists_cover_exactly(mask)


@pytest.mark.parametrize("num_frames", [1, 2, 5, 9, 16])
def test_lists_cover_every_schedule_of_the_ablation(num_frames):
  for mask in ablation_masks.ablation_masks(num_frames, 16).values():
    assert_lists_cover_exactly(mask)


def test_lists_by_hand():
  # Two frames of two blocks; a block sees its frame, and itself elsewhere.
  mask = BlockMask(2, 2, (1, 2), anchor_frames=(0,))
  lists = tiles_lib.tile_lists(mask, "natural")
  np.testing.assert_array_equal(lists.rows, [2, 3, 0, 1])
  np.testing.assert_array_equal(lists.offsets, [0, 4, 8, 11, 14])
  np.testing.assert_array_equal(
    lists.columns, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 0, 1, 3]
  )


def test_lists_of_long_clips_are_small_and_quick():
  mask = BlockMask(64, 32)
  start = time.perf_counter()
  lists = tiles_lib.tile_lists(mask, "bit_reversed")
  assert time.perf_counter() - start < 1.0
  # Two blocks a granule: 1024 granules, 14.07 % of their pairs.
  assert len(lists.columns) == round(1024**2 * mask.density())


@pytest.mark.parametrize("mask", MASKS[3:6:2], ids=["strides", "union"])
def test_walk_equals_reference(mask):
  assert_walk_equals_reference(mask)


@pytest.mark.parametrize(
  "tiles",
  [
    GpuTiles(Tile(1, 128), Tile(2, 64), Tile(1, 64, stages=3)),
    tiles_lib.AmpereTiles(
      AmpereTile(128, 32), AmpereTile(64, 64), AmpereTile(64, 32)
    ),
  ],
  ids=["Hopper", "Ampere"],
)
def test_walk_with_granules_of_several_tiles(tiles):
  mask = BlockMask(3, 4, (1, 2))
  assert_walk_equals_reference(
    mask, block_size=128, token_order="bit_reversed", heads=2, tiles=tiles
  )


def test_small_blocks_are_bit_reversed_on_the_way():
  # Blocks of 16 tokens: only runs of four of them fill a tile.
  assert_walk_equals_reference(BlockMask(3, 8, (1, 2)), block_size=16)


def test_negative_scale():
  assert_walk_equals_reference(BlockMask(2, 2, (1, 2)), scale=-0.3)


def test_bfloat16():
  # Eight bits of mantissa in inputs, weights and results.
  mask = BlockMask(4, 4, (1, 2))
  assert_walk_equals_reference(mask, tolerance=2e-2, dtype=jnp.bfloat16)


def test_large_logits():
  mask = BlockMask(3, 4, (1, 2))
  inputs = shapes.random_inputs((1, 1, 768, 8), size=100.0)
  logits = jnp.einsum("bhqk,bhsk->bhqs", inputs[0], inputs[1])
  assert float(logits.max()) > 1e4  # exp overflows float32 beyond 88.
  # float32 keeps scores of 1e4 to about 1e-3.
  assert_walk_equals_reference(mask, tolerance=5e-3, scale=1.0, size=100.0)


def test_walk_under_jit_vmap_remat_and_scan():
  mask = BlockMask(2, 2, (1, 2))
  inputs = shapes.random_inputs((2, 1, 2, 256, 4))

  def loss(*inputs, attend=walk):
    return (attend(*inputs, mask, scale=0.5)[0] ** 2).sum()

  def scanned(*inputs):
    body = lambda total, xs: (total + loss(*xs), None)
    return jax.lax.scan(jax.checkpoint(body), 0.0, inputs)[0]

  def expected(*inputs):
    return loss(*inputs, attend=reference.attention)

  argnums = (0, 1, 2)
  gradients = jax.jit(
    lambda *xs: (
      jax.vmap(jax.grad(expected, argnums))(*xs),
      jax.vmap(jax.grad(loss, argnums))(*xs),
      jax.grad(scanned, argnums)(*xs),
    )
  )(*inputs)
  for actual in gradients[1:]:
    for x, y in zip(actual, gradients[0]):
      np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.mark.parametrize(
  "change, reason",
  [
    (dict(compute_capability="7.5"), "capability 9.0 .* device has 7.5"),
    (dict(compute_capability=None), "needs an NVIDIA GPU"),
    (dict(dtype=jnp.float32), "bfloat16 or float16"),
    (dict(head_dim=96), "head width K of 64 or 128"),
    (dict(block_size=48), "multiple of 64 tokens, and this mask has 48"),
  ],
)
def test_what_it_cannot_serve_is_declined(change, reason):
  options = dict(
    compute_capability="9.0", dtype=jnp.bfloat16, head_dim=64, block_size=64
  )
  options |= change
  mask = BlockMask(2, 4, (1, 3))
  shape = (1, 1, 8 * options["block_size"], options["head_dim"])
  inputs = shapes.random_inputs(shape, options["dtype"])
  with pytest.raises(NotImplementedError, match=reason):
    pallas_gpu.attention(
      *inputs,
      mask,
      scale=1.0,
      compute_capability=options["compute_capability"],
    )


def test_named_backend_declines_aloud_without_a_gpu():
  inputs = shapes.random_inputs((1, 1, 256, 64), jnp.bfloat16)
  mask = BlockMask(2, 2)
  with pytest.raises(NotImplementedError, match="needs an NVIDIA GPU"):
    bsa.block_sparse_attention(*inputs, mask, implementation="pallas_gpu")
  bsa.block_sparse_attention(*inputs, mask)  # Uses the next backend.


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(warpgroups=4, columns=64), "must be 1, 2 or 3"),
    (dict(warpgroups=1, columns=96), "multiple of 64"),
    (dict(warpgroups=1, columns=320), "in 64..256"),
    (dict(warpgroups=1, columns=64, stages=1), "at least 2"),
  ],
)
def test_bad_tiles_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    Tile(**arguments)


def test_tiles_fit_any_granule():
  for granule in (64, 128, 192, 320, 4096):
    tiles = GpuTiles(Tile(3, 192), Tile(2, 256)).fit(granule)
    for tile in (tiles.forward, tiles.query_bar):
      assert granule % tile.rows == granule % tile.columns == 0
  assert Tile(2, 128).fit(192) == Tile(1, 64)
  assert Tile(2, 128).fit(256) == Tile(2, 128)


def test_tiles_beyond_shared_memory_are_refused():
  tiles = GpuTiles(forward=Tile(2, 256))
  with pytest.raises(ValueError, match="forward=.*bytes of shared memory"):
    tiles.require_shared_memory(128, 2)
  tiles.require_shared_memory(64, 2)
  for head_dim in (64, 128):
    pallas_gpu.default_tiles(head_dim).require_shared_memory(head_dim, 2)


def test_sharding_over_heads_needs_no_communication(run_on_devices):
  run_on_devices(
    2,
    """
      import functools
      import jax, numpy as np
      from jax.sharding import PartitionSpec
      from sculpt4d_jax.kernels import block_sparse_attention as bsa
      from sculpt4d_jax.kernels.block_sparse_attention import (
          reference, shapes)
      from sculpt4d_jax.kernels.block_sparse_attention.gpu import (
          attention as pallas_gpu)

      mask = bsa.BlockMask(2, 2, (1, 2))
      inputs = shapes.random_inputs((1, 2, 256, 8))
      attend = functools.partial(
          pallas_gpu.attention, mask=mask, scale=0.3, interpret=True)
      mesh = jax.make_mesh((2,), ("heads",))
      spec = PartitionSpec(None, "heads")
      mapped = jax.shard_map(
          lambda *xs: attend(*xs)[0], mesh=mesh, in_specs=spec, out_specs=spec)
      loss = lambda *xs: (mapped(*xs) ** 2).sum()
      expected = reference.attention(*inputs, mask, scale=0.3)[0]
      sharding = jax.sharding.NamedSharding(mesh, spec)
      inputs = jax.device_put(inputs, sharding)
      run = jax.jit(mapped).lower(*inputs).compile()
      np.testing.assert_allclose(run(*inputs), expected, atol=1e-5)
      both = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*inputs).compile()
      for exchange in ("all-gather", "all-to-all", "collective-permute"):
        assert exchange not in run.as_text() + both.as_text()
      """,
  )


def test_simulated_kernels_equal_reference(simulate):
  """Two warpgroups that take turns; one program of each kernel."""
  tiles = "GpuTiles(Tile(2, 64), Tile(2, 64), Tile(2, 64))"
  simulate(f"check(BlockMask.dense(1, 1), 128, tiles={tiles})")


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize(
  "call",
  [
    "check(BlockMask.dense(2, 1), 128, tiles=GpuTiles(Tile(2, 64)))",
    "check(BlockMask(3, 2, (1, 2)), 64, token_order='bit_reversed')",
    "check(BlockMask(2, 1), 64, scale=0.0)",
    "check(BlockMask(2, 2, (1, 3)), 128, heads=2, scale=-0.2)",
    "check(BlockMask(2, 2, (1, 2)), 128, 'bfloat16', 64, tolerance=2e-2)",
    "check(BlockMask(2, 3, (1, 2)), 64, 'float16', 64, tolerance=4e-3)",
    "check(BlockMask(1, 1), 64, head_dim=128)",
    "check(BlockMask(2, 1), 192, tiles=GpuTiles(Tile(3, 64, stages=3),"
    " Tile(1, 192), Tile(3, 64)))",
    "check(BlockMask(2, 1), 128, tiles=GpuTiles(Tile(2, 128),"
    " alternate=False, weights_in_shared_memory=True))",
    "check(BlockMask(2, 4, (1, 2)), 32)",
  ],
)
def test_simulated_kernels_in_all_forms(simulate, call):
  simulate(call)


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("variant", "ABCDEF")
@pytest.mark.parametrize("num_frames", [1, 2, 3, 4, 5, 6, 7, 8, 9, 16])
def test_walk_of_every_schedule_at_every_length(num_frames, variant):
  blocks = 4 if num_frames == 16 else 8
  mask = ablation_masks.ablation_masks(num_frames, blocks)[variant]
  assert_walk_equals_reference(mask, token_order="bit_reversed", head_dim=4)


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("blocks", [*range(1, 18), 24, 31, 32, 33])
@pytest.mark.parametrize("anchors", [(), (0,), (1,)])
def test_walk_at_every_number_of_blocks(blocks, anchors):
  mask = BlockMask(3, blocks, (1, 2, 4), anchors)
  assert_walk_equals_reference(mask, head_dim=4)


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128])
def test_kernels_compile_without_spills(spills_ahead_of_time, head_dim):
  assert spills_ahead_of_time("h100", head_dim) == NO_SPILLS


def test_ahead_of_time_program_names_the_extra(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(SystemExit, match=r"pip install 'jax\[cuda12\]'"):
    aot_gpu.prepare_environment()
