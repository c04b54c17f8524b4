"""Measured time of sampling with sparse over full temporal attention."""

from collections.abc import Sequence
import dataclasses
import statistics
import time
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax.evaluation import cost
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.models import networks

_MODES = ("sparse", "full")


class Ratio(NamedTuple):
  """Sparse over full: CPU seconds, and operations."""

  num_frames: int
  seconds: dict[str, float]  # By mode of temporal attention.
  by_time: float
  by_operations: float

  @property
  def deviation(self) -> float:
    """Of the time's ratio from the operations'."""
    return self.by_time / self.by_operations - 1


def measure(
  model: networks.NetworkConfigs,
  sampling: model_lib.SamplingConfig,
  frames: Sequence[int],
  rounds: int,
) -> list[Ratio]:
  """Samples with random weights, the two modes in turn.

  Args:
    model: Configurations of the networks.
    sampling: Steps and guidance; its frames and mode are replaced.
    frames: Numbers of frames to try.
    rounds: Timed runs of each, after an untimed one; the result is the median.
      Time is CPU time of the process, which is less sensitive to other load.
  """
  modules, sizes = random_modules(model)
  network = model_lib.Sculpt4D(**modules)
  ratios = []
  for num_frames in frames:
    side = sizes.image_encoder.image_size
    images = np.zeros((num_frames, side, side, 3), np.uint8)
    configs = {
      mode: dataclasses.replace(
        sampling, num_frames=num_frames, temporal_mode=mode
      )
      for mode in _MODES
    }
    seconds = {mode: [] for mode in _MODES}
    for round_ in range(rounds + 1):
      for mode, config in configs.items():
        start = time.process_time()
        network.sample(images, config)
        if round_:  # The first compiles.
          seconds[mode].append(time.process_time() - start)
    seconds = {mode: statistics.median(seconds[mode]) for mode in _MODES}
    operations = [
      sum(cost.sample(sizes, configs[mode]).values()) for mode in _MODES
    ]
    ratios.append(
      Ratio(
        num_frames,
        seconds,
        seconds["sparse"] / seconds["full"],
        operations[0] / operations[1],
      )
    )
  return ratios


def random_modules(
  model: networks.NetworkConfigs,
) -> tuple[dict[str, nnx.Module], cost.Sizes]:
  """The networks with random weights; zeros would make routing trivial."""
  modules, configs = {}, {}
  for name, (kind, config) in model.parts().items():
    modules[name] = kind(config, rngs=nnx.Rngs(0))
    configs[name] = config
  params = nnx.state(modules["dit"])
  # Output projections of temporal attention are initialised to zero.
  noise = lambda x: (
    x
    + 0.01
    * jax.random.normal(jax.random.key(0), x.shape, jnp.float32).astype(x.dtype)
  )
  nnx.update(modules["dit"], jax.tree.map(noise, params))
  return modules, cost.Sizes(**configs)
