"""Compares this device's attention kernels with the reference."""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sculpt4d_jax.kernels.block_sparse_attention import api
from sculpt4d_jax.kernels.block_sparse_attention import shapes
from sculpt4d_jax.kernels.block_sparse_attention.gpu import attention as gpu
from sculpt4d_jax.kernels.block_sparse_attention.gpu import tiles as tiles_lib

# Largest error over the largest absolute value of the reference's result.
_TOLERANCES = {"bfloat16": 0.02, "float16": 0.005, "float32": 2e-5}


class Row(NamedTuple):
  """One comparison; the error is None if nothing was computed."""

  kernel: str
  case: str
  tiles: str
  error: float | None
  verdict: str


def compare(*, small: bool) -> list[Row]:
  """Compares output and all three gradients, in cases and tile sizes."""
  rows = []
  for name, attend in _kernels():
    for case, shape, dtype in _cases(small, name):
      for label, tiled in _tiled(name, attend, shape.head_dim):
        rows.append(_compare(name, tiled, label, case, shape, dtype))
  return rows


def _kernels() -> Iterator[tuple[str, api.Implementation]]:
  yield "xla", "xla"
  if jax.default_backend() == "gpu":
    yield "pallas_gpu", gpu.attention
  if jax.default_backend() == "tpu":
    yield "pallas_tpu", "pallas_tpu"


def _cases(
  small: bool, kernel: str
) -> Iterator[tuple[str, shapes.AttentionShape, str]]:
  if small:
    shape = shapes.AttentionShape(1, 2, 3, 64, 16, blocks_per_frame=8)
    yield "3 frames of 64 tokens, width 16, float32", shape, "float32"
    return
  for frames, tokens, width in ((4, 512, 64), (5, 1024, 128), (8, 2048, 128)):
    shape = shapes.AttentionShape(1, 2, frames, tokens, width)
    for dtype in ("bfloat16", "float16"):
      yield (
        f"{frames} frames of {tokens} tokens, width {width}, {dtype}",
        (shape),
        dtype,
      )
  if kernel == "xla":
    yield (
      "4 frames of 512 tokens, width 64, float32",
      (shapes.AttentionShape(1, 2, 4, 512, 64)),
      "float32",
    )


def _tiled(
  name: str, attend: api.Implementation, head_dim: int
) -> Iterator[tuple[str, api.Implementation]]:
  yield "default", attend
  if name != "pallas_gpu":
    return
  device = jax.devices()[0]
  capability = str(getattr(device, "compute_capability", ""))
  sizes = _hopper_tiles if capability.startswith("9") else _ampere_tiles
  for tiles in sizes():
    try:
      tiles.require_shared_memory(head_dim, 2)
    except ValueError:
      continue
    forward = tiles.forward
    yield str(forward), functools.partial(attend, tiles=tiles)


def _hopper_tiles() -> Iterator[tiles_lib.GpuTiles]:
  for warpgroups in (1, 2, 3):
    for columns in (64, 128):
      for stages in (2, 3):
        tile = tiles_lib.Tile(warpgroups, columns, stages)
        yield tiles_lib.GpuTiles(tile, tile, tile, alternate=warpgroups == 2)
  tile = tiles_lib.Tile(2, 64)
  yield tiles_lib.GpuTiles(tile, tile, tile, weights_in_shared_memory=True)


def _ampere_tiles() -> Iterator[tiles_lib.AmpereTiles]:
  for rows in (64, 128):
    for columns in (32, 64, 128):
      for stages in (1, 2):
        tile = tiles_lib.AmpereTile(rows, columns, stages)
        yield tiles_lib.AmpereTiles(tile, tile, tile)


def _compare(
  name: str,
  attend: api.Implementation,
  label: str,
  case: str,
  shape: shapes.AttentionShape,
  dtype: str,
) -> Row:
  try:
    error = _error(attend, shape, dtype)
  except NotImplementedError:
    return Row(name, case, label, None, "does not apply")
  except Exception as error:  # Compilers and drivers raise many types.
    reason = " ".join(str(error).split())[:160]
    return Row(name, case, label, None, f"{type(error).__name__}: {reason}")
  verdict = "ok" if error <= _TOLERANCES[dtype] else "wrong"
  return Row(name, case, label, error, verdict)


def _error(
  attend: api.Implementation, shape: shapes.AttentionShape, dtype: str
) -> float:
  """Largest relative error of the output and of three gradients."""
  inputs = shapes.random_inputs(shape.array_shape, jnp.dtype(dtype))
  bar = jax.random.normal(jax.random.key(9), shape.array_shape, jnp.float32)
  bar = bar.astype(dtype)
  found = _results(attend, shape, inputs, bar)
  # The same numbers in float32, to compare only the arithmetic.
  wide = [x.astype(jnp.float32) for x in (*inputs, bar)]
  expected = _results("reference", shape, wide[:3], wide[3])
  return max(
    float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())
    for a, b in zip(found, expected)
  )


def _results(
  attend: api.Implementation,
  shape: shapes.AttentionShape,
  inputs: Sequence[jax.Array],
  bar: jax.Array,
) -> tuple[jax.Array, ...]:
  @jax.jit
  def run(
    inputs: tuple[jax.Array, ...], bar: jax.Array
  ) -> tuple[jax.Array, ...]:
    attention: Callable[..., jax.Array] = functools.partial(
      api.block_sparse_attention,
      mask=shape.mask(),
      token_order="bit_reversed",
      implementation=attend,
    )
    output, vjp = jax.vjp(lambda q, k, v: attention(q, k, v), *inputs)
    return output, *vjp(bar)

  return run(tuple(inputs), bar)
