r"""Holds a converted full-size checkpoint against the file it was made of.

  python -m tests.weights.make_full_size_checkpoint --output=/large/model.fp16.ckpt
  python -m launch.convert_weights --source=/large/model.fp16.ckpt \
      --output=/large/converted
  python -m tests.weights.check_full_size --source=/large/model.fp16.ckpt \
      --converted=/large/converted

Three checks, each with seconds and peak memory: every tensor, exported again,
equals the source rounded to bfloat16; one full-width block of each kind, and
the whole DiT, at a few tokens, equal the NumPy evaluation in float32 of the
same rounded numbers. Needs about 10 GB of memory; run by hand, not by pytest.
"""

import argparse
from collections.abc import Callable
import pathlib
import time

from flax import nnx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from sculpt4d_jax.inference import run_log
from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.weights import export as weight_export
from sculpt4d_jax.weights import model_folders
from sculpt4d_jax.weights import rules as weight_rules
from sculpt4d_jax.weights.tensor_files import open_file
from tests.weights import hunyuan_checkpoints as checkpoints
from tests.weights import hunyuan_reference as reference

SIZES = checkpoints.DiTSizes()
NUM_TOKENS, NUM_CONTEXT = 32, 16
# XLA would turn all weights into float32 before the loop over blocks.
COMPILER_OPTIONS = {
  "xla_disable_hlo_passes": (
    "while-loop-invariant-code-motion,"
    "while-loop-expensive-invariant-code-motion"
  )
}


def check_equal(source, folder) -> None:
  """Exports and compares tensor by tensor; bit for bit."""
  parts = model_folders.open_parts(folder)
  count = 0
  for name, part in parts.items():
    prefix = weight_export.PREFIXES[name]
    table = weight_export.table_of(name, part.config, with_temporal=False)
    for key, array in weight_rules.export_each(table, part.read):
      expected = source.read(prefix + key).astype(ml_dtypes.bfloat16)
      if not np.array_equal(array.view(np.uint16), expected.view(np.uint16)):
        raise AssertionError(f"{prefix + key} differs.")
      count += 1
  print(f"{count} tensors are equal, bit for bit")


def getter(source) -> Callable[[str], np.ndarray]:
  """The source's numbers as the converted ones are: rounded to bfloat16."""

  def get(name):
    array = source.read("model." + name).astype(ml_dtypes.bfloat16)
    return array.astype(np.float32)

  return get


def inputs():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((1, NUM_TOKENS, SIZES.channels), np.float32)
  context = rng.standard_normal((1, NUM_CONTEXT, SIZES.context), np.float32)
  return x, np.array([0.35], np.float32), context


def report(name, actual, expected) -> None:
  error = float(np.abs(np.asarray(actual) - expected).max())
  size = float(np.abs(expected).max())
  print(f"{name}: largest difference {error:.2e}, largest value {size:.2f}")
  if error > 2e-5 * max(1.0, size):
    raise AssertionError(f"{name} differs.")


def check_blocks(dit, get) -> None:
  """A block of each kind by itself."""
  _, _, context = inputs()
  rng = np.random.default_rng(1)
  x, skip = rng.standard_normal((2, 1, 1 + NUM_TOKENS, SIZES.width), np.float32)
  for index in (0, 10, 12, 20):
    fused = x
    if index > SIZES.depth // 2:
      fused = reference.dit_skip(get, index, skip, x)
    expected = reference.dit_block(get, SIZES, index, fused, context)

    @jax.jit
    def run(params, *arguments, index=index):
      # `index` is closed over: the block is cut out inside.
      module = nnx.merge(dit[0], params)
      return module.block(index)(*arguments, temporal_mode="none").x

    wide = lambda a: jnp.asarray(a)[:, None]
    out = run(dit[1], wide(x), wide(context), wide(skip))
    report(f"block {index}", out[:, 0], expected)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--source", type=pathlib.Path, required=True)
  parser.add_argument("--converted", type=pathlib.Path, required=True)
  arguments = parser.parse_args()
  source = open_file.open_file(arguments.source)
  get, log = getter(source), run_log.RunLog(progress=False)
  with log.stage("compare tensors"):
    check_equal(source, arguments.converted)
  config = dit_lib.DiTConfig(temporal_mode="none")
  with log.stage("load the DiT"):
    abstract = nnx.eval_shape(lambda: dit_lib.DiT(config, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    state, _ = model_folders.load(arguments.converted, "dit", state, config)
  with log.stage("blocks"):
    check_blocks((graphdef, state), get)
  x, flow_time, context = inputs()
  run = jax.jit(
    lambda p, *a: nnx.merge(graphdef, p)(*a).velocity,
    compiler_options=COMPILER_OPTIONS,
  )
  with log.stage("21 blocks, JAX"):
    out = run(state, x[:, None], flow_time, context[:, None])[:, 0]
    out.block_until_ready()
  with log.stage("21 blocks, NumPy"):
    expected = reference.dit(get, SIZES, x, flow_time, context)
  report("velocity", out, expected)
  for stage in log.stages:
    print(f"{stage.name}: {stage.seconds} s, {stage.peak_memory_mb} MB")


if __name__ == "__main__":
  start = time.monotonic()
  main()
  print(f"All: {time.monotonic() - start:.0f} s")
