"""Frames on several devices: the same numbers, by all-to-alls alone."""


def test_sharded_frames_equal_the_whole_clip(run_on_devices):
  run_on_devices(
    8,
    """
      import jax, numpy as np
      from jax.sharding import AxisType, NamedSharding, PartitionSpec
      from sculpt4d_jax.kernels import block_sparse_attention as bsa
      from sculpt4d_jax.kernels.block_sparse_attention import shapes

      mesh = jax.make_mesh((8,), ("frames",), axis_types=(AxisType.Auto,))
      spec = PartitionSpec(None, None, "frames")
      mask = bsa.BlockMask(8, 4)
      inputs = shapes.random_inputs((2, 8, 8 * 32, 8))
      placed = jax.device_put(inputs, NamedSharding(mesh, spec))

      def whole(*xs):
        return bsa.block_sparse_attention(*xs, mask, token_order="bit_reversed")

      def local(*xs):
        return bsa.attend_with_sharded_frames(
            *xs, mask, axis_name="frames", token_order="bit_reversed")

      sharded = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)

      def results(attend):
        def run(*xs):
          output, vjp = jax.vjp(attend, *xs)
          return output, *vjp(output)
        return run

      expected = jax.jit(results(whole))(*inputs)
      run = jax.jit(results(sharded)).lower(*placed).compile()
      text = run.as_text()
      assert text.count(" all-to-all(") == 8, text.count(" all-to-all(")
      for exchange in ("all-gather", "collective-permute", "all-reduce"):
        assert exchange not in text, exchange
      for x, y in zip(run(*placed), expected, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-5)
        assert x.sharding.spec == spec
      """,
  )


def test_groups_of_heads_are_exchanged_for_frames(run_on_devices):
  run_on_devices(
    4,
    """
      import functools
      import jax, numpy as np
      from jax.sharding import AxisType, PartitionSpec
      from sculpt4d_jax.kernels import block_sparse_attention as bsa

      mesh = jax.make_mesh((4,), ("frames",), axis_types=(AxisType.Auto,))
      spec = PartitionSpec(None, "frames")
      # Four groups of two heads, eight frames.
      xs = [jax.random.normal(jax.random.key(i), (4, 8, 2, 6)) for i in range(3)]

      def attend(q, k, v):  # Of all frames, head by head.
        assert q.shape == (8, 2, 6), q.shape
        scores = jax.nn.softmax(jax.numpy.einsum("fhk,ghk->hfg", q, k))
        return jax.numpy.einsum("hfg,ghk->fhk", scores, v)

      exchange = functools.partial(
          bsa.with_all_frames_of_groups, attend, axis_name="frames")
      sharded = jax.jit(jax.shard_map(
          exchange, mesh=mesh, in_specs=(spec,) * 3, out_specs=spec))
      expected = jax.vmap(attend)(*xs)
      np.testing.assert_allclose(sharded(*xs), expected, atol=1e-6)
      text = sharded.lower(*xs).compile().as_text()
      assert text.count(" all-to-all(") == 4, text.count(" all-to-all(")
      try:
        sharded(*(x[:2] for x in xs))
      except ValueError as error:
        assert "2 groups of heads for the 4 devices" in str(error), error
      else:
        raise AssertionError("not refused")
      """,
  )


def test_sizes_that_do_not_divide_are_refused(run_on_devices):
  run_on_devices(
    4,
    """
      import jax, jax.numpy as jnp
      from jax.sharding import AxisType, PartitionSpec
      from sculpt4d_jax.kernels import block_sparse_attention as bsa

      mesh = jax.make_mesh((4,), ("frames",), axis_types=(AxisType.Auto,))
      spec = PartitionSpec(None, None, "frames")
      for heads, frames, message in ((6, 4, "6 heads"), (4, 6, "6 frames")):
        mask = bsa.BlockMask(frames, 2)
        attend = jax.shard_map(
            lambda *xs: bsa.attend_with_sharded_frames(
                *xs, mask, axis_name="frames"),
            mesh=mesh, in_specs=spec, out_specs=spec)
        x = jnp.ones((1, heads, 24, 4))
        try:
          attend(x, x, x)
        except ValueError as error:
          assert message in str(error), error
        else:
          raise AssertionError("not refused")
      """,
  )
