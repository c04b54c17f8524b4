"""Fixtures of the NVIDIA GPU kernels' tests: simulation and compiler."""

from collections.abc import Callable
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import textwrap

from jax.experimental.pallas import mosaic_gpu as plgpu
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]

# Runs in a separate process: where a simulated warpgroup fails, the others
# wait for it for ever.
_SIMULATION = """
    import jax, jax.numpy as jnp, numpy as np
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from sculpt4d_jax.kernels import block_sparse_attention as bsa
    from sculpt4d_jax.kernels.block_sparse_attention import reference, shapes
    from sculpt4d_jax.kernels.block_sparse_attention.gpu import (
        attention as pallas_gpu, tiles as pallas_gpu_tiles)
    if hasattr(plgpu, "InterpretGPUParams"):
      Params = plgpu.InterpretGPUParams
    else:  # Before jax 0.12.
      from jax._src.pallas.mosaic_gpu.interpret.params import (
          InterpretGPUParams as Params)
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
    BlockMask = bsa.BlockMask
    GpuTiles, Tile = pallas_gpu_tiles.GpuTiles, pallas_gpu_tiles.Tile
    AmpereTiles = pallas_gpu_tiles.AmpereTiles
    AmpereTile = pallas_gpu_tiles.AmpereTile

    def check(mask, block_size, dtype="float32", head_dim=8, heads=1,
              tolerance=2e-5, tiles=None, token_order="natural", scale=0.3,
              compute_capability="9.0"):
      shape = (1, heads, mask.num_blocks * block_size, head_dim)
      inputs = shapes.random_inputs(shape, dtype)
      bars = shapes.random_inputs(shape)[0], shapes.random_inputs(shape[:3])[0]
      kwargs = dict(scale=scale, token_order=token_order)
      simulate = lambda *xs: pallas_gpu.attention(
          *xs, mask, tiles=tiles, interpret=Params(detect_races=True),
          compute_capability=compute_capability, **kwargs)
      specify = lambda *xs: reference.attention(*xs, mask, **kwargs)

      def both(attend):
        def run(*inputs):
          results, pull = jax.vjp(attend, *inputs)
          return *results, *pull((bars[0].astype(dtype), bars[1]))
        return jax.jit(run)(*inputs)

      for x, y in zip(both(simulate), both(specify)):
        x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
        atol = tolerance * max(1, np.abs(y).max())
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=atol)
      assert not interpret_pallas_call.get_races().races_found
"""


@pytest.fixture
def simulate(run_on_devices) -> Callable[[str], None]:
  """A function that runs a call of `check`, as text, in jax's interpreter."""
  code = textwrap.dedent(_SIMULATION)
  return lambda call: run_on_devices(1, f"{code}\n{call}\n", timeout=600)


@pytest.fixture
def run_with_cuda_compiler() -> Callable[..., str]:
  """A function (module, *flags) that runs a program and gives its output.

  Skips where there is no CUDA compiler.
  """
  if importlib.util.find_spec("jax_cuda12_plugin") is None:
    pytest.skip("needs the CUDA compiler: pip install 'jax[cuda12]'")

  def run(module: str, *flags: str) -> str:
    # What is found in the cache is not compiled, and says nothing.
    hidden = ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
      [sys.executable, "-m", module, *flags],
      cwd=ROOT,
      env=environment,
      capture_output=True,
      text=True,
      timeout=600,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  return run


@pytest.fixture
def spills_ahead_of_time(
  run_with_cuda_compiler,
) -> Callable[[str, int], dict[str, int]]:
  """A function (target, head_dim): the bytes that each kernel spills there."""

  def compile_for(target: str, head_dim: int) -> dict[str, int]:
    if target != "h100" and not hasattr(plgpu, "mma"):
      pytest.skip("needs a jax whose Pallas compiles for Ampere, such as 0.12")
    text = run_with_cuda_compiler(
      "kernels.block_sparse_attention.bench.aot_gpu",
      "--target",
      target,
      "--frames",
      "2",
      "--heads",
      "1",
      "--head_dim",
      str(head_dim),
      "--backends",
      "sparse",
    )
    kernel = r"attention_(\w+): \d+ registers at launch, (\d+) bytes spilled"
    return {name: int(spilled) for name, spilled in re.findall(kernel, text)}

  return compile_for
