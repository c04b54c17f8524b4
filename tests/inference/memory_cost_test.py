"""Times that savings of memory cost, by hand."""

import dataclasses

import pytest

from sculpt4d_jax.inference import memory_cost
from sculpt4d_jax.inference import memory_plan

# So fast that only the named quantity takes time.
FAST = memory_cost.Device(2**40, 1e30, 1e30, 1e30)


def cost(planner, settings, changes, **rates):
  return memory_cost.cost(
    planner,
    dataclasses.replace(settings, **changes),
    dataclasses.replace(FAST, **rates),
  )


def test_nothing_saved_costs_nothing(planner, settings):
  nothing = memory_cost.Cost(0, 0.0)
  assert cost(planner, settings, {}, link_rate=1.0) == nothing


def test_offloaded_networks_are_copied_once(planner, settings):
  found = cost(planner, settings, dict(offload=True), link_rate=1e9)
  copied = 2 * 327_746_177 + 2 * (304_368_640 - 1024)
  assert found.link_bytes == copied == 1_264_227_586
  assert found.seconds == pytest.approx(1.264227586)


def test_layers_are_copied_once_a_run(planner, settings):
  """A batch of both branches needs them once, branches in turns twice."""
  assert (settings.calls, settings.evaluations) == (49, 98)
  layers = dict(stream_layers=True)
  found = cost(planner, settings, layers, link_rate=1e9)
  assert found.link_bytes == pytest.approx(49 * 2 * planner.kernels, rel=1e-6)
  # The device is so fast that nothing is hidden.
  assert found.seconds == pytest.approx(found.link_bytes / 1e9)
  turns = cost(planner, settings, layers | dict(guidance_in_turns=True))
  assert turns.link_bytes == pytest.approx(2 * found.link_bytes)
  packed = cost(planner, settings, layers | dict(weights="int8"))
  assert packed.link_bytes == pytest.approx(
    found.link_bytes * (1 + 1 / 16) / 2, rel=1e-6
  )


def test_copies_hide_behind_work(planner, settings):
  """However slow the work is, a share is left, and the first blocks' copies."""
  layers = dict(stream_layers=True)
  found = cost(planner, settings, layers, link_rate=1e9, flops=1.0)
  first = 2 * (2048**2) * (12 + 8)  # Three attentions and an MLP.
  rest = found.link_bytes / 49 - first
  expected = 49 * (first + (1 - memory_cost.HIDDEN) * rest) / 1e9
  assert found.seconds == pytest.approx(expected, rel=0.01)


def test_skips_cross_the_link_twice(planner, settings):
  found = cost(planner, settings, dict(skips_on_host=True), link_rate=1e9)
  one = 16 * 4097 * 2048 * 2
  assert found.link_bytes == 98 * 2 * 10 * one
  assert found.seconds == pytest.approx(found.link_bytes / 1e9)


def test_few_frames_at_a_time_read_weights_again(planner, settings):
  """Eight groups of two frames, and both branches one after the other."""
  stored = 2 * planner.kernels
  groups = cost(planner, settings, dict(frames_at_a_time=2), memory_rate=1e9)
  assert groups.seconds == pytest.approx(49 * 7 * stored / 1e9)
  turns = cost(planner, settings, dict(guidance_in_turns=True), memory_rate=1e9)
  assert turns.seconds == pytest.approx(49 * stored / 1e9)
  assert groups.link_bytes == turns.link_bytes == 0


def test_keys_and_values_are_computed_again(planner, settings):
  """In turns, the branch without context costs nothing."""
  one = 21 * 2 * 2 * 16 * 1370 * 1024 * 2048
  again = dict(cache_context=False)
  both = cost(planner, settings, again, flops=1e12)
  assert both.seconds == pytest.approx(97 * one / 0.4e12)
  again |= dict(guidance_in_turns=True)
  assert cost(planner, settings, again, flops=1e12).seconds == pytest.approx(
    48 * one / 0.4e12
  )


def test_a_device_is_taken_for_the_card_of_its_size():
  gib = memory_plan.GIB
  taken = memory_cost.device_of(round(11.6 * gib))
  assert taken.memory == round(11.6 * gib)
  assert taken.flops == memory_cost.DEVICES["12 GB GPU"].flops
  largest = memory_cost.device_of(190 * gib)
  assert largest.flops == memory_cost.DEVICES["80 GB GPU"].flops
