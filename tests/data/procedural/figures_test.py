"""Figures: they fit and move, and clips that are cut keep their place."""

import jax
import numpy as np
import pytest

from sculpt4d_jax.data.procedural import body as body_lib
from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import figures
from sculpt4d_jax.data.procedural import rotations
from sculpt4d_jax.data.procedural import solids

SIZES = clip_records.RecordSizes(
  num_uniform=64,
  num_sharp=16,
  num_near=32,
  num_volume=32,
  image_size=32,
  max_azimuth=0.0,
  figures=1.0,
)


@pytest.mark.parametrize("family", sorted(figures.FAMILIES))
def test_any_figure_fits_and_moves(family):
  moved = 0
  for seed in range(200):
    rng = np.random.default_rng(seed)
    body = body_lib.Body(4)
    figures.FAMILIES[family](rng, np.linspace(0, 2, 4), body)
    assert body.cones_left >= 0 and body.boxes_left >= 0
    solid = body.solid(yaw=0.0)
    assert all(np.isfinite(x).all() for x in solid)
    origins = np.concatenate([solid.cone_origin, solid.box_origin], 1)
    moved += np.abs(origins[0] - origins[-1]).max() > 0.02
  assert moved > 120


def test_records_show_figures_inside_the_cube():
  clip = SIZES.make_clip(1, 4)
  assert clip.family in figures.FAMILIES
  record = clip_records.make_record(clip, SIZES)
  assert np.abs(record.surface[..., :3]).max() < 1.0
  assert (record.images[:, 0, 0] == 255).all()
  assert (record.masks > 128).mean() > 0.02


def test_other_clips_stay_as_they_were():
  some = [
    solids.make_clip(s, 1, 0.3, things=0.2, figures=0.5) for s in range(60)
  ]
  drawn = [clip.family in figures.FAMILIES for clip in some]
  assert 12 < sum(drawn) < 40
  for seed, (clip, is_figure) in enumerate(zip(some, drawn)):
    if not is_figure:
      other = solids.make_clip(seed, 1, 0.3, things=0.2)
      assert clip.family == other.family
      jax.tree.map(np.testing.assert_array_equal, clip.solid, other.solid)


def test_a_clip_that_is_cut_has_the_place_of_the_whole_one():
  whole = SIZES.make_clip(5, 12)
  sizes = clip_records.RecordSizes(clip_frames=12, figures=1.0)
  part = sizes.make_clip(5, 4)
  first = next(
    f
    for f in range(9)
    if np.array_equal(whole.solid.cone_origin[f], part.solid.cone_origin[0])
  )
  for x, y in zip(whole.solid, part.solid):
    np.testing.assert_array_equal(x[first : first + 4], y)
  drawn = clip_records.draw_view(np.random.default_rng(0), SIZES)
  jax.tree.map(
    np.testing.assert_array_equal,
    clip_records.fit_view(whole, drawn, 0.15),
    clip_records.fit_view(part, drawn, 0.15),
  )


def test_a_body_is_carried_as_one():
  body = body_lib.Body(2)
  body.cone(np.array([1.0, 0, 0]), np.array([2.0, 0, 0]), 0.1, 0.1)
  body.box(np.array([0, 1.0, 0]), np.eye(3), np.array([0.1, 0.2, 0.3]), 0.01)
  quarter = rotations.rotation_about([0, 0, 1], np.array([0.0, np.pi / 2]))
  body.move(quarter, np.array([[0, 0, 0], [0, 0, 5.0]]))
  start, end, _ = body.cones[0]
  np.testing.assert_allclose(start, [[1, 0, 0], [0, 1, 5]], atol=1e-12)
  np.testing.assert_allclose(end, [[2, 0, 0], [0, 2, 5]], atol=1e-12)
  centre, rotation, _, _ = body.boxes[0]
  np.testing.assert_allclose(centre, [[0, 1, 0], [-1, 0, 5]], atol=1e-12)
  np.testing.assert_allclose(rotation[1], quarter[1], atol=1e-12)
