"""Dense attention on TPU, in the interpreter, against a plain softmax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models import dense_attention
from sculpt4d_jax.models import tpu_attention


def _dense(query, key, value):
  scores = jnp.einsum("bqhk,bshk->bhqs", query, key, precision="highest")
  weights = jax.nn.softmax(scores / np.sqrt(query.shape[-1]))
  return jnp.einsum("bhqs,bshk->bqhk", weights, value, precision="highest")


def _case(num_queries, num_keys, num_heads=2, head_dim=64):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = [num_queries, num_keys, num_keys, num_queries]
  return [
    jax.random.normal(key, (1, length, num_heads, head_dim))
    for key, length in zip(keys, shapes)
  ]


# One token and whole blocks, as a frame's; fewer keys than queries and none a
# multiple of the lanes, as a context's.
@pytest.mark.parametrize("num_queries,num_keys", [(257, 257), (385, 300)])
def test_outputs_and_gradients_equal_the_dense_evaluation(
  num_queries, num_keys
):
  *inputs, cotangent = _case(num_queries, num_keys)

  def splash(*arrays):
    return tpu_attention.attend(*arrays, interpret=True)

  out, vjp = jax.vjp(splash, *inputs)
  expected, expected_vjp = jax.vjp(_dense, *inputs)
  np.testing.assert_allclose(out, expected, atol=2e-6)
  for ours, theirs in zip(vjp(cotangent), expected_vjp(cotangent), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def _joined(parts):
  return jnp.concatenate(parts, 1)


# Whole pieces of 256 tokens, with and without tokens apart from them.
@pytest.mark.parametrize("num_apart", [0, 3])
def test_a_frame_in_pieces_equals_the_dense_evaluation(num_apart):
  # Large scores: the share of a single key is then far from 1 / num_tokens.
  inputs = [4.0 * x for x in _case(1024 + num_apart, 1024 + num_apart, 1, 64)]
  half = [x.astype(jnp.bfloat16) for x in inputs]

  def attend(*arrays):
    if not num_apart:
      return tpu_attention.attend(*arrays, interpret=True)
    parts = [(x[:, :1024], x[:, 1024:]) for x in arrays]
    return _joined(tpu_attention.attend_frame(*parts, interpret=True))

  out, vjp = jax.vjp(attend, *half[:3])
  exact = [x.astype(jnp.float32) for x in half]
  expected, expected_vjp = jax.vjp(_dense, *exact[:3])
  actual = out, *vjp(half[3])
  for ours, theirs in zip(
    actual, (expected, *expected_vjp(exact[3])), strict=True
  ):
    # bfloat16 has 8 bits; the last tokens are held to it separately.
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs)
    for part in (slice(None), slice(-4, None)):
      limit = 2e-2 * np.abs(theirs).max()
      np.testing.assert_allclose(ours[:, part], theirs[:, part], atol=limit)


def test_two_parts_are_one_set_where_no_kernel_serves():
  *inputs, _ = _case(20, 20)
  parts = [(x[:, :17], x[:, 17:]) for x in inputs]
  out = _joined(dense_attention.attend_in_two_parts(*parts))
  np.testing.assert_allclose(out, _dense(*inputs), atol=2e-6)


def test_every_row_of_a_batch_and_every_head_is_its_own():
  query, key, value, _ = _case(260, 256)
  two = lambda x: jnp.concatenate([x, x[:, ::-1]])
  out = tpu_attention.attend(two(query), two(key), two(value), interpret=True)
  for row in range(2):
    part = [two(x)[row : row + 1, :, 1:] for x in (query, key, value)]
    np.testing.assert_allclose(
      out[row : row + 1, :, 1:], _dense(*part), atol=2e-6
    )


def test_blocks_of_queries_are_as_large_as_the_chip_has_room_for(monkeypatch):
  kind = "TPU v6 lite"
  monkeypatch.setattr(
    tpu_attention.partitioning, "platform", lambda: ("tpu", kind)
  )
  block = lambda dtype: tpu_attention._block(
    4097, tpu_attention._max_query_block(jnp.dtype(dtype))
  )
  assert block(jnp.bfloat16) == 1408
  assert block(jnp.float32) == 384
  kind = "TPU v5p"
  assert block(jnp.bfloat16) == 384


@pytest.mark.parametrize("num_tokens", [100, 257, 300, 730, 1370, 4097])
def test_a_padded_set_is_padded_no_further(monkeypatch, num_tokens):
  monkeypatch.setattr(
    tpu_attention.partitioning, "platform", lambda: ("tpu", "TPU v5p")
  )
  size = tpu_attention.padded_set(num_tokens, jnp.bfloat16)
  assert num_tokens <= size < num_tokens + 512
  assert tpu_attention.padded_set(size, jnp.bfloat16) == size
  assert tpu_attention.padded_keys(size, size) == size


def test_what_the_kernels_serve():
  array = lambda length, dim, dtype: jax.ShapeDtypeStruct(
    (1, length, 4, dim), dtype
  )
  frame = array(4097, 128, jnp.bfloat16)
  assert tpu_attention.serves(frame, array(1370, 128, jnp.bfloat16))
  assert not tpu_attention.serves(frame, array(9, 128, jnp.bfloat16))
  assert not tpu_attention.serves(*[array(512, 80, jnp.bfloat16)] * 2)
  assert not tpu_attention.serves(*[array(512, 64, jnp.float16)] * 2)
  serves_frame = functools.partial(tpu_attention.serves_frame, interpret=True)
  pieces = array(4096, 128, jnp.bfloat16)
  assert serves_frame(pieces, pieces)
  # A context has other tokens; one is left over; splash is more precise.
  assert not serves_frame(pieces, array(1370, 128, jnp.bfloat16))
  assert not serves_frame(frame, frame)
  assert not serves_frame(*[array(4096, 128, jnp.float32)] * 2)
