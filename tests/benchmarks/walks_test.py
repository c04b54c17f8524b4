"""Walks of configurations through functions whose stacks are known."""

import dataclasses

from benchmarks import walks as walk_lib


@dataclasses.dataclass(frozen=True)
class Inner:
  rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
  inner: Inner = Inner()
  seed: int = 1


def use(inner):
  return inner.rate


def hand_over(outer):
  return use(outer.inner)


def test_the_first_use_ends_the_walk():
  preset = Outer()
  with walk_lib.followed(preset) as walks:
    assert hand_over(preset) == 0.5
    assert preset.inner.rate == 0.5  # A second use does not count.
  assert set(walks) == {"inner.rate"}  # The seed is never read.
  functions = [function for _, function in walks["inner.rate"].stays]
  assert functions[0] == "main"
  assert functions[-3:] == [
    "test_the_first_use_ends_the_walk",
    "hand_over",
    "use",
  ]
  assert preset.seed == 1 and "seed" not in walks


def test_rooms_are_files_and_climbs_go_up():
  walk = walk_lib.Walk(
    (
      ("launch/train.py", "main"),
      ("sculpt4d_jax/training/loop.py", "train"),
      ("sculpt4d_jax/io/paths.py", "of"),
      ("sculpt4d_jax/training/loop.py", "_save"),
      ("sculpt4d_jax/errors.py", "f"),
    )
  )
  assert (walk.rooms, walk.climbs) == (4, 1)
  text = walk_lib.table({"data.seed": walk, "name": walk})
  assert "| `data` | 1 | 5 | 4 | 1 |" in text
