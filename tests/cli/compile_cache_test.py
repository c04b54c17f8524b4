"""Compiled programs are kept, unless the user decides otherwise."""

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

from sculpt4d_jax.cli import compile_cache
from tests.io import emulated


@pytest.fixture(autouse=True)
def _unnamed(monkeypatch, tmp_path):
  """No folder is named, and the home is empty."""
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  names = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
  )
  before = {name: getattr(jax.config, name) for name in names}
  jax.config.update("jax_compilation_cache_dir", None)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_the_folder_is_in_the_users_cache(tmp_path):
  folder = compile_cache.use_default()
  assert folder.parent == tmp_path / "home" / ".cache" / "sculpt4d"
  assert folder.is_dir()
  assert jax.config.jax_compilation_cache_dir == str(folder)


def test_the_users_place_for_caches_is_respected(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
  assert compile_cache.use_default().parent == tmp_path / "caches" / "sculpt4d"
  jax.config.update("jax_compilation_cache_dir", None)
  monkeypatch.setenv("XDG_CACHE_HOME", "relative")
  folder = compile_cache.use_default()
  assert folder.parent == tmp_path / "home" / ".cache" / "sculpt4d"


def test_a_folder_that_is_named_already_stays():
  jax.config.update("jax_compilation_cache_dir", "/somewhere")
  assert compile_cache.use_default() is None
  assert jax.config.jax_compilation_cache_dir == "/somewhere"


def test_a_home_that_cannot_be_written_to_is_no_error(tmp_path):
  (tmp_path / "home").write_text("a file")
  assert compile_cache.use_default() is None
  assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_compiled_code_is_kept_in_a_bucket(scheme):
  events = []
  with emulated.store(scheme) as bucket:
    compile_cache.use(bucket / "compiled")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    jax.monitoring.register_event_listener(
      lambda name, **_: events.append(name)
    )
    try:
      for _ in range(2):
        jax.clear_caches()
        double = jax.jit(lambda x: 2.0 * x + len(scheme))
        assert float(double(1.0)) == 4.0
    finally:
      jax.monitoring.clear_event_listeners()
      compilation_cache.reset_cache()
    assert list((bucket / "compiled").iterdir())
  assert any(name.endswith("/cache_hits") for name in events)
