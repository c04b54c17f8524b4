r"""Compares schedules (strides and anchors) under a budget of operations.

  # All 924 schedules of six distances with non-decreasing powers of two as
  # strides, with and without the first frame as an anchor.
  python -m benchmarks.schedules

  # At 32 frames, with at most 5 % more operations than the paper's.
  python -m benchmarks.schedules --num_frames=32 --budget=1.05

  # Kernel time of the listed schedules by the TPU compiler's own schedule; a
  # minute each, needs libtpu and no TPU.
  python -m benchmarks.schedules --anchors=first --listed=3 --chip=v5e

  # Quality of the listed schedules at the small size, each trained from the
  # same weights for the same steps, resumable. Hours on two cores.
  python -m benchmarks.schedules --config=configs/tiny.py --listed=5 \
    --quality --workdir=runs/schedules

Prints density, operations of a call, reach (see `coverage`) and the requested
measurements. A schedule "dominates" the paper's if its density is at most, and
its reach at least, as large, one of the two strictly. Trained weights are not
evaluated with another mask without training, because that would measure the
change of mask instead of the schedule.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import tempfile

from absl import flags
from ml_collections import config_flags

from benchmarks.schedules import entries as entries_lib
from launch import program
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import cost
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import variants

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/sculpt4d.py", "Preset that gives the sizes."
)
_NUM_FRAMES = flags.DEFINE_integer(
  "num_frames", 16, "Frames of a clip.", lower_bound=2
)
_BUDGET = flags.DEFINE_float(
  "budget", 1.0, "Operations at most, over those of the preset's schedule."
)
_ANCHORS = flags.DEFINE_enum(
  "anchors", "any", ("any", "first", "none"), "Anchor frames of those listed."
)
_LISTED = flags.DEFINE_integer(
  "listed", 10, "Schedules that are listed, best reach first.", lower_bound=1
)
_CHIP = flags.DEFINE_enum(
  "chip", None, ("v5e", "v5p", "v6e"), "Chip to compile the listed ones for."
)
_QUALITY = flags.DEFINE_bool(
  "quality", False, "Train and score the preset's and the listed ones."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/schedules", "With --quality: folder of the trainings."
)
_NUM_STEPS = flags.DEFINE_integer(
  "num_steps", 2000, "With --quality: steps of each training.", lower_bound=1
)
_SEEDS = flags.DEFINE_list(
  "seeds", ["0", "1", "2"], "With --quality: seeds of the trainings."
)
_NUM_CLIPS = flags.DEFINE_integer(
  "num_sequences", 20, "With --quality: held-out clips.", lower_bound=1
)


def main(unused_argv: Sequence[str]) -> None:
  """Runs the program."""
  preset = preset_lib.from_config(_CONFIG.value)
  sizes = cost.Sizes(
    preset.model.dit, preset.model.image_encoder, preset.model.vae
  )
  frames = _NUM_FRAMES.value
  dit = preset.model.dit
  blocks = sizes.vae.num_latents // dit.temporal_block_size
  if blocks & (blocks - 1):
    raise UserError(
      f"{blocks} blocks a frame are no power of two; choose another"
      " --config.model.dit.temporal_block_size."
    )
  own = entries_lib.price(
    sizes, dit.temporal_schedule, dit.temporal_anchor_frames, frames
  )
  entries = [
    entries_lib.price(sizes, schedule, anchors, frames)
    for schedule, anchors in entries_lib.enumerate_schedules(blocks)
  ]
  # Strides for distances that do not occur give equal masks.
  distinct = {(e.density, e.reach, e.anchors): e for e in reversed(entries)}
  limit = _BUDGET.value * own.operations
  wanted = {"any": ((0,), ()), "first": ((0,),), "none": ((),)}
  within = [
    e
    for e in distinct.values()
    if e.operations <= limit and e.anchors in wanted[_ANCHORS.value]
  ]
  within.sort(key=lambda e: (-e.reach, e.density))
  better = [e for e in within if e.dominates(own)]
  listed = within[: _LISTED.value]
  columns = {}
  if _CHIP.value:
    columns["forward, ms"] = _kernel_times([own, *listed], preset, frames)
  print(
    f"{len(entries)} schedules, {len(distinct)} different ones at {frames}"
    f" frames of {blocks} blocks; {len(within)} within {_BUDGET.value:g} of the"
    f" operations of {own.name}.\n"
  )
  print(_table(own, listed, columns))
  print(_verdict(own, better))
  if _QUALITY.value:
    _print_quality([own, *listed], preset)


def _table(
  own: entries_lib.Entry,
  listed: Sequence[entries_lib.Entry],
  columns: dict[str, list[str]],
) -> str:
  rows = [["schedule", "density", "TFLOP a call", "reach", *columns]]
  for number, entry in enumerate([own, *listed]):
    rows.append(
      [
        entry.name + ("  (the preset's)" if not number else ""),
        f"{entry.density:.2%}",
        f"{entry.operations / 1e12:.4g}",
        f"{entry.reach:.3f}",
        *(column[number] for column in columns.values()),
      ]
    )
  return evaluator.layout(rows, False)


def _verdict(
  own: entries_lib.Entry, better: Sequence[entries_lib.Entry]
) -> str:
  if not better:
    return f"\nNone dominates {own.name} in density and reach."
  sparsest = min(better, key=lambda e: e.density)
  return (
    f"\n{len(better)} dominate {own.name} in density and reach; the sparsest is"
    f" {sparsest.name} with {sparsest.density:.2%} and {sparsest.reach:.3f}."
    " That is a property of the masks; an anchor frame draws weight and so"
    " lowers the reach. Which one makes the better model is measured by"
    " --quality alone."
  )


def _kernel_times(
  entries: Sequence[entries_lib.Entry],
  preset: preset_lib.Preset,
  num_frames: int,
) -> list[str]:
  """Milliseconds of a layer's forward pass by the compiler's schedule."""
  from sculpt4d_jax.kernels.block_sparse_attention.bench import aot_tpu
  from sculpt4d_jax.kernels.block_sparse_attention.tpu import tiles as tiles_lib

  dit, tokens = preset.model.dit, preset.model.vae.num_latents
  times = []
  with tempfile.TemporaryDirectory() as folder:
    aot_tpu.prepare(pathlib.Path(folder))
    tiles = tiles_lib.default(_CHIP.value)
    for entry in entries:
      mask = bsa.BlockMask(
        num_frames,
        tokens // dit.temporal_block_size,
        entry.schedule,
        entry.anchors,
      )
      call = aot_tpu.Call(
        mask, dit.num_heads, tokens, dit.width // dit.num_heads
      )
      found = aot_tpu.check(
        _CHIP.value,
        "forward",
        call,
        tiles=tiles,
        folder=pathlib.Path(folder),
      )
      times.append(f"{found['estimate_ms']:.1f}")
  return times


def _print_quality(
  entries: Sequence[entries_lib.Entry], preset: preset_lib.Preset
) -> None:
  """Trains every schedule; prints scores and differences to the first one."""
  if not pathlib.Path(preset.weights).is_dir():
    raise UserError(
      "--quality trains from weights; give a preset that has some, such as"
      " --config=configs/tiny.py."
    )
  rows = []
  for entry in entries:
    dit = dataclasses.replace(
      preset.model.dit,
      temporal_schedule=entry.schedule,
      temporal_anchor_frames=entry.anchors,
    )
    model = dataclasses.replace(preset.model, dit=dit)
    rows.append(
      variants.Variant(entry.name, dataclasses.replace(preset, model=model))
    )
  frames = preset.sampling.num_frames
  plan = variants.Plan(
    pathlib.Path(_WORKDIR.value),
    _NUM_STEPS.value,
    tuple(int(seed) for seed in _SEEDS.value),
    _NUM_CLIPS.value,
  )
  found = variants.run(plan, rows, [frames])
  print("\n" + evaluator.layout(variants.table(found, plan.protocol), False))
  gaps = variants.differences(found, plan.protocol, (entries[0].name, frames))
  print(
    f"\nLess {entries[0].name}, clip by clip; a star where the interval leaves"
    f" out 0.\n{evaluator.layout(gaps, False)}"
  )


if __name__ == "__main__":
  program.run(main)
