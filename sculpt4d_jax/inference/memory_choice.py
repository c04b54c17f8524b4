"""Chooses the savings of memory that cost the least time on a device.

All combinations of the exact savings are planned; among those that fit, the one
that loses the fewest seconds is chosen. Settings that are on already stay on.
Eight bits change the result, so they are never chosen, only kept. With streamed
layers they would save no memory anyway: both forms of a block are in it.
"""

from collections.abc import Iterator
import dataclasses
import itertools
from typing import NamedTuple

import jax

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import memory_cost
from sculpt4d_jax.inference import memory_plan
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.models import networks

GIB = memory_plan.GIB
# Share of a device that a plan may fill; the driver, XLA's buffers and
# fragmentation need the rest.
USABLE = 0.92
# Values of `frames_at_a_time` that are tried.
_GROUPS = (8, 4, 2, 1)


class Choice(NamedTuple):
  """A plan and what it costs."""

  plan: memory_plan.MemoryPlan
  cost: memory_cost.Cost

  def fits(self, num_bytes: float) -> bool:
    """Whether a device of so many bytes is large enough."""
    return self.plan.peak <= USABLE * num_bytes


def device_bytes(device: jax.Device | None = None) -> int | None:
  """Memory of a device as its driver reports it; None if it does not."""
  device = jax.local_devices()[0] if device is None else device
  stats = device.memory_stats()
  return (stats or {}).get("bytes_limit")


def choose(
  model: networks.NetworkConfigs,
  sampling: model_lib.SamplingConfig,
  surface: pipeline.SurfaceConfig,
  num_bytes: int | None,
) -> model_lib.SamplingConfig:
  """The settings with the savings that a device needs.

  Args:
    model: Configurations of the networks.
    sampling: Settings; they are returned unchanged unless `memory` is "auto".
    surface: Settings of mesh extraction.
    num_bytes: Memory of the device; None if unknown: no memory is saved then.

  Raises:
    ValueError: The device is too small even with all savings.
  """
  if sampling.memory != "auto" or num_bytes is None:
    return sampling
  planner = memory_plan.Planner(model)
  settings = memory_plan.settings_of(sampling, surface)
  device = memory_cost.device_of(num_bytes)
  choice = best(planner, settings, device)
  if choice is None:
    peak = planner.plan(least(planner, settings)).peak
    most = most_frames(planner, settings, num_bytes)
    raise UserError(
      f"{settings.num_frames} frames need {peak / GIB:.1f} GiB with all"
      f" savings, and the device has {num_bytes / GIB:.1f}: sample at most"
      f" {most} frames, or a long clip in windows of as many."
    )
  chosen = choice.plan.settings
  return dataclasses.replace(
    sampling, **{name: getattr(chosen, name) for name in _SAVINGS}
  )


def best(
  planner: memory_plan.Planner,
  settings: memory_plan.Settings,
  device: memory_cost.Device,
) -> Choice | None:
  """The fitting plan that loses the least time; None if nothing fits.

  Args:
    planner: Sizes of the networks.
    settings: Settings whose savings stay.
    device: Device that samples.
  """
  chosen, order = None, None
  for number, changed in enumerate(candidates(settings)):
    choice = Choice(
      planner.plan(changed), memory_cost.cost(planner, changed, device)
    )
    # Candidates with fewer savings are first.
    if choice.fits(device.memory):
      found = (choice.cost.seconds, number)
      if order is None or found < order:
        chosen, order = choice, found
  return chosen


def least(
  planner: memory_plan.Planner, settings: memory_plan.Settings
) -> memory_plan.Settings:
  """The settings with the savings that need the least memory."""
  peak = lambda changed: planner.plan(changed).peak
  return min(candidates(settings), key=peak)


def most_frames(
  planner: memory_plan.Planner,
  settings: memory_plan.Settings,
  num_bytes: float,
) -> int:
  """The longest clip that fits with all savings; 0 if none does."""
  all_on = least(planner, settings)

  def fits(frames: int) -> bool:
    changed = dataclasses.replace(all_on, num_frames=frames)
    return planner.plan(changed).peak <= USABLE * num_bytes

  low, high = 0, 1
  while fits(high) and high < 2**12:
    low, high = high, 2 * high
  while high - low > 1:
    middle = (low + high) // 2
    low, high = (middle, high) if fits(middle) else (low, middle)
  return low


def candidates(
  settings: memory_plan.Settings,
) -> Iterator[memory_plan.Settings]:
  """All settings with at least the given savings, fewer savings first."""
  given = {name: getattr(settings, name) for name in _SAVINGS}
  options = []
  for name, values in _SAVINGS.items():
    options.append([given[name]] if given[name] in values[1:] else list(values))
  if settings.frames_at_a_time:
    fewer = [n for n in _GROUPS if n < settings.frames_at_a_time]
    options[0] = [settings.frames_at_a_time, *fewer]
  if not settings.guided:
    options[1] = [settings.guidance_in_turns]
  changes = [dict(zip(_SAVINGS, each)) for each in itertools.product(*options)]
  changes.sort(key=lambda each: sum(each[n] != given[n] for n in each))
  for each in changes:
    yield dataclasses.replace(settings, **each)


def report(
  model: networks.NetworkConfigs,
  sampling: model_lib.SamplingConfig,
  surface: pipeline.SurfaceConfig,
) -> str:
  """The plan of a preset as text: the tables, and their assumptions."""
  # Nothing is allocated, but abstract networks still need a device. The host is
  # used, so that planning for an accelerator does not require one.
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    settings = memory_plan.settings_of(sampling, surface)
    lines = list(format_plan(memory_plan.Planner(model), settings))
  return "\n".join(
    [
      *lines,
      "",
      f"Weights in bfloat16; a device is filled to {USABLE:.0%}. The savings are"
      " fields of the preset's section `sampling`, and those that lose the least"
      " time are chosen. Bytes cross the link between host and device, in both"
      " directions. Time is estimated from data sheets, at"
      f" {memory_cost.UTILISATION:.0%} of a device's peak, and not measured; see"
      " sculpt4d_jax/inference/memory_plan.py and memory_cost.py. Compilers for"
      " GPUs and TPUs reserve more than planned for the released size, up to 2.7"
      " times as much; see docs/sampling.md.",
    ]
  )


def format_plan(
  planner: memory_plan.Planner, settings: memory_plan.Settings
) -> Iterator[str]:
  """Tables of parts by stage, of savings and of devices: lines of Markdown."""
  plan = planner.plan(settings)
  names = list(dict.fromkeys(n for s in plan.stages.values() for n in s))
  title = f"GiB, {settings.num_frames} frames"
  yield f"| {' | '.join([title, *plan.stages])} |"
  yield "|---" * (1 + len(plan.stages)) + "|"
  for name in names:
    cells = [_gib(stage.get(name)) for stage in plan.stages.values()]
    yield f"| {name} | {' | '.join(cells)} |"
  totals = [_gib(sum(stage.values())) for stage in plan.stages.values()]
  yield f"| **all** | {' | '.join(totals)} |"
  yield ""
  yield from _format_savings(planner, settings)
  yield ""
  yield (
    f"| device | {settings.num_frames} frames | needs GiB | with | over the"
    " link, a clip | lost, a clip | most frames, all savings |"
  )
  yield "|---" * 7 + "|"
  for name, device in memory_cost.DEVICES.items():
    choice = best(planner, settings, device)
    most = most_frames(planner, settings, device.memory)
    if choice is None:
      peak = planner.plan(least(planner, settings)).peak
      cells = ["no", _gib(peak), "all savings", "", ""]
    else:
      copied, seconds = choice.cost.link_bytes, choice.cost.seconds
      cells = [
        "fits",
        _gib(choice.plan.peak),
        choice.plan.settings.describe(),
        _gigabytes(copied),
        f"{seconds:.2f} s",
      ]
    yield f"| {name} | {' | '.join(cells)} | {most or 'none'} |"


def _format_savings(
  planner: memory_plan.Planner, settings: memory_plan.Settings
) -> Iterator[str]:
  """A table of single savings, and of all that save the most."""
  device = memory_cost.DEVICES[_SHOWN]
  yield (
    "| alone | denoise GiB | peak GiB | over the link, a clip | lost, a clip,"
    f" {_SHOWN} |"
  )
  yield "|---" * 5 + "|"
  rows = [settings]
  for name, (_, *values) in _SAVINGS.items():
    for value in values:
      changed = dataclasses.replace(settings, **{name: value})
      if changed in candidates(settings) and changed != settings:
        rows.append(changed)
  if settings.weights == "stored":
    rows.append(dataclasses.replace(settings, weights="int8"))
  rows.append(least(planner, settings))
  for changed in rows:
    plan = planner.plan(changed)
    copied = memory_cost.cost(planner, changed, device)
    cells = [
      changed.describe(),
      _gib(sum(plan.stages["denoise"].values())),
      _gib(plan.peak),
      _gigabytes(copied.link_bytes),
      f"{copied.seconds:.2f} s",
    ]
    yield f"| {' | '.join(cells)} |"


# Device of the table of single savings.
_SHOWN = "12 GB GPU"
# Fields of settings that save memory -> values, the one without saving first.
_SAVINGS = {
  "frames_at_a_time": (0, *_GROUPS),
  "guidance_in_turns": (False, True),
  "offload": (False, True),
  "cache_context": (True, False),
  "stream_layers": (False, True),
  "skips_on_host": (False, True),
}


def _gib(num_bytes: int | None) -> str:
  return "" if num_bytes is None else f"{num_bytes / GIB:.2f}"


def _gigabytes(num_bytes: int) -> str:
  return f"{num_bytes / 1e9:,.2f} GB" if num_bytes else "nothing"
