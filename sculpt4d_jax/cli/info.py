"""Shows versions, devices, optional packages, and what attention would use.

  sculpt4d info

Look at "devices" after an installation: if it names a CPU where you have a GPU
or a TPU, the line below says what to install.
"""

import argparse
from collections.abc import Iterator
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import textwrap

import sculpt4d_jax

_WIDTH = 80
_REQUIRED = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "numpy",
  "trimesh",
  "scikit-image",
  "av",
)
# Distribution, its extra, and its purpose.
_OPTIONAL = (
  ("usd-core", "usd", "USD files, written and read"),
  ("onnxruntime", "matting", "cut-out by a matting network"),
  ("opencv-python-headless", "matting", "rough cut-outs by colour"),
  ("xatlas", "texture", "texture coordinates of registered meshes"),
  ("gradio", "app", "the page of `sculpt4d app`"),
  ("huggingface-hub", "hub", "downloads of released weights"),
  ("array-record", "data", "training records of animated assets"),
  ("grain", "data", "reading those records"),
  ("alembic3d", "alembic", "Alembic assets"),
  ("apache-beam", "beam", "preparing records on many machines"),
  ("gcsfs", "gcs", "gs:// paths"),
  ("s3fs", "s3", "s3:// paths"),
)
_PLUGINS = (
  ("jax-cuda13-plugin", "cuda13", "NVIDIA GPUs, driver 580 or newer"),
  ("jax-cuda12-plugin", "cuda12", "NVIDIA GPUs, driver 525 or newer"),
  ("libtpu", "tpu", "Google TPUs"),
)
# Two columns: names, and versions.
_NAME_WIDTH = 2 + max(
  len(name) for name in (*_REQUIRED, *(row[0] for row in _OPTIONAL + _PLUGINS))
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Defines no arguments."""
  del parser


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  del args
  for line in report():
    print(line)


def report() -> Iterator[str]:
  """The lines of the report."""
  yield f"sculpt4d-jax {sculpt4d_jax.__version__}"
  yield f"  installed in {os.path.dirname(sculpt4d_jax.__file__)}"
  yield f"  Python {platform.python_version()}, {platform.platform()}"
  for name in _REQUIRED:
    yield f"  {name:<{_NAME_WIDTH}}{_version(name) or 'MISSING'}"
  yield ""
  yield "devices"
  yield from _devices()
  yield ""
  yield "optional packages"
  for name, extra, purpose in (*_OPTIONAL, *_PLUGINS):
    yield f"  {name:<{_NAME_WIDTH}}{_version(name) or '-':<14}{purpose}" + (
      "" if _version(name) else f": sculpt4d-jax[{extra}]"
    )
  yield ""
  yield "models and presets"
  yield from _models()
  yield ""
  yield "block-sparse attention"
  yield from _attention()


def _devices() -> Iterator[str]:
  import jax

  try:
    devices = jax.devices()
  except RuntimeError as error:
    yield from _wrapped(f"JAX finds none: {error}")
    return
  kinds = {(d.platform, d.device_kind) for d in devices}
  for name, kind in sorted(kinds):
    count = sum((d.platform, d.device_kind) == (name, kind) for d in devices)
    yield f"  {count} x {kind} ({name}){_memory(devices[0])}"
  if devices[0].platform == "cpu":
    yield from _wrapped(_advice())


def _memory(device: "object") -> str:
  stats = device.memory_stats()  # type: ignore[attr-defined]
  limit = (stats or {}).get("bytes_limit")
  return f", {limit / 2**30:.1f} GiB" if limit else ""


def _advice() -> str:
  """Advice for a machine on which no accelerator is used."""
  forced = os.environ.get("JAX_PLATFORMS", "")
  if forced.startswith("cpu"):
    return f"The CPU is used because JAX_PLATFORMS={forced} asks for it."
  has_gpu = os.path.exists("/proc/driver/nvidia") or shutil.which("nvidia-smi")
  has_tpu = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
  if has_gpu:
    if _version("jax-cuda12-plugin") or _version("jax-cuda13-plugin"):
      return (
        "This machine has an NVIDIA driver and the plugin for it, but JAX does"
        " not use them: the versions of jax and of the plugin must agree, and"
        " the driver must be new enough."
      )
    return (
      "This machine has an NVIDIA driver that is not used. Install"
      " sculpt4d-jax[cuda12], or sculpt4d-jax[cuda13] for drivers from 580."
    )
  if has_tpu:
    return "This machine has a TPU that is not used: install sculpt4d-jax[tpu]."
  return "No GPU or TPU was found; the small model needs none."


def _models() -> Iterator[str]:
  from sculpt4d_jax import preset_files
  from sculpt4d_jax import shipped

  yield f"  weights shipped    {', '.join(shipped.weight_names()) or 'none'}"
  yield f"  presets            {', '.join(preset_files.names())}"


def _attention() -> Iterator[str]:
  """The backend that the released model would take, and the reasons."""
  import jax
  import jax.numpy as jnp

  from sculpt4d_jax.kernels import block_sparse_attention as bsa

  frames, tokens = 16, 4096
  query = jax.ShapeDtypeStruct((1, 16, frames * tokens, 128), jnp.bfloat16)
  reasons = bsa.explain(query, bsa.BlockMask(frames, 32))
  taken = next(name for name, reason in reasons.items() if reason is None)
  yield f"  {taken} is taken, of 16 frames of 4096 tokens in bfloat16"
  for name, reason in reasons.items():
    if reason is not None:
      yield from _wrapped(f"{name} is not: {reason}.")


def _wrapped(text: str) -> list[str]:
  return textwrap.wrap(
    text, _WIDTH, initial_indent="  ", subsequent_indent="    "
  )


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None
