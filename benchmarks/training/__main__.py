r"""Times a training step against the same step written in PyTorch.

  pip install torch
  python -m benchmarks.training --config=configs/tiny.py
  python -m benchmarks.training --config=configs/small.py \
      --config.dit_training.optimizer.use_muon=False --compiled --sampling

Both start from the same parameters, use the same batches and random draws in
float32, and do the same: loss, gradients, clipping, AdamW, moving average.
Their losses are compared before timing. Timed steps alternate, so that other
load affects both. It prints the median time of a step (wall time, and processor
time, which is less sensitive to other load), latent tokens per second, the
share of the processor's peak (measured by a large matrix product) that the
model's operations reach, and the ratio of the two. --compiled adds PyTorch's
step after `torch.compile`, which wants a C++ compiler. --sampling times the
sampling of a clip instead, from pictures to latents: Euler's method, guided at
every call if the preset's scale is not 1, with random weights. --profile writes
a trace of the JAX step.
"""

from collections.abc import Callable, Mapping
import functools
import itertools
import statistics
import time
from typing import TYPE_CHECKING

from absl import flags
from absl import logging
from ml_collections import config_flags

from launch import program

if TYPE_CHECKING:
  from benchmarks.training import step_time
  from sculpt4d_jax.training import preset as preset_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/tiny.py", "Preset; see configs/base.py."
)
_ROUNDS = flags.DEFINE_integer("rounds", 8, "Turns of each.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 5, "Steps a turn.", lower_bound=1)
_PEER = flags.DEFINE_bool("peer", True, "Whether PyTorch takes part.")
_COMPILED = flags.DEFINE_bool(
  "compiled", False, "Whether PyTorch's compiled step takes part too."
)
_SAMPLING = flags.DEFINE_bool(
  "sampling", False, "Time sampling instead of training."
)
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
  peak = step_time.measured_peak()
  if _SAMPLING.value:
    _time_sampling(preset, ours)
    return
  takes = {"ours": ours.take}
  for name, compiled in _peers().items():
    peer = step_time.torch_step(ours, compiled)
    step_time.check_agreement(ours, peer)
    ours.restart()
    logging.info("The losses of the first steps of %s agree.", name)
    takes[name] = peer.take
  counter = itertools.count()
  steps = lambda take: [take(next(counter)) for _ in range(_STEPS.value)]
  seconds, processor = _time(
    {n: functools.partial(steps, t) for n, t in takes.items()}
  )
  seconds = {n: [x / _STEPS.value for x in xs] for n, xs in seconds.items()}
  processor = {n: [x / _STEPS.value for x in xs] for n, xs in processor.items()}
  print(
    f"{preset.name}: {ours.num_tokens} latent tokens and"
    f" {ours.flops / 1e9:.2f} GFLOP a step; peak {peak / 1e9:.0f} GFLOP/s"
  )
  for name, values in seconds.items():
    median = statistics.median(values)
    print(
      f"{name:<17} {median:.4f} s a step ({min(values):.4f} to"
      f" {max(values):.4f}; {statistics.median(processor[name]):.4f} s of the"
      f" processor), {ours.num_tokens / median:.0f} tokens/s,"
      f" {ours.flops / median / peak:.1%} of the peak"
    )
  _print_ratios(seconds, processor)
  if _PROFILE.value:
    step_time.trace(ours, _PROFILE.value)
    print(f"trace in {_PROFILE.value}")


def _time_sampling(
  preset: "preset_lib.Preset", step: "step_time.OurStep"
) -> None:
  from benchmarks.training import sampling_peer

  clip = sampling_peer.make_clip(preset)
  samplers = {"ours": sampling_peer.ours(clip)}
  for name, compiled in _peers().items():
    samplers[name] = sampling_peer.torch_sampler(clip, step, compiled)
    sampling_peer.check_agreement(samplers["ours"], samplers[name])
    logging.info("The latents of %s agree.", name)
  seconds, processor = _time(samplers)
  print(
    f"{preset.name}: {len(clip.images)} frames, {clip.config.num_steps - 1}"
    f" calls, guidance {clip.config.guidance_scale:g}"
  )
  for name, values in seconds.items():
    print(
      f"{name:<17} {statistics.median(values):.3f} s a clip ({min(values):.3f}"
      f" to {max(values):.3f}; {statistics.median(processor[name]):.3f} s of"
      " the processor)"
    )
  _print_ratios(seconds, processor)


def _peers() -> dict[str, bool]:
  """Names of PyTorch's steps, and whether they are compiled."""
  if not _PEER.value:
    return {}
  return {"PyTorch": False} | (
    {"PyTorch compiled": True} if _COMPILED.value else {}
  )


def _time(
  runs: Mapping[str, Callable[[], object]],
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
  """Seconds of the wall and of the processor of each turn."""
  seconds = {name: [] for name in runs}
  processor = {name: [] for name in runs}
  for run in runs.values():
    run()  # Compiles, fills caches.
  for _ in range(_ROUNDS.value):
    for name, run in runs.items():
      start, used = time.perf_counter(), time.process_time()
      run()
      seconds[name].append(time.perf_counter() - start)
      processor[name].append(time.process_time() - used)
  return seconds, processor


def _print_ratios(
  seconds: Mapping[str, list[float]], processor: Mapping[str, list[float]]
) -> None:
  for name in list(seconds)[1:]:
    pairs = zip(seconds[name], seconds["ours"])
    ratio = statistics.median(peer / own for peer, own in pairs)
    own, peer = (statistics.median(processor[n]) for n in ("ours", name))
    print(
      f"ours is {ratio:.2f} times as fast as {name} (median of the turns'"
      f" ratios), and takes 1 / {peer / own:.2f} of the processor's time"
    )


if __name__ == "__main__":
  program.run(main)
