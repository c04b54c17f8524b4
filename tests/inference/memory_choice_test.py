"""Savings that a device needs: the cheapest combination that fits."""

import dataclasses

import pytest

from sculpt4d_jax.inference import memory_choice
from sculpt4d_jax.inference import memory_cost
from sculpt4d_jax.inference import memory_plan

GIB = memory_plan.GIB


def test_candidates_are_all_combinations_with_the_fewest_savings_first(
  settings,
):
  found = list(memory_choice.candidates(settings))
  assert found[0] == settings
  assert len(set(found)) == len(found) == 5 * 2**5
  few = dataclasses.replace(settings, frames_at_a_time=3, stream_layers=True)
  found = list(memory_choice.candidates(few))
  assert {each.frames_at_a_time for each in found} == {3, 2, 1}
  assert all(each.stream_layers for each in found)
  unguided = dataclasses.replace(settings, guided=False)
  found = memory_choice.candidates(unguided)
  assert not any(each.guidance_in_turns for each in found)


@pytest.mark.parametrize("size", [8, 12, 16, 24])
def test_nothing_that_fits_loses_less_time(planner, settings, size):
  device = memory_cost.DEVICES[f"{size} GB GPU"]
  choice = memory_choice.best(planner, settings, device)
  assert choice.fits(device.memory)
  others = 0
  for changed in memory_choice.candidates(settings):
    if planner.plan(changed).peak <= 0.92 * device.memory:
      seconds = memory_cost.cost(planner, changed, device).seconds
      assert seconds >= choice.cost.seconds
      others += 1
  assert others > 1
  assert planner.plan(settings).peak > 0.92 * device.memory


def test_the_released_size_fits_small_cards_exactly(released):
  auto = dataclasses.replace(released.sampling, memory="auto")
  choose = lambda size: memory_choice.choose(
    released.model, auto, released.surface, size and size * GIB
  )
  assert choose(None) == auto  # Unknown memory.
  chosen = choose(8)
  assert chosen.stream_layers and chosen.guidance_in_turns
  assert chosen.weights == "stored"
  assert (chosen.num_steps, chosen.guidance_scale) == (50, 5.0)
  with pytest.raises(ValueError, match="sample at most"):
    choose(3)
  as_set = memory_choice.choose(
    released.model, released.sampling, released.surface, 8 * GIB
  )
  assert as_set == released.sampling


def test_savings_that_are_set_stay(released):
  auto = dataclasses.replace(released.sampling, memory="auto", weights="int8")
  chosen = memory_choice.choose(
    released.model, auto, released.surface, 80 * GIB
  )
  assert chosen == auto


def test_more_memory_means_more_frames(planner, settings):
  sizes = [3, 8, 12, 16, 24, 40, 80]
  frames = [
    memory_choice.most_frames(planner, settings, size * GIB) for size in sizes
  ]
  assert frames == sorted(frames) and frames[0] < 16 and frames[-1] > 64
  last = memory_choice.least(planner, settings)
  assert last.stream_layers and last.skips_on_host and last.offload
  assert last.frames_at_a_time and not last.cache_context
  for size, most in zip(sizes, frames):
    peak = lambda n: planner.plan(dataclasses.replace(last, num_frames=n)).peak
    assert peak(most) <= 0.92 * size * GIB < peak(most + 1)


def test_the_table_names_bytes_and_time(released):
  text = memory_choice.report(
    released.model, released.sampling, released.surface
  )
  (row,) = [line for line in text.splitlines() if "| 8 GB GPU" in line]
  cells = [cell.strip() for cell in row.strip("|").split("|")]
  assert cells[1] == "fits" and float(cells[2]) < 0.92 * 8
  assert "stream_layers" in cells[3]
  assert cells[4].endswith(" GB") and cells[5].endswith(" s")
