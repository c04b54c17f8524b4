"""Sets up every test run: the CPU, one device, and a cache of compiled code.

Tests see ONE device, as most users do. Those about sharding ask for
`run_on_devices`, which runs a piece of code in a separate process with as
many virtual CPU devices as they need.
"""

from collections.abc import Callable, Iterator
import os
import pathlib
import subprocess
import sys
import textwrap

from absl import logging
import jaxtyping
import pytest

from tests import shape_check

ROOT = pathlib.Path(__file__).resolve().parents[1]

# Before anything imports jax. It reads JAX_COMPILATION_CACHE_DIR, which
# `make test` sets, itself; compiles of small tests are short, keep them too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Packages whose annotated shapes are checked in every test.
_CHECKED = (
  "sculpt4d_jax.diffusion",
  "sculpt4d_jax.models",
  "sculpt4d_jax.geometry",
  "sculpt4d_jax.kernels.block_sparse_attention.api",
)
jaxtyping.install_import_hook(_CHECKED, f"{shape_check.__name__}.check")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """What is a sweep, or long, is slow too: `make test` leaves it out."""
  for item in items:
    if any(item.get_closest_marker(name) for name in ("sweep", "long")):
      item.add_marker("slow")


@pytest.fixture(autouse=True)
def wrong_shapes(request: pytest.FixtureRequest) -> Iterator[None]:
  """Tests marked `wrong_shapes` pass arrays that the code itself refuses."""
  is_marked = request.node.get_closest_marker("wrong_shapes") is not None
  if is_marked:
    jaxtyping.config.update("jaxtyping_disable", True)
  yield
  if is_marked:
    jaxtyping.config.update("jaxtyping_disable", False)


# How much is logged, and the logger's own level, before any program has run.
_LOGGER = logging.get_absl_logger()
_VERBOSITY = logging.get_verbosity(), _LOGGER.level


@pytest.fixture(autouse=True)
def verbosity() -> Iterator[None]:
  """Programs that run in the tests' process set how much is logged.

  Also those of a module's fixtures, which run before its first test's.
  """
  _reset_verbosity()
  yield
  _reset_verbosity()


def _reset_verbosity() -> None:
  verbosity, level = _VERBOSITY
  logging.set_verbosity(verbosity)
  _LOGGER.setLevel(level)  # The above would set one where there was none.


@pytest.fixture
def run_on_devices() -> Callable[..., str]:
  """A function (num_devices, code, timeout=300) that gives code's stdout."""

  def run(num_devices: int, code: str, timeout: float = 300.0) -> str:
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={num_devices}"
    result = subprocess.run(
      [sys.executable, "-c", textwrap.dedent(code)],
      cwd=ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip()},
      capture_output=True,
      text=True,
      timeout=timeout,
      check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout

  return run
