"""What the tests of memory plans share: the released size."""

import pytest

from configs import sculpt4d
from sculpt4d_jax.inference import memory_plan
from sculpt4d_jax.training import preset as preset_lib


@pytest.fixture(scope="session", name="released")
def _released():
  """The preset of the released size."""
  return preset_lib.from_config(sculpt4d.get_config())


@pytest.fixture(scope="session")
def planner(released):
  """Sizes of its networks."""
  return memory_plan.Planner(released.model)


@pytest.fixture(scope="session")
def settings(released):
  """Its settings."""
  return memory_plan.settings_of(released.sampling, released.surface)
