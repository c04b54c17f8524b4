"""Enumeration and ranking of a training step's layouts."""

import dataclasses

import jax
import pytest

from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.ahead_of_time import search
from tests.integration import micro


@pytest.fixture(scope="module")
def preset():
  """Two clips of three frames, two heads, a step."""
  return preset_lib.from_config(micro.get_config())


def _devices(number: int) -> list[jax.Device]:
  return jax.devices()[:1] * number  # A mesh is only measured here.


def test_all_meshes_that_divide_the_step(preset):
  groups = search.layouts(preset, _devices(2), ["full", None], [2, 1])
  # Three frames cannot be split in two; two micro-batches of one clip cannot
  # either.
  assert [[str(layout) for layout in group] for group in groups] == [
    ["fsdp=2 context=1 remat_policy=full accumulation_steps=1"],
    ["fsdp=2 context=1 remat_policy=none accumulation_steps=1"],
  ]
  assert search.layouts(preset, _devices(2), [None], [1], [1]) == [groups[1]]
  with pytest.raises(ValueError, match="No mesh of 2 devices"):
    search.layouts(preset, _devices(2), [None], [1], [2])
  with pytest.raises(ValueError, match="No mesh of 5 devices"):
    search.layouts(preset, _devices(5), [None], [1])


def test_a_layout_changes_the_preset_and_nothing_else(preset):
  layout = search.Layout("full", 1, 3, 2)
  changed = layout.apply(preset)
  assert changed.mesh.fsdp == 1 and changed.mesh.context == 3
  assert changed.model.dit.remat_policy == "full"
  assert changed.dit_training.optimizer.accumulation_steps == 2
  assert (
    search.Layout(
      preset.model.dit.remat_policy,
      preset.mesh.fsdp,
      preset.mesh.context,
      preset.dit_training.optimizer.accumulation_steps,
    ).apply(changed)
    == preset
  )
  # A flag's word for None.
  keep_all = search.Layout(None, 1, 3, 2)
  assert keep_all.fields()["model.dit.remat_policy"] == "none"
  dit = dataclasses.replace(preset.model.dit, remat_policy="none")
  assert keep_all.apply(preset).model.dit == dit
  assert layout.fields()["mesh.context"] == 3
  assert layout.fields()["dit_training.optimizer.accumulation_steps"] == 2


def test_a_group_ends_with_the_first_that_fits():
  layouts = {
    name: search.Layout(None, *sizes)
    for name, sizes in {
      "large": (1, 4, 1),
      "small": (1, 4, 2),
      "smaller": (1, 4, 4),
      "fast": (2, 2, 1),
      "never": (4, 1, 1),
    }.items()
  }
  figures = {
    "large": None,  # The compiler gives up.
    "small": dict(fits=True, mfu_bound=0.3),
    "fast": dict(fits=True, mfu_bound=0.5),
    "never": dict(fits=False, mfu_bound=0.9),
  }
  names = {layout: name for name, layout in layouts.items()}
  report = dict(memory_gb=dict(peak=1.0), seconds=dict(x=2.0), account=None)
  seen = []

  def examine(layout):
    seen.append(names[layout])
    own = figures[names[layout]]
    return None if own is None else report | own

  found = search.run(
    [
      (layouts["large"], layouts["small"], layouts["smaller"]),
      (layouts["fast"],),
      (layouts["never"],),
    ],
    examine,
  )
  assert seen == ["large", "small", "fast", "never"]
  assert [names[layout] for layout, _ in found] == ["fast", "small", "never"]
  lines = search.table(found).splitlines()
  assert "50.0%" in lines[1] and "no" in lines[3].split()
  assert lines[-1].startswith("best: mesh.fsdp=2 mesh.context=2 ")
  assert "None of them fits." in search.table(found[2:])
