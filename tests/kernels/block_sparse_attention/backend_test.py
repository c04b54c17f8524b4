"""One suite for every backend: all of them equal the float32 reference.

Outputs, log-sum-exps and the gradients of both, with respect to all inputs.
The three paths of the plain JAX backend count as backends; those that need a
device run in their interpreter. A few cases are tried every day, the sweep over
frames, blocks, schedules and sizes is slow. A backend may decline a case with
NotImplementedError and is skipped, with its reason.
"""

from collections.abc import Callable
import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.kernels.block_sparse_attention import api
from sculpt4d_jax.kernels.block_sparse_attention import reference
from sculpt4d_jax.kernels.block_sparse_attention import shapes
from sculpt4d_jax.kernels.block_sparse_attention.tpu import tiles as tpu_tiles
from sculpt4d_jax.kernels.block_sparse_attention.xla import attention as xla
from tests.kernels.block_sparse_attention import ablation_masks

BlockMask = bsa.BlockMask

# Small inputs go the way of large ones, in several chunks, steps and groups.
TILES = xla.TileSizes(
  chunk_scores=64, chunk_tokens=2, step_tokens=8, group_tokens=64
)
# Backends with their own sizes; the GPU's granules are 64 tokens at least.
OPTIONS = {
  "pallas_tpu": dict(
    tiles=tpu_tiles.TileSizes(
      piece_tokens=4,
      near=(1, 2),
      far=(2, 1),
      stream=2,
      groups=(2, 4),
      lanes=1,
      spare_vector_units=True,
    )
  )
}


def all_backends() -> dict[str, Callable[..., tuple[jax.Array, jax.Array]]]:
  """Everything that computes attention, as it runs on a CPU."""
  found = {
    f"xla_{path}": functools.partial(xla.attention, path=path, tiles=TILES)
    for path in ("small", "contiguous", "lists")
  }
  for name in api._BACKENDS:
    if name in ("reference", "xla"):
      continue
    attention = api.backend(name)
    if "interpret" in inspect.signature(attention).parameters:
      options = OPTIONS.get(name, {})
      attention = functools.partial(attention, interpret=True, **options)
    found[name] = attention
  return found


BACKENDS = all_backends()


@dataclasses.dataclass(frozen=True)
class Case:
  """A call whose results and gradients are compared."""

  mask: bsa.Mask
  block_size: int = 2
  token_order: str = "natural"
  dtype: str = "float32"
  logit_size: float = 1.0  # Scales queries and keys.
  scale: float = 0.35
  batch: int = 1
  heads: int = 2
  head_dim: int = 8

  @property
  def array_shape(self) -> tuple[int, ...]:
    tokens = self.mask.num_blocks * self.block_size
    return (self.batch, self.heads, tokens, self.head_dim)

  @property
  def tolerance(self) -> float:
    """Relative to the largest of each array."""
    if self.dtype == "bfloat16":
      return 1e-2  # Eight bits of mantissa in the results.
    # float32 keeps scores of 1e4 to about 1e-3.
    return 2e-5 if self.logit_size == 1.0 else 5e-3

  def inputs(self):
    return shapes.random_inputs(
      self.array_shape, jnp.dtype(self.dtype), self.logit_size
    )

  def __str__(self) -> str:
    mask = self.mask
    words = [f"{mask.num_frames}f{mask.blocks_per_frame}x{self.block_size}"]
    if isinstance(mask, BlockMask):
      words.append(",".join(map(str, mask.schedule)))
      words.append("anchor" if mask.anchor_frames else "none")
    else:
      words.append("combined")
    words += [self.dtype, self.token_order]
    if self.logit_size != 1.0:
      words.append("large")
    return "-".join(words)


PAPER = shapes.PAPER_SCHEDULE
EVERYDAY = (
  Case(BlockMask(6, 8), block_size=3, heads=3),
  Case(BlockMask(16, 16), block_size=1, token_order="bit_reversed"),
  Case(BlockMask(4, 5, (1, 2, 4)), token_order="bit_reversed"),
  Case(BlockMask(7, 32, (4,), anchor_frames=()), block_size=1),
  Case(
    BlockMask(5, 8, (2, 6)) | BlockMask(5, 8, (5,), (1, 4)), batch=2, heads=1
  ),
  Case(BlockMask(6, 8), block_size=4, dtype="bfloat16"),
  Case(BlockMask(6, 8), block_size=4, logit_size=100.0),
  Case(BlockMask(4, 2, (1, 2)), block_size=64, heads=1),
)
# Strides that are not powers of two; granules that are large enough for all.
EVERYDAY_INTERPRETED = (Case(BlockMask(3, 5, (1, 2))), EVERYDAY[-1])


_WIDE = 64


def sweep() -> tuple[Case, ...]:
  """Frames, blocks, block sizes, schedules: far apart, one at a time."""
  orders = ("natural", "bit_reversed")
  cases = [
    Case(BlockMask(frames, 8), token_order=orders[frames % 2])
    for frames in (*range(1, 10), 16)
  ]
  cases += [
    Case(BlockMask(4, blocks), 1 + blocks % 3, orders[blocks % 2])
    for blocks in range(1, 34)
  ]
  cases += [Case(BlockMask(5, 6), block_size=size) for size in (1, 5, 7)]
  for variant in ablation_masks.ablation_masks(7).values():
    for anchors in ((), (0,)):
      mask = dataclasses.replace(variant, anchor_frames=anchors)
      for dtype in ("float32", "bfloat16"):
        cases.append(Case(mask, 1, "bit_reversed", dtype))
  cases += [
    Case(BlockMask(5, 12, (1, 3, 5), (1, 4)), token_order=order)
    for order in orders
  ]
  cases += [
    Case(BlockMask(3, 64, (64,), anchor_frames=())),
    Case(BlockMask(5, 8) & BlockMask(5, 8, (2,))),
    Case(BlockMask(4, 6), logit_size=100.0),
    Case(BlockMask(4, 8), logit_size=100.0, dtype="bfloat16"),
    Case(BlockMask(3, 8), head_dim=64, heads=1),
    Case(BlockMask(3, 8), scale=-1.0),
  ]
  # Runs of 64 tokens at least, as the GPU backend has them.
  wide = functools.partial(Case, block_size=_WIDE, heads=1)
  cases += [
    wide(BlockMask(frames, 2, (1, 2)), token_order=orders[frames % 2])
    for frames in (*range(1, 10), 16)
  ]
  cases += [wide(BlockMask(2, blocks, (1, 4))) for blocks in (1, 3, 5, 16, 33)]
  for variant in ablation_masks.ablation_masks(7, 4).values():
    cases.append(wide(variant, dtype="bfloat16", head_dim=64))
  cases += [wide(BlockMask(4, 4), logit_size=100.0)]
  return tuple(dict.fromkeys(cases))


def results_and_gradients(attention, case):
  """Output, log-sum-exp, and gradients for random cotangents of both."""
  keys = jax.random.split(jax.random.key(7), 2)
  output_bar = jax.random.normal(keys[0], case.array_shape)
  log_sum_exp_bar = jax.random.normal(keys[1], case.array_shape[:-1])

  def loss(*inputs):
    output, log_sum_exp = attention(
      *inputs, case.mask, scale=case.scale, token_order=case.token_order
    )
    product = (output.astype(jnp.float32) * output_bar).sum()
    product += (log_sum_exp * log_sum_exp_bar).sum()
    return product, (output, log_sum_exp)

  differentiate = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
  # Compiling takes far longer than running: optimise less.
  options = {"xla_backend_optimization_level": 0}
  jitted = jax.jit(differentiate, compiler_options=options)
  (_, results), gradients = jitted(*case.inputs())
  names = ("output", "log_sum_exp", "query", "key", "value")
  return dict(zip(names, (*results, *gradients)))


@functools.cache
def expected_results(case):
  return results_and_gradients(reference.attention, case)


def assert_equals_reference(name, case):
  try:
    actual = results_and_gradients(BACKENDS[name], case)
  except NotImplementedError as reason:
    pytest.skip(f"{name} declines: {reason}")
  for array, expected in expected_results(case).items():
    dtype = "float32" if array == "log_sum_exp" else case.dtype
    assert actual[array].dtype == dtype, array
    expected = np.asarray(expected, np.float32)
    np.testing.assert_allclose(
      np.asarray(actual[array], np.float32),
      expected,
      rtol=case.tolerance,
      atol=case.tolerance * max(1.0, np.abs(expected).max()),
      err_msg=f"{array} of {name}",
    )


def pairs(is_everyday: bool) -> list[Any]:
  """Backends and cases: interpreters take seconds a case, and few every day."""
  result = []
  for name in BACKENDS:
    everyday = EVERYDAY if name.startswith("xla") else EVERYDAY_INTERPRETED
    cases = dict.fromkeys((*EVERYDAY, *sweep()))
    if name == "pallas_tpu":
      # Pieces of it are a few tokens in any case; all masks come with those.
      cases = [case for case in cases if case.block_size != _WIDE]
    for case in everyday if is_everyday else cases:
      if is_everyday or case not in everyday:
        result.append(pytest.param(name, case, id=f"{name}-{case}"))
  return result


@pytest.mark.parametrize("name, case", pairs(is_everyday=True))
def test_equals_reference(name, case):
  assert_equals_reference(name, case)


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("name, case", pairs(is_everyday=False))
def test_equals_reference_throughout(name, case):
  assert_equals_reference(name, case)


def test_large_logits_would_overflow_a_careless_softmax():
  query, key, _ = next(c for c in EVERYDAY if c.logit_size > 1).inputs()
  logits = jnp.einsum("bhqk,bhsk->bhqs", query, key)
  assert float(logits.max()) > 1e4  # exp overflows float32 beyond 88.


def attend(name, *inputs, mask):
  return BACKENDS[name](*inputs, mask, scale=0.5)[0]


@pytest.mark.parametrize("name", BACKENDS)
def test_jit_vmap_remat_and_scan_agree(name):
  block_size = 64 if name == "pallas_gpu" else 2
  mask = BlockMask(3, 4, schedule=(1, 2))
  inputs = shapes.random_inputs((2, 1, 1, 3 * 4 * block_size, 8))
  argnums = (0, 1, 2)

  def loss(*inputs, name=name):
    return (attend(name, *inputs, mask=mask) ** 2).sum()

  def expected_loss(*inputs):
    return (reference.attention(*inputs, mask, scale=0.5)[0] ** 2).sum()

  def scanned(*inputs):
    body = lambda total, xs: (total + jax.checkpoint(loss)(*xs), None)
    return jax.lax.scan(body, 0.0, inputs)[0]

  def gradients(*inputs):
    return {
      "vmap": jax.vmap(jax.grad(loss, argnums))(*inputs),
      "remat and scan": jax.grad(scanned, argnums)(*inputs),
      "expected": jax.vmap(jax.grad(expected_loss, argnums))(*inputs),
    }

  options = {"xla_backend_optimization_level": 0}
  try:
    results = jax.jit(gradients, compiler_options=options)(*inputs)
  except NotImplementedError as reason:
    pytest.skip(f"{name} declines: {reason}")
  expected = results.pop("expected")
  for transformation, actual in results.items():
    for x, y in zip(actual, expected):
      np.testing.assert_allclose(x, y, atol=2e-5, err_msg=transformation)


def test_heads_may_lie_on_several_devices(run_on_devices):
  """Inside shard_map, without communication, on every backend."""
  run_on_devices(
    2,
    """
      import jax, numpy as np
      from jax.sharding import AxisType, NamedSharding, PartitionSpec
      from sculpt4d_jax.kernels import block_sparse_attention as bsa
      from sculpt4d_jax.kernels.block_sparse_attention import shapes
      from tests.kernels.block_sparse_attention import backend_test

      mesh = jax.make_mesh((2,), ("heads",), axis_types=(AxisType.Auto,))
      spec = PartitionSpec(None, "heads")
      mask = bsa.BlockMask(3, 4, schedule=(1, 2))
      inputs = shapes.random_inputs((1, 2, 12 * 64, 8))
      options = {"xla_backend_optimization_level": 0}
      placed = jax.device_put(inputs, NamedSharding(mesh, spec))
      for name in backend_test.BACKENDS:
        def attend(*inputs):
          return backend_test.attend(name, *inputs, mask=mask)
        # Pallas for TPU does not say how its results vary over devices.
        sharded = jax.shard_map(
            attend, mesh=mesh, in_specs=spec, out_specs=spec,
            check_vma=name != "pallas_tpu")
        def compiled(function, inputs):
          loss = lambda *xs: (function(*xs) ** 2).sum()
          gradients = jax.jit(jax.grad(loss, (0, 1, 2)))
          return gradients.lower(*inputs).compile(options)
        try:
          expected = compiled(attend, inputs)(*inputs)
        except NotImplementedError:
          continue  # The other tests say so.
        run = compiled(sharded, placed)
        for exchange in ("all-gather", "all-to-all", "collective-permute"):
          assert exchange not in run.as_text(), (name, exchange)
        for x, y in zip(run(*placed), expected, strict=True):
          np.testing.assert_allclose(x, y, atol=1e-5, err_msg=name)
      """,
  )
