"""The kernels for Ampere and Ada equal the reference, as far as a CPU shows.

Lists and mathematics are those of `pallas_gpu_test`. Here: jax's GPU
interpreter runs the programs and their slots of shared memory, with copies and
products by value; a model counts their copies; the layout that the kernels give
to weights is the one the tensor cores expect.
"""

import re
import types

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.kernels.block_sparse_attention import reference
from sculpt4d_jax.kernels.block_sparse_attention import shapes
from sculpt4d_jax.kernels.block_sparse_attention.gpu import ampere
from sculpt4d_jax.kernels.block_sparse_attention.gpu import (
  attention as pallas_gpu,
)
from sculpt4d_jax.kernels.block_sparse_attention.gpu import tiles as tiles_lib

AmpereTile = tiles_lib.AmpereTile
AmpereTiles = tiles_lib.AmpereTiles
CAPABILITIES = ("8.0", "8.6", "8.9")
NO_SPILLS = {"forward": 0, "query_bar": 0, "key_value_bar": 0}
needs_mma = pytest.mark.skipif(
  not hasattr(plgpu, "mma"),
  reason="needs a jax whose Pallas compiles for Ampere, such as 0.12",
)


def test_simulated_kernels_equal_reference(simulate):
  """Two programs of each kernel; steps of one and of several stages."""
  tile = "AmpereTile(64, 32{})"
  tiles = f"AmpereTiles({tile}, {tile}, {tile})".format("", "", ", stages=2")
  simulate(f"check(BlockMask.dense(2, 1), 64, tiles={tiles})")


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize(
  "call",
  [
    "check(BlockMask(3, 2, (1, 2)), 64, token_order='bit_reversed',"
    " compute_capability='8.0')",
    "check(BlockMask(2, 2, (1, 3)), 128, heads=2, scale=-0.2,"
    " compute_capability='8.6')",
    "check(BlockMask(2, 2, (1, 2)), 128, 'bfloat16', 64, tolerance=2e-2,"
    " compute_capability='8.0')",
    "check(BlockMask(2, 1), 192, 'float16', 128, tolerance=4e-3,"
    " compute_capability='8.0')",
    "check(BlockMask(2, 1), 128, tiles=AmpereTiles(AmpereTile(128, 128),"
    " AmpereTile(128, 64, stages=3), AmpereTile(64, 128, stages=2)))",
    "check(BlockMask(2, 4, (1, 2)), 32, compute_capability='8.9')",
  ],
)
def test_simulated_kernels_in_all_forms(simulate, call):
  simulate(call)


@pytest.mark.parametrize("stages", [1, 2, 3])
@pytest.mark.parametrize("num_operands", [1, 2, 3])
def test_operands_are_there_when_they_are_read(num_operands, stages):
  """Copies finish in order; waiting leaves as many as may be left, no more."""
  steps = range(stages)
  started = [(step, x) for step in steps for x in range(num_operands)]
  for step in range(5):
    for released in range(num_operands):
      for position in range(released, num_operands):
        left = ampere.copies_in_flight(num_operands, stages, position, released)
        finished = started[: len(started) - left]
        assert finished[-1] == (step, position)
      started.append((step + stages, released))


@needs_mma
@pytest.mark.parametrize("shape", [(64, 32), (128, 64)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_threads_hold_products_and_left_factors_in_one_order(shape, dtype):
  product, factor = (
    elements_by_thread(layout(dtype).to_mgpu(), shape)
    for layout in (plgpu.Layout.MMA_ACC, plgpu.Layout.MMA_LHS)
  )
  assert product.shape == (128, shape[0] * shape[1] // 128)
  np.testing.assert_array_equal(product, factor)


def elements_by_thread(layout, shape):
  """Flat indices of the elements that each thread holds, in its order."""
  elements = np.arange(shape[0] * shape[1]).reshape(shape)
  for tile in layout.tiling.tiles:
    kept = elements.ndim - len(tile)
    sizes = elements.shape[kept:]
    split = [x for size, t in zip(sizes, tile) for x in (size // t, t)]
    elements = elements.reshape(*elements.shape[:kept], *split)
    order = [kept + 2 * i for i in range(len(tile))]
    order += [x + 1 for x in order]
    elements = elements.transpose(*range(kept), *order)
  is_axis = lambda dim: isinstance(dim, int)
  threads = [*filter(is_axis, layout.warp_dims), *layout.lane_dims]
  elements = np.moveaxis(elements, threads, range(len(threads)))
  return elements.reshape(128, -1)


@pytest.mark.parametrize("compute_capability", CAPABILITIES)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_two_programs_fit_a_multiprocessor(head_dim, compute_capability):
  tiles = pallas_gpu.default_tiles(head_dim, compute_capability)
  size = 164 if compute_capability == "8.0" else 100
  limit = (size // 2 - 1) << 10  # The system takes 1 KiB of each program.
  tiles.require_shared_memory(head_dim, 2, limit)
  with pytest.raises(ValueError, match="bytes of shared memory"):
    tiles.require_shared_memory(4 * head_dim, 2, limit)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(rows=96, columns=64), "rows=96 must be 64 or 128"),
    (dict(rows=64, columns=48), "columns=48 must be 32, 64 or 128"),
    (dict(rows=64, columns=64, stages=0), "stages=0 must be at least 1"),
  ],
)
def test_bad_tiles_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    AmpereTile(**arguments)


def test_tiles_fit_any_granule():
  tiles = AmpereTiles(AmpereTile(128, 128), AmpereTile(64, 32))
  for granule in (64, 128, 192, 320, 4096):
    for tile in (tiles.fit(granule).forward, tiles.fit(granule).query_bar):
      assert granule % tile.rows == granule % tile.columns == 0
  assert AmpereTile(128, 128).fit(192) == AmpereTile(64, 64)
  assert AmpereTile(128, 32).fit(256) == AmpereTile(128, 32)


@needs_mma
def test_tiles_of_another_family_are_refused():
  inputs = shapes.random_inputs((1, 1, 256, 64), jnp.bfloat16)
  mask = bsa.BlockMask(2, 2)
  for tiles, compute_capability in (
    (tiles_lib.GpuTiles(), "8.0"),
    (AmpereTiles(), "9.0"),
  ):
    message = f"for compute capability {compute_capability}"
    with pytest.raises(ValueError, match=message):
      pallas_gpu.attention(
        *inputs,
        mask,
        scale=1.0,
        tiles=tiles,
        compute_capability=compute_capability,
      )


def test_an_older_jax_leaves_ampere_to_the_next_backend(monkeypatch):
  monkeypatch.delattr(plgpu, "mma", raising=False)
  inputs = shapes.random_inputs((1, 1, 256, 64), jnp.bfloat16)
  mask = bsa.BlockMask(2, 2)
  expected = reference.attention(*inputs, mask, scale=0.125)[0]
  device = types.SimpleNamespace(compute_capability="8.0")
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(jax, "devices", lambda *_: [device])
  with pytest.raises(NotImplementedError, match="Pallas compiles for .* 8.0"):
    bsa.block_sparse_attention(*inputs, mask, implementation="pallas_gpu")
  actual = bsa.block_sparse_attention(*inputs, mask)
  np.testing.assert_allclose(
    actual.astype(jnp.float32), expected.astype(jnp.float32), atol=2e-2
  )


@pytest.mark.slow
@pytest.mark.parametrize("target", ["a100", "rtx3090", "rtx4090"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_kernels_compile_without_spills(spills_ahead_of_time, target, head_dim):
  assert spills_ahead_of_time(target, head_dim) == NO_SPILLS


@needs_mma
@pytest.mark.slow
def test_instructions_run_in_numpy_equal_reference(run_with_cuda_compiler):
  """What the compiler makes of the kernels, executed."""
  text = run_with_cuda_compiler(
    "tests.kernels.block_sparse_attention.gpu.check_ampere_ptx"
  )
  errors = re.findall(r"^  (\w+) ([0-9.e+-]+)$", text, re.MULTILINE)
  assert len(errors) == 3 * 5, text
  for name, error in errors:
    # Inputs, weights and results have eight bits of mantissa or more.
    assert float(error) < (1e-6 if name == "log_sum_exp" else 1e-2), text
