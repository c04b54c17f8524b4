"""Fixtures' bodies: this process is told to find its stores in an emulator."""

from collections.abc import Iterator
import contextlib
import tempfile

import pytest

from sculpt4d_jax.io import paths
from tests.io import stores


@contextlib.contextmanager
def store(scheme: str, one_in: int = 0) -> Iterator[paths.StorePath]:
  """A bucket; with `one_in`, one request in so many goes wrong."""
  with contextlib.ExitStack() as stack:
    url = stack.enter_context(stores.emulator(scheme))
    if one_in:
      url = stack.enter_context(stores.BadStore(url, one_in)).url
    yield stack.enter_context(at(scheme, url))


@contextlib.contextmanager
def refusing(scheme: str, status: int) -> Iterator[paths.StorePath]:
  """A bucket of a store that answers every request with an HTTP status."""
  stores.skip_without(scheme)
  with stores.BadStore("http://127.0.0.1:9") as bad:
    bad.refuses_with = status
    with at(scheme, bad.url) as bucket:
      yield bucket


@contextlib.contextmanager
def at(scheme: str, url: str) -> Iterator[paths.StorePath]:
  """The bucket of a store with this address."""
  with contextlib.ExitStack() as stack:
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    for name, value in stores.environment(scheme, url).items():
      patch.setenv(name, value)
    # No copy of an earlier bucket of the same name.
    cache = stack.enter_context(tempfile.TemporaryDirectory())
    patch.setenv("XDG_CACHE_HOME", cache)
    paths.file_system(scheme).clear_instance_cache()
    stack.callback(lambda: paths.file_system(scheme).clear_instance_cache())
    yield paths.of(f"{scheme}://{stores.BUCKET}")
