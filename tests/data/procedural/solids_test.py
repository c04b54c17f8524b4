"""Procedural clips and their records."""

import numpy as np
import pytest

from sculpt4d_jax.data.procedural import body
from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import solids

_SIZES = clip_records.RecordSizes(
  num_uniform=48, num_sharp=16, num_near=64, num_volume=32, image_size=32
)


def _clips(count, num_frames=4):
  return [solids.make_clip(seed, num_frames) for seed in range(count)]


def test_same_seed_same_clip_and_record():
  first, second = (solids.make_clip(5, 3) for _ in range(2))
  for a, b in zip(first.solid, second.solid):
    np.testing.assert_array_equal(a, b)
  records = [clip_records.make_record(c, _SIZES) for c in (first, second)]
  np.testing.assert_array_equal(records[0].images, records[1].images)
  np.testing.assert_array_equal(records[0].surface, records[1].surface)


def test_all_families_occur_and_are_finite():
  clips = _clips(60)
  assert len({clip.family for clip in clips}) == 7
  for clip in clips:
    assert all(np.isfinite(leaf).all() for leaf in clip.solid)


def test_clips_fill_one_box_for_all_frames():
  for clip in _clips(20):
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for points, radii in clip_records._spheres(clip.solid):
      low = np.minimum(low, (points - radii[:, None]).min(0))
      high = np.maximum(high, (points + radii[:, None]).max(0))
    assert max(high.max(), -low.min()) <= body.EXTENT + 1e-3
    # Rounded corners of boxes reach a little less far than sharp ones.
    assert (high - low).max() >= 2 * body.EXTENT - 0.1


def test_objects_move():
  for clip in _clips(20, num_frames=6):
    motion = np.ptp(clip.solid.cone_origin, axis=0).max()
    motion += np.ptp(clip.solid.cone_rotation, axis=0).max()
    motion += np.ptp(clip.solid.cone_radii, axis=0).max()
    motion += np.ptp(clip.solid.box_origin, axis=0).max()
    motion += np.ptp(clip.solid.box_rotation, axis=0).max()
    assert motion > 0.02, clip.family


def test_splitter_joins_and_splits():
  seeds = (s for s in range(200))
  clip = next(
    c
    for c in (solids.make_clip(s, 8) for s in seeds)
    if c.family == "splitter" and (c.solid.cone_radii[0, :, 0] > 0).sum() > 1
  )
  there = clip.solid.cone_radii[0, :, 0] > 0
  centres = clip.solid.cone_origin[:, there]
  gaps = np.linalg.norm(centres[:, 0] - centres[:, 1], axis=-1)
  assert gaps.max() > gaps.min() * 1.2


def test_a_clip_needs_a_frame():
  with pytest.raises(ValueError, match="at least 1"):
    solids.make_clip(0, 0)


@pytest.mark.parametrize("seed", [0, 1, 6])  # Machine, bloomer, splitter.
def test_records_tell_the_truth(seed):
  clip = solids.make_clip(seed, 3)
  record = clip_records.make_record(clip, _SIZES)
  solid = clip_records.trim(clip.solid)
  on_surface = clip_records.distances(solid, record.surface[..., :3])
  assert np.abs(on_surface).max() < 5e-3
  normals = record.surface[..., 3:6]
  np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-3)
  outside = clip_records.distances(
    solid, record.surface[..., :3] + 0.02 * normals
  )
  assert (np.asarray(outside) < 0).mean() > 0.95
  np.testing.assert_allclose(
    clip_records.distances(solid, record.samples[..., :3]),
    record.samples[..., 3],
    atol=1e-5,
  )


def test_sharp_points_lie_on_box_edges_only():
  machine = solids.make_clip(0, 2)
  assert machine.family == "machine"
  record = clip_records.make_record(machine, _SIZES)
  labels = record.surface[0, :, 6]
  np.testing.assert_array_equal(labels, [0] * 48 + [1] * 16)
  bloomer = solids.make_clip(1, 2)
  assert bloomer.family == "bloomer"
  record = clip_records.make_record(bloomer, _SIZES)
  assert not record.surface[..., 6].any()


def test_pictures_show_the_object_within_its_borders():
  for seed in (0, 1, 4):
    record = clip_records.make_record(solids.make_clip(seed, 3), _SIZES)
    seen = (record.masks > 127).any(0)
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    longer = max(np.ptp(rows), np.ptp(columns)) + 1
    assert 0.7 * 32 <= longer <= 0.92 * 32
    assert (record.images[record.masks == 0] == 255).all()
