r"""Times a training step against the same step written in PyTorch.

  pip install torch
  python -m benchmarks.training --config=configs/tiny.py

Both start from the same parameters, use the same batches and random draws in
float32, and do the same: loss, gradients, clipping, AdamW, moving average.
Their losses are compared before timing. Timed steps alternate, so that other
load affects both. It prints the median time of a step (wall time, and processor
time, which is less sensitive to other load), latent tokens per second, the
share of the processor's peak (measured by a large matrix product) that the
model's operations reach, and the ratio of the two. --profile writes a trace of
the JAX step.
"""

import statistics
import time

from absl import flags
from absl import logging
from ml_collections import config_flags

from launch import program

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/tiny.py", "Preset; see configs/base.py."
)
_ROUNDS = flags.DEFINE_integer("rounds", 8, "Turns of each.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 5, "Steps a turn.", lower_bound=1)
_PEER = flags.DEFINE_bool("peer", True, "Whether PyTorch takes part.")
_PROFILE = flags.DEFINE_string(
  "profile", None, "Folder for a trace of our step, if wanted."
)


def main(argv: list[str]) -> None:
  """Runs the program."""
  del argv
  # Imported late, because --help does not need it.
  from benchmarks.training import step_time
  from sculpt4d_jax.training import preset as preset_lib

  program.log_platform()
  preset = preset_lib.from_config(_CONFIG.value)
  ours = step_time.our_step(preset)
  steps = {"ours": ours}
  if _PEER.value:
    steps["PyTorch"] = step_time.torch_step(ours)
    step_time.check_agreement(ours, steps["PyTorch"])
    logging.info("The losses of the first steps agree.")
  seconds = {name: [] for name in steps}
  processor = {name: [] for name in steps}
  for step in steps.values():
    step.take(0)  # Compiles, fills caches.
  for turn in range(_ROUNDS.value):
    for name, step in steps.items():
      start, used = time.perf_counter(), time.process_time()
      for index in range(_STEPS.value):
        step.take(turn * _STEPS.value + index)
      seconds[name].append((time.perf_counter() - start) / _STEPS.value)
      processor[name].append((time.process_time() - used) / _STEPS.value)
  peak = step_time.measured_peak()
  print(
    f"{preset.name}: {ours.num_tokens} latent tokens and"
    f" {ours.flops / 1e9:.2f} GFLOP a step; peak {peak / 1e9:.0f} GFLOP/s"
  )
  for name, values in seconds.items():
    median = statistics.median(values)
    print(
      f"{name:<8} {median:.4f} s a step ({min(values):.4f} to"
      f" {max(values):.4f}; {statistics.median(processor[name]):.4f} s of the"
      f" processor), {ours.num_tokens / median:.0f} tokens/s,"
      f" {ours.flops / median / peak:.1%} of the peak"
    )
  if _PEER.value:
    pairs = zip(seconds["PyTorch"], seconds["ours"])
    ratio = statistics.median(peer / own for peer, own in pairs)
    own, peer = (statistics.median(processor[n]) for n in ("ours", "PyTorch"))
    print(
      f"ours is {ratio:.2f} times as fast (median of the turns' ratios), and"
      f" takes 1 / {peer / own:.2f} of the processor's time"
    )
  if _PROFILE.value:
    step_time.trace(ours, _PROFILE.value)
    print(f"trace in {_PROFILE.value}")


if __name__ == "__main__":
  program.run(main)
