r"""Compares the plan of memory with the compilers' own accounting.

  python -m benchmarks.sampling.plan_check --target=v5e:1x1 --sizes=8,12
  python -m benchmarks.sampling.plan_check --target=h100 --sizes=8,12

For each size of a GPU in GB, the sampler is compiled with the savings that
`memory_choice` takes for it. Nothing is run or allocated, and neither a GPU nor
a TPU is needed: a TPU's compiler is in jax[tpu], a GPU's in jax[cuda12]. Steps
are loops, so few of them need as much memory as many.

The plan's figure is that of the denoising stage without the two other networks,
which the compiled program does not have. --savings names other settings.

A GPU that is not there has no host whose memory could hold arguments. The
program then moves the layers there when it starts, and their size is taken off
the device's.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import os
import time
from typing import Any

from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import config_flags

from launch import program
from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import denoising
from sculpt4d_jax.inference import memory_choice
from sculpt4d_jax.inference import memory_cost
from sculpt4d_jax.inference import memory_plan
from sculpt4d_jax.inference import sampling as sampling_lib
from sculpt4d_jax.io import paths
from sculpt4d_jax.kernels.block_sparse_attention.bench import aot_gpu
from sculpt4d_jax.models import networks
from sculpt4d_jax.models import streaming
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.ahead_of_time import report

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/sculpt4d.py", "Preset; see configs/base.py."
)
_TARGET = flags.DEFINE_string(
  "target", "v5e:1x1", "A TPU's topology, or a GPU of the kernels' bench."
)
_SIZES = flags.DEFINE_list("sizes", ["8", "12"], "Sizes of GPUs, GB.")
_SAVINGS = flags.DEFINE_list(
  "savings",
  None,
  "Names of savings, as stream_layers,frames_at_a_time=2, instead of --sizes.",
)
_PROGRAM = flags.DEFINE_string(
  "program", None, "File for the last compiled program's text; optional."
)
_NUM_STEPS = 5

# Set before libtpu starts: there is no cloud metadata, and other processes may
# be compiling too.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")


def main(argv: Sequence[str]) -> None:
  """Prints a row for each size."""
  del argv
  device = _device()  # Before anything starts a backend.
  preset = preset_lib.from_config(_CONFIG.value)
  print("| for | with | planned GiB | compiler GiB | host GiB | compiled in |")
  print("|---|---|---|---|---|---|")
  planner = memory_plan.Planner(preset.model)
  for name, settings in _cases(preset, planner):
    start = time.monotonic()
    on_device, on_host = _compile(preset, settings, device)
    seconds = time.monotonic() - start
    parts = planner.plan(settings).stages["denoise"]
    planned = sum(
      size
      for part, size in parts.items()
      if part not in ("VAE weights", "image encoder weights")
    )
    gib = " | ".join(
      f"{size / memory_plan.GIB:.2f}" for size in (planned, on_device, on_host)
    )
    print(
      f"| {name} | {settings.describe()} | {gib} | {seconds:.0f} s |",
      flush=True,
    )


def _cases(
  preset: preset_lib.Preset, planner: memory_plan.Planner
) -> Iterator[tuple[str, memory_plan.Settings]]:
  settings = memory_plan.settings_of(preset.sampling, preset.surface)
  if _SAVINGS.value is not None:
    yield "as named", dataclasses.replace(settings, **_named(_SAVINGS.value))
    return
  for size in _SIZES.value:
    name = f"{size} GB GPU"
    if name not in memory_cost.DEVICES:
      raise UserError(
        f"--sizes={size}: choose among {list(memory_cost.DEVICES)}."
      )
    choice = memory_choice.best(planner, settings, memory_cost.DEVICES[name])
    if choice is None:
      raise UserError(f"{preset.name} does not fit a {name}.")
    yield name, choice.plan.settings


def _named(savings: Sequence[str]) -> dict[str, Any]:
  changes = {}
  for text in savings:
    name, _, value = text.partition("=")
    changes[name] = int(value) if value else name != "cache_context"
  return changes


def _device() -> jax.Device:
  if _TARGET.value not in aot_gpu.TARGETS:
    return report.topology_devices(_TARGET.value)[0]
  aot_gpu.prepare_environment()
  # Without a GPU no tiles are tried, and the first ones may not exist.
  os.environ["XLA_FLAGS"] += " --xla_gpu_enable_triton_gemm=false"
  return aot_gpu.compile_only_device(_TARGET.value)


def _compile(
  preset: preset_lib.Preset,
  settings: memory_plan.Settings,
  device: jax.Device,
) -> tuple[int, int]:
  """Bytes that the sampler takes on the device and on the host."""
  kind, config = preset.model.parts()["dit"]
  graphdef, shapes = networks.abstract(kind, config)
  names = {field.name for field in dataclasses.fields(settings)}
  names &= {f.name for f in dataclasses.fields(sampling_lib.SamplingConfig)}
  sampling = dataclasses.replace(
    preset.sampling,
    **{name: getattr(settings, name) for name in names},
    num_steps=_NUM_STEPS,
  )

  memories = [memory.kind for memory in device.addressable_memories()]
  moves = sampling.stream_layers and streaming.MEMORY_KIND not in memories

  def shape(
    sizes: tuple[int, ...], dtype: Any, memory: str | None = None
  ) -> jax.ShapeDtypeStruct:
    where = jax.sharding.SingleDeviceSharding(device, memory_kind=memory)
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=where)

  def is_on_host(path: jax.tree_util.KeyPath) -> bool:
    return sampling.stream_layers and streaming.is_streamed(path)

  def placed(path: jax.tree_util.KeyPath, leaf: Any) -> jax.ShapeDtypeStruct:
    on_host = is_on_host(path) and not moves
    memory = streaming.MEMORY_KIND if on_host else None
    return shape(leaf.shape, jnp.dtype(config.dtype), memory)

  def moved(path: jax.tree_util.KeyPath, leaf: jax.Array) -> jax.Array:
    if not moves or not is_on_host(path):
      return leaf
    return jax.device_put(leaf, jax.memory.Space.Host)

  params = jax.tree_util.tree_map_with_path(placed, shapes)
  moved_bytes = sum(
    leaf.size * leaf.dtype.itemsize
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if moves and is_on_host(path)
  )
  encoder, vae = preset.model.image_encoder, preset.model.vae
  frames = sampling.num_frames
  context = shape(
    (1, frames, encoder.num_tokens, encoder.width), jnp.dtype(encoder.dtype)
  )
  noise = shape((1, frames, vae.num_latents, vae.latent_channels), jnp.float32)

  def sample(
    params: nnx.State, context: jax.Array, noise: jax.Array
  ) -> jax.Array:
    params = jax.tree_util.tree_map_with_path(moved, params)
    dit = nnx.merge(graphdef, params)
    return denoising.Denoiser(dit, noise, sampling).run(context)

  mesh = partitioning.make_mesh(
    partitioning.MeshConfig(data=1, fsdp=1), [device]
  )
  with partitioning.use_mesh(mesh):  # The kernels are chosen by its device.
    compiled = jax.jit(sample).lower(params, context, noise).compile()
  if _PROGRAM.value:
    paths.of(_PROGRAM.value).write_text(compiled.as_text())
  memory = compiled.memory_analysis()
  on_device = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
    - moved_bytes
  )
  on_host = memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes
  return on_device, on_host


if __name__ == "__main__":
  program.run(main)
