"""Rigid things: they move as one, and balls are balls."""

import dataclasses
import json

import numpy as np
import pytest

from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.data.procedural import store
from sculpt4d_jax.data.procedural import things

SIZES = clip_records.RecordSizes(
  num_uniform=64,
  num_sharp=16,
  num_near=32,
  num_volume=32,
  image_size=32,
  things=1.0,
)


def clip_of(family, num_frames=4):
  return next(
    clip
    for clip in (SIZES.make_clip(seed, num_frames) for seed in range(100))
    if clip.family == family
  )


@pytest.mark.parametrize("family", sorted(things.FAMILIES))
def test_things_move_as_one_inside_the_cube(family):
  clip = clip_of(family)
  parts = np.concatenate([clip.solid.cone_origin, clip.solid.box_origin], 1)
  there = np.concatenate(
    [clip.solid.cone_radii[0, :, 0] > 0, clip.solid.box_rounding[0] > 0]
  )
  parts = parts[:, there]
  apart = np.linalg.norm(parts[:, :, None] - parts[:, None], axis=-1)
  np.testing.assert_allclose(apart, apart[[0] * 4], atol=1e-4)

  record = clip_records.make_record(clip, SIZES)
  points = record.surface[..., :3]
  assert np.abs(points).max() < 1.0
  assert (record.images[:, 0, 0] == 255).all()
  assert (record.images.min(-1) < 200).mean() > 0.02
  # Its pictures change, even those of a ball, whose surface stays in place.
  assert (record.images[0] != record.images[2]).any()


def test_a_ball_is_round():
  clip = clip_of("ball")
  record = clip_records.make_record(clip, SIZES)
  points = record.surface[..., :3]
  # The first part is the ball itself.
  centre = clip.solid.cone_origin[:, None, 0]
  radii = np.linalg.norm(points - centre, axis=-1)
  assert radii.max() < 1.1 * radii.min()


def test_other_clips_stay_as_they_were():
  some = [solids.make_clip(s, 1, 0.3, things=0.5) for s in range(60)]
  drawn = [clip.family in things.FAMILIES for clip in some]
  assert 15 < sum(drawn) < 45
  without = [solids.make_clip(seed, 1, 0.3) for seed in range(60)]
  for one, other, is_thing in zip(some, without, drawn):
    if not is_thing:
      assert one.family == other.family
      np.testing.assert_array_equal(one.colours, other.colours)


def test_a_store_made_before_there_were_things_is_read(tmp_path):
  sizes = dataclasses.replace(SIZES, things=0.0)
  make = lambda s: store.open_or_make(
    tmp_path, first_seed=0, num_clips=2, num_frames=2, sizes=s
  )
  images = np.array(make(sizes).images)
  path = tmp_path / "store.json"
  status = json.loads(path.read_text())
  del status["sizes"]["things"]
  path.write_text(json.dumps(status))
  np.testing.assert_array_equal(make(sizes).images, images)
  with pytest.raises(store.OtherKindError):
    make(SIZES)
