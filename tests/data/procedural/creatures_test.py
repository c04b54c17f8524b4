"""Varied families: they move, they fit, and plain clips stay as they were."""

import jax
import numpy as np
import pytest

from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import creatures
from sculpt4d_jax.data.procedural import solids


def _first_seed(family):
  return next(
    seed
    for seed in range(100)
    if solids.make_clip(seed, 1, variety=1.0).family == family
  )


@pytest.mark.parametrize("family", sorted(creatures.FAMILIES))
def test_creatures_move_inside_the_cube(family):
  clip = solids.make_clip(_first_seed(family), 4, variety=1.0)
  sizes = clip_records.RecordSizes(
    num_uniform=64,
    num_sharp=16,
    num_near=32,
    num_volume=32,
    image_size=32,
    variety=1.0,
  )
  record = clip_records.make_record(clip, sizes)
  points = record.surface[..., :3]
  assert np.abs(points).max() < 1.0
  assert np.abs(points[1] - points[0]).max() > 0.01
  # The background stays white, and the object is visible.
  assert (record.images[:, 0, 0] == 255).all()
  assert (record.images.min(-1) < 200).mean() > 0.02


def test_without_variety_clips_are_those_of_their_seed():
  plain = solids.make_clip(3, 2)
  assert plain.family not in creatures.FAMILIES
  some = [solids.make_clip(seed, 1, variety=0.5) for seed in range(60)]
  varied = [clip.family in creatures.FAMILIES for clip in some]
  assert 15 < sum(varied) < 45
  # A clip that is not varied is the plain one.
  seed = varied.index(False)
  jax.tree.map(
    np.testing.assert_array_equal,
    some[seed].solid,
    solids.make_clip(seed, 1).solid,
  )
