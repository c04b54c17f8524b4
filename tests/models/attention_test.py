from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models import attention
from sculpt4d_jax.models import rope


def random(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def filled_temporal(seed=0, **kwargs):
  """Temporal attention whose output projection is not zero."""
  module = attention.TemporalAttention(16, 2, rngs=nnx.Rngs(seed), **kwargs)
  kernel = module.out.kernel
  kernel[...] = random(7, *kernel.shape)
  return module


@pytest.mark.parametrize("qk_norm", ["rms", "layer", None])
@pytest.mark.parametrize("use_qkv_bias", [False, True])
def test_self_attention_sees_a_set(qk_norm, use_qkv_bias):
  module = attention.SelfAttention(
    12, 3, rngs=nnx.Rngs(0), qk_norm=qk_norm, use_qkv_bias=use_qkv_bias
  )
  assert (module.query.bias is not None) == use_qkv_bias
  x = random(0, 2, 6, 12)
  order = np.array([3, 1, 5, 0, 4, 2])
  np.testing.assert_allclose(
    module(x[:, order]), module(x)[:, order], atol=1e-6
  )


def test_leading_axes_are_separate_batches():
  module = attention.SelfAttention(12, 3, rngs=nnx.Rngs(0))
  x = random(0, 2, 4, 6, 12)
  alone = module(x[1, 2][None])[0]
  np.testing.assert_allclose(module(x)[1, 2], alone, atol=1e-6)


def test_encoded_context_equals_context():
  module = attention.CrossAttention(12, 3, context_width=5, rngs=nnx.Rngs(0))
  x, context = random(0, 2, 6, 12), random(1, 2, 4, 5)
  encoded = module.encode_context(context)
  assert encoded.key.shape == (2, 4, 3, 4)
  np.testing.assert_array_equal(module(x, encoded), module(x, context))


def test_heads_must_divide_the_width():
  with pytest.raises(ValueError, match="num_heads=5"):
    attention.SelfAttention(12, 5, rngs=nnx.Rngs(0))


def test_unknown_norm_is_refused():
  with pytest.raises(ValueError, match="qk_norm"):
    attention.SelfAttention(12, 3, qk_norm="batch", rngs=nnx.Rngs(0))


def test_temporal_attention_starts_as_zero():
  module = attention.TemporalAttention(16, 2, block_size=2, rngs=nnx.Rngs(0))
  assert not np.any(module(random(0, 1, 3, 8, 16)))


def dense_temporal(module, x, visible):
  """Independent dense attention over all tokens with a mask [S, S]."""
  num_frames, num_tokens = x.shape[1:3]
  rotation = rope.frame_rotation(jnp.arange(num_frames), module.head_dim)
  query = rope.rotate(module.project_query(x), rotation)
  key, value = module.project_key_value(x)
  key = rope.rotate(key, rotation)
  query, key, value = (
    y.reshape(y.shape[0], -1, *y.shape[3:]) for y in (query, key, value)
  )
  scores = jnp.einsum("bqhk,bshk->bhqs", query, key) / module.head_dim**0.5
  scores = jnp.where(visible, scores, -jnp.inf)
  out = jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(scores), value)
  return module.out(out).reshape(x.shape)


def visible_tokens(mode, num_frames, num_tokens, block_size, schedule):
  frame, token = np.divmod(np.arange(num_frames * num_tokens), num_tokens)
  block = token // block_size
  distance = np.abs(frame[:, None] - frame)
  if mode == "full":
    return np.ones_like(distance, bool)
  if mode == "token":
    return token[:, None] == token
  stride = np.array(schedule)[np.minimum(distance, len(schedule) - 1)]
  return ((block[:, None] - block) % stride == 0) | (frame == 0)


@pytest.mark.parametrize("mode", ["sparse", "full", "token"])
@pytest.mark.parametrize("schedule", [(1, 2, 4), (1, 3)])
def test_temporal_modes_equal_masked_dense_attention(mode, schedule):
  module = filled_temporal(block_size=2, schedule=schedule)
  x = random(0, 2, 4, 8, 16)
  visible = visible_tokens(mode, 4, 8, 2, schedule)
  np.testing.assert_allclose(
    module(x, mode=mode), dense_temporal(module, x, visible), atol=2e-5
  )


def test_bit_reversed_order_gives_the_same_numbers():
  module = filled_temporal(block_size=2, schedule=(1, 2, 4))
  x = random(0, 1, 4, 8, 16)
  mask = module.mask(4, 8, "sparse")
  order = attention.contiguous_order(mask)
  np.testing.assert_array_equal(order, [0, 2, 1, 3])
  blocks = lambda y: y.reshape(1, 4, 4, 2, 16)[:, :, order].reshape(x.shape)
  reordered = module(blocks(x), token_order="bit_reversed")
  np.testing.assert_allclose(blocks(reordered), module(x), atol=2e-5)


@pytest.mark.parametrize("mode", ["sparse", "full"])
def test_permuting_tokens_within_blocks_permutes_the_output(mode):
  module = filled_temporal(block_size=4, schedule=(1, 2))
  x = random(0, 1, 3, 8, 16)
  order = np.array([2, 0, 3, 1, 5, 7, 6, 4])  # Within blocks of four.
  np.testing.assert_allclose(
    module(x[:, :, order], mode=mode),
    module(x, mode=mode)[:, :, order],
    atol=2e-5,
  )


def test_no_contiguous_order_for_other_strides():
  module = attention.TemporalAttention(
    16, 2, block_size=2, schedule=(1, 3), rngs=nnx.Rngs(0)
  )
  assert attention.contiguous_order(module.mask(4, 8, "sparse")) is None


def test_blocks_must_divide_the_tokens():
  module = attention.TemporalAttention(16, 2, block_size=3, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="8 latent tokens.*block_size=3"):
    module(random(0, 1, 2, 8, 16))


def test_unknown_mode_is_refused():
  module = attention.TemporalAttention(16, 2, block_size=2, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="causal"):
    module(random(0, 1, 2, 8, 16), mode="causal")


def test_gpus_without_kernels_take_plain_jax_unless_kernels_are_named(
  monkeypatch,
):
  x = random(0, 1, 2, 8, 16)
  expected = filled_temporal(block_size=4, schedule=(1, 2))(x)
  monkeypatch.setattr(
    attention.partitioning, "platform", lambda: ("gpu", "V100")
  )
  monkeypatch.setattr(
    attention.partitioning, "compute_capability", lambda: "7.0"
  )
  out = filled_temporal(block_size=4, schedule=(1, 2))(x)
  np.testing.assert_allclose(out, expected, atol=1e-6)
  named = filled_temporal(
    block_size=4, schedule=(1, 2), implementation="pallas_gpu"
  )
  with pytest.raises(NotImplementedError, match="compute capability"):
    named(x)
