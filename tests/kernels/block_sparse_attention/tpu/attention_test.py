"""The TPU kernels equal the float32 reference, in Pallas' interpreter."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.kernels.block_sparse_attention import shapes
from sculpt4d_jax.kernels.block_sparse_attention.tpu import (
  attention as pallas_tpu,
)
from sculpt4d_jax.kernels.block_sparse_attention.tpu import lists as tpu_lists
from sculpt4d_jax.kernels.block_sparse_attention.tpu import pair_lists
from sculpt4d_jax.kernels.block_sparse_attention.tpu import tiles as tpu_tiles
from tests.kernels.block_sparse_attention import ablation_masks

BlockMask = bsa.BlockMask

# Small enough to compile in seconds: tiles of two pieces, two a step.
TILES = tpu_tiles.TileSizes(
  piece_tokens=4,
  near=(1, 2),
  far=(2, 1),
  stream=2,
  groups=(2, 2),
  lanes=1,
)


def kernels(tiles=TILES):
  return functools.partial(pallas_tpu.attention, tiles=tiles, interpret=True)


def results_and_gradients(inputs, mask, **kwargs):
  """Output, log-sum-exp, and gradients for random cotangents of both."""
  keys = jax.random.split(jax.random.key(7), 2)
  output_bar = jax.random.normal(keys[0], inputs[0].shape)
  log_sum_exp_bar = jax.random.normal(keys[1], inputs[0].shape[:-1])

  def loss(*inputs):
    output, log_sum_exp = bsa.block_sparse_attention(
      *inputs, mask, return_log_sum_exp=True, **kwargs
    )
    product = (output.astype(jnp.float32) * output_bar).sum()
    product += (log_sum_exp * log_sum_exp_bar).sum()
    return product, (output, log_sum_exp)

  differentiate = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
  options = {"xla_backend_optimization_level": 0}
  jitted = jax.jit(differentiate, compiler_options=options)
  (_, results), gradients = jitted(*inputs)
  names = ("output", "log_sum_exp", "query", "key", "value")
  arrays = (np.asarray(x, np.float32) for x in (*results, *gradients))
  return dict(zip(names, arrays))


def assert_equals_reference(
  inputs, mask, tolerance=2e-5, tiles=TILES, **kwargs
):
  """Compares results and gradients, relative to the largest of each."""
  actual = results_and_gradients(
    inputs, mask, implementation=kernels(tiles), **kwargs
  )
  kwargs["implementation"] = "reference"
  expected = results_and_gradients(inputs, mask, **kwargs)
  for name, value in expected.items():
    np.testing.assert_allclose(
      actual[name],
      value,
      rtol=tolerance,
      atol=tolerance * max(1.0, np.abs(value).max()),
      err_msg=f"{name} of {mask}",
    )


def inputs_for(mask, block_size, batch=1, heads=2, head_dim=8, **kwargs):
  shape = (batch, heads, mask.num_blocks * block_size, head_dim)
  return shapes.random_inputs(shape, **kwargs)


def test_runs_and_far_frames_of_the_paper_mask():
  # Nine frames have far pairs on both sides; natural order is permuted.
  mask = BlockMask(9, 16)
  assert_equals_reference(inputs_for(mask, 2), mask)


def test_any_block_list():
  # Strides and block counts that are no powers of two; the tile's last frame
  # and segment do not exist. Pieces of three tokens are filled up to four,
  # whose keys are hidden.
  mask = BlockMask(5, 5, (1, 3), anchor_frames=(1, 4)) & BlockMask(5, 5, (2,))
  tiles = tpu_tiles.TileSizes(
    piece_tokens=4, near=(2, 2), far=None, stream=2, groups=(3, 3), lanes=4
  )
  assert_equals_reference(
    inputs_for(mask, 3, heads=1),
    mask,
    tiles=tiles,
    token_order="bit_reversed",
  )


def test_one_forward_pass_over_near_and_far_pairs():
  # More pairs an item than maxima are updated early; the second tile has frames
  # past the end of the clip. The paper's strides, one block of two tokens each.
  joint = tpu_tiles.JointPass(tile=(6, 16), stream=4, group=18)
  tiles = dataclasses.replace(TILES, joint=joint)
  mask = BlockMask(8, 16)
  inputs = inputs_for(mask, 2, heads=1)
  assert_equals_reference(inputs, mask, tiles=tiles)


def test_large_logits():
  mask = BlockMask(4, 4, schedule=(1, 2, 4))
  inputs = inputs_for(mask, 4, heads=1, size=100.0)
  logits = jnp.einsum("bhqk,bhsk->bhqs", inputs[0], inputs[1])
  assert float(logits.max()) > 1e4  # exp overflows float32 beyond 88.
  # float32 keeps scores of 1e4 to about 1e-3.
  assert_equals_reference(inputs, mask, tolerance=5e-3)


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_matrix_units_may_sum_the_weights(size):
  # Pieces of 6 tokens are filled up to 8.
  tiles = tpu_tiles.TileSizes(
    piece_tokens=8,
    near=(1, 2),
    far=None,
    stream=2,
    groups=(4, 4),
    lanes=8,
    spare_vector_units=True,
  )
  mask = BlockMask(3, 4, schedule=(1, 2, 4))
  inputs = inputs_for(mask, 6, heads=1, size=size, dtype=jnp.bfloat16)
  assert_equals_reference(inputs, mask, tolerance=1e-2, tiles=tiles)


def frames_first(x, num_frames):
  """[B, H, S, ...] to [F, B, H, N, ...]."""
  x = x.reshape(*x.shape[:2], num_frames, -1, *x.shape[3:])
  return jnp.moveaxis(x, 2, 0)


@pytest.mark.parametrize("token_order", ["natural", "bit_reversed"])
def test_frames_first_equal_heads_first(token_order):
  # Two passes forward and backward, and runs along frames and along segments.
  mask = BlockMask(9, 16)
  inputs = inputs_for(mask, 2, batch=2)
  keys = jax.random.split(jax.random.key(7), 2)
  shape = inputs[0].shape
  bars = [
    jax.random.normal(keys[0], shape),
    jax.random.normal(keys[1], shape[:-1]),
  ]
  kwargs = dict(
    mask=mask,
    scale=0.3,
    token_order=token_order,
    tiles=TILES,
    interpret=True,
  )

  def both(attend, inputs, bars):
    results, vjp = jax.vjp(functools.partial(attend, **kwargs), *inputs)
    return *results, *vjp(tuple(bars))

  expected = jax.jit(functools.partial(both, pallas_tpu.attention))(
    inputs, bars
  )
  turn = functools.partial(frames_first, num_frames=9)
  actual = jax.jit(functools.partial(both, pallas_tpu.attention_of_frames))(
    *jax.tree.map(turn, (inputs, bars))
  )
  for ours, theirs in zip(actual, map(turn, expected), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_vmap_of_frames_first():
  mask = BlockMask(3, 4, schedule=(1, 2, 4))
  inputs = [frames_first(x, 3) for x in inputs_for(mask, 4, batch=2)]
  attend = functools.partial(
    pallas_tpu.attention_of_frames,
    mask=mask,
    scale=0.3,
    tiles=TILES,
    interpret=True,
  )
  expected = attend(*inputs)
  by_clip = jax.vmap(attend, in_axes=1, out_axes=1)
  alone = by_clip(*(x[:, :, None] for x in inputs))
  for ours, theirs in zip(alone, expected, strict=True):
    np.testing.assert_allclose(ours[:, :, 0], theirs, atol=1e-6)


def test_vmap_and_shard_map():
  mask = BlockMask(3, 4, schedule=(1, 2, 4))
  query, key, value = inputs_for(mask, 4, batch=2)
  sparse = lambda *xs: bsa.block_sparse_attention(
    *xs, mask, implementation=kernels()
  )
  expected = bsa.block_sparse_attention(
    query, key, value, mask, implementation="reference"
  )

  # The axis that is mapped over joins the batch.
  by_head = jax.vmap(sparse, in_axes=2, out_axes=2)
  expand = lambda x: x[:, None]
  mapped = jax.jit(by_head)(*map(expand, (query, key, value)))
  np.testing.assert_allclose(mapped[:, 0], expected, atol=2e-5)

  heads = jax.sharding.PartitionSpec(None, "heads")
  mesh = jax.sharding.Mesh(
    jax.devices()[: math.gcd(2, jax.device_count())], ("heads",)
  )
  sharded = jax.shard_map(
    sparse, mesh=mesh, in_specs=heads, out_specs=heads, check_vma=False
  )
  lowered = jax.jit(sharded).lower(query, key, value)
  compiled = lowered.compile()
  np.testing.assert_allclose(compiled(query, key, value), expected, atol=2e-5)
  assert "all-" not in compiled.as_text()  # No communication.


@pytest.mark.slow
def test_remat_and_scan():
  mask = BlockMask(3, 4, schedule=(1, 2, 4))
  query, key, value = inputs_for(mask, 4)

  def layers(implementation, query):
    def attend(x):
      return bsa.block_sparse_attention(
        x, key, value, mask, implementation=implementation
      )

    step = lambda x, _: (jax.checkpoint(attend)(x), None)
    return jax.lax.scan(step, query, None, length=2)[0].sum()

  actual, expected = (
    jax.jit(jax.grad(functools.partial(layers, implementation)))(query)
    for implementation in (kernels(), "reference")
  )
  np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize(
  "mask, tiles",
  [
    (BlockMask(9, 16), ((1, 4), (4, 1))),
    (BlockMask(16, 32), ((1, 8), (8, 1))),
    (BlockMask(16, 32), ((2, 2),)),
    (BlockMask(6, 7, (1, 3, 5), (2,)), ((1, 4), (4, 1))),
    (BlockMask.dense(3, 4), ((1, 4), (4, 1))),
  ],
  ids=["near_far", "eight", "one_pass", "lists", "dense"],
)
def test_lists_hold_the_mask_exactly(mask, tiles):
  stream, buffers = 4, 3
  layout = tpu_lists.make_layout(mask, 8 * mask.blocks_per_frame, 256, 1)
  lists = tpu_lists.make_lists(mask, layout, tiles, stream, buffers)
  order = "bit_reversed" if mask.is_power_of_two else "natural"
  seen = np.zeros((mask.num_frames, layout.segments) * 2, int)
  for work in lists:
    for _, _, row, piece in _pairs(work, layout):
      seen[(*row, *piece)] += 1
  total = mask.num_frames * layout.segments
  seen = seen.reshape(total, total).T  # Tiles hold keys.
  blocks_a_piece = mask.num_blocks / total
  of_piece = (np.arange(total) * blocks_a_piece).astype(int)
  expected = mask.dense_blocks(order)[np.ix_(of_piece, of_piece)]
  np.testing.assert_array_equal(seen, expected)
  assert sum(work.num_units for work in lists) == expected.sum()


def _pairs(work, layout):
  """(tile, item, piece of the row, streamed piece), read from the words."""
  frames, segments = work.tile
  tiles_a_row = -(-layout.segments // segments)
  start = tpu_lists.header_words(work.sizes)
  for tile, words in enumerate(work.words):
    corner = tile // tiles_a_row * frames, tile % tiles_a_row * segments
    items = words[start:].reshape(-1, 2 + work.stream)
    item = 0
    for size, count in zip(
      np.repeat(work.sizes, 2), words[1:start], strict=True
    ):
      for index in range(item, item + count):
        rows = range(size)
        if size < work.sizes[0]:
          rows = [int(items[index, 1]) >> 4 * r & 15 for r in rows]
        for piece in items[index, 2 : 2 + (items[index, 0] & 255)]:
          for row in rows:
            place = row // segments + corner[0], row % segments + corner[1]
            yield tile, index, place, (piece >> 16, piece & 0xFFFF)
      item += count


@pytest.mark.parametrize("num_frames", [8, 16, 64])
def test_sums_are_written_before_they_are_read_again(num_frames):
  mask = BlockMask(num_frames, 32)
  layout = tpu_lists.make_layout(mask, 4096, 256, 128)
  buffers = 3
  for work in tpu_lists.make_lists(mask, layout, ((1, 4), (4, 1)), 8, buffers):
    pieces = {}
    for tile, item, _, piece in _pairs(work, layout):
      pieces.setdefault(int(work.words[tile, 0]) + item, set()).add(piece)
    for item, own in pieces.items():
      for before in range(item - buffers, item):
        assert not own & pieces.get(before, set())


def test_tiles_are_no_larger_than_the_clip():
  mask = BlockMask(9, 8, schedule=(1, 1, 2, 4, 8))
  layout = tpu_lists.make_layout(mask, 2048, 256, 128)
  lists = pair_lists.make_lists(
    mask, layout, ((1, 16), (16, 1)), 4, (16, 16), 3
  )
  assert [work.tile for work in lists] == [(1, 8), (9, 1)]
  lists = tpu_lists.make_lists(mask, layout, ((1, 16), (8, 1)), 4, 3)
  # Sets of rows: all of the tile, and powers of two.
  assert [work.sizes for work in lists] == [(8, 4, 2, 1)] * 2


def test_what_is_not_served_says_why():
  mask = BlockMask(4, 4)
  inputs = inputs_for(mask, 128)
  with pytest.raises(NotImplementedError, match="run on TPU"):
    bsa.block_sparse_attention(*inputs, mask, implementation="pallas_tpu")
  on_chip = functools.partial(pallas_tpu.attention, chip="v5e")
  with pytest.raises(NotImplementedError, match="head dimension K=8"):
    bsa.block_sparse_attention(*inputs, mask, implementation=on_chip)
  inputs = inputs_for(mask, 4, head_dim=64)
  with pytest.raises(NotImplementedError, match="at least 64 tokens"):
    bsa.block_sparse_attention(*inputs, mask, implementation=on_chip)
  halves = [x.astype(jnp.float16) for x in inputs]
  with pytest.raises(NotImplementedError, match="float16"):
    bsa.block_sparse_attention(*halves, mask, implementation=on_chip)


def test_tile_sizes_check_themselves():
  with pytest.raises(ValueError, match="buffers must be at least 3"):
    tpu_tiles.TileSizes(buffers=2)
  with pytest.raises(ValueError, match="groups must be two positive"):
    tpu_tiles.TileSizes(groups=(8, 0))
  with pytest.raises(ValueError, match="multiple of lanes=128"):
    tpu_tiles.TileSizes(piece_tokens=100)
  with pytest.raises(ValueError, match="at most 8 pieces"):
    tpu_tiles.TileSizes(near=(4, 4))
  with pytest.raises(ValueError, match="at most 16 pieces"):
    tpu_tiles.TileSizes(forward_far=(17, 1))
  with pytest.raises(ValueError, match="forward_far=.* needs far"):
    tpu_tiles.TileSizes(far=None, forward_far=(16, 1))
  with pytest.raises(ValueError, match="chip='v9' is unknown"):
    tpu_tiles.default("v9")
  half = tpu_tiles.default("v6e")
  assert half.tiles(False) != half.tiles(True)
  exact = tpu_tiles.default(
    "v6e", "float32"
  )  # Large tiles compile for minutes.
  assert exact.tiles(False) == exact.tiles(True)
  assert half.joint and not exact.joint
  with pytest.raises(ValueError, match="at most 256 pieces"):
    tpu_tiles.JointPass((17, 16), 4, 64)
  with pytest.raises(ValueError, match="must be positive"):
    tpu_tiles.JointPass((8, 16), 0, 64)
  assert tpu_tiles.chip_of("TPU v6 lite") == "v6e"
  assert tpu_tiles.chip_of("TPU v4") == "unknown"


# The sweep over frames, blocks, schedules and dtypes is in backend_test.py.
@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("num_frames", [*range(1, 10), 16])
def test_any_number_of_frames_without_anchor(num_frames):
  mask = BlockMask(num_frames, 16, anchor_frames=())
  assert_equals_reference(inputs_for(mask, 1), mask)


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("variant", list("ABCDEF"))
def test_every_schedule_of_the_ablation_in_bfloat16(variant):
  # The shared suite has the matrix units sum the weights, these tiles do not.
  mask = ablation_masks.ablation_masks(7)[variant]
  assert not TILES.spare_vector_units
  inputs = inputs_for(mask, 1, heads=1, dtype=jnp.bfloat16)
  assert_equals_reference(inputs, mask, tolerance=1e-2)


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize(
  "options",
  [
    dict(near=(1, 4), far=(4, 1), stream=8),
    dict(near=(2, 2), far=None, stream=4),
    dict(near=(2, 3), far=(5, 1), stream=4, buffers=3),
    dict(near=(1, 8), far=(8, 1), stream=4, groups=(4, 5), buffers=4),
    dict(forward_near=(1, 16), forward_far=(16, 1), stream=2),
    dict(joint=tpu_tiles.JointPass((8, 16), 5, 64)),
  ],
  ids=str,
)
def test_any_tile_sizes(options):
  tiles = tpu_tiles.TileSizes(piece_tokens=4, lanes=1, **options)
  mask = BlockMask(9, 16)
  assert_equals_reference(inputs_for(mask, 1), mask, tiles=tiles)
