r"""Times sampling and the parts of a step; random weights.

# Time of sampling, sparse over full attention, next to the ratio of their
# operations. Takes minutes on a CPU.
python -m benchmarks.sampling --config=configs/mid.py --num_frames=8,16,32

# Time of every part of a step next to its operations.
python -m benchmarks.sampling --config=configs/mid.py --num_frames=16 --parts
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from benchmarks.sampling import sampling_time
from benchmarks.sampling import step_parts
from launch import program
from sculpt4d_jax.models import networks
from sculpt4d_jax.training import preset as preset_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/mid.py", "Preset; see configs/base.py."
)
_NUM_FRAMES = flags.DEFINE_list("num_frames", ["16"], "Numbers of frames.")
_PARTS = flags.DEFINE_bool(
  "parts", False, "Time the parts of a step instead of sampling."
)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Runs of each.", lower_bound=1)


def main(unused_argv: Sequence[str]) -> None:
  """Prints the requested table."""
  preset = preset_lib.from_config(_CONFIG.value)
  frames = [int(text) for text in _NUM_FRAMES.value]
  if _PARTS.value:
    _print_measured_parts(preset.model, frames)
  else:
    _print_measured(preset, frames)


def _print_measured(preset: preset_lib.Preset, frames: list[int]) -> None:
  program.log_platform()
  ratios = sampling_time.measure(
    preset.model,
    preset.sampling,
    frames,
    _ROUNDS.value,
  )
  print(
    f"{'frames':<8}{'sparse':>10}{'full':>10}{'time ratio':>12}"
    f"{'operations':>12}{'deviation':>11}   (CPU seconds a sample)"
  )
  for ratio in ratios:
    print(
      f"{ratio.num_frames:<8}{ratio.seconds['sparse']:>10.2f}"
      f"{ratio.seconds['full']:>10.2f}{ratio.by_time:>12.1%}"
      f"{ratio.by_operations:>12.1%}{ratio.deviation:>+11.1%}"
    )


def _print_measured_parts(
  model: networks.NetworkConfigs, frames: list[int]
) -> None:
  modules, sizes = sampling_time.random_modules(model)
  for num_frames in frames:
    print(f"{num_frames} frames, one call of the transformer")
    parts = step_parts.measure(modules["dit"], sizes, num_frames, _ROUNDS.value)
    print(step_parts.table(parts), "\n")


if __name__ == "__main__":
  program.run(main)
