"""Which clips a batch holds, and what mirroring does."""

import numpy as np
import pytest

from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import drawing
from sculpt4d_jax.data.procedural import store as record_store

_SIZES = clip_records.RecordSizes(
  num_uniform=24, num_sharp=8, num_near=16, num_volume=16, image_size=16
)


def test_every_epoch_visits_every_clip_once():
  for epoch in (0, 1):
    clips = [
      drawing.draw(12, 4, seed=0, step=3 * epoch + i).clips for i in range(3)
    ]
    assert sorted(np.concatenate(clips)) == list(range(12))


def test_a_step_draws_the_same_however_often():
  first, again = (drawing.draw(12, 4, 7, 5) for _ in range(2))
  np.testing.assert_array_equal(first.clips, again.clips)
  assert first.rng.integers(1 << 30) == again.rng.integers(1 << 30)
  other = drawing.draw(12, 4, 8, 5)
  assert not np.array_equal(first.clips, other.clips)


def test_too_large_a_batch_is_refused():
  with pytest.raises(ValueError, match="exceeds the 3 clips"):
    drawing.draw(3, 4, 0, 0)


def test_mirroring_flips_x_of_positions_and_normals_only():
  rows = np.arange(14, dtype=np.float32).reshape(2, 1, 7)
  flipped = drawing.mirror_rows(rows, np.array([False, True]))
  np.testing.assert_array_equal(flipped[0], rows[0])
  np.testing.assert_array_equal(flipped[1, 0], [-7, 8, 9, -10, 11, 12, 13])
  samples = np.array([[[1.0, 2, 3, 4]]])
  flipped = drawing.mirror_rows(samples, np.array([True]))
  np.testing.assert_array_equal(flipped[0, 0], [-1, 2, 3, 4])


def test_mirrored_pictures_swap_left_and_right():
  images = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 1, 1, 4, 3)
  flipped = drawing.mirror_images(images, np.array([False, True]))
  np.testing.assert_array_equal(flipped[0], images[0])
  np.testing.assert_array_equal(flipped[1, 0, 0, 0], images[1, 0, 0, 3])


def test_store_goes_on_where_it_stopped_and_refuses_another_kind(
  tmp_path, monkeypatch
):
  options = dict(num_clips=4, num_frames=2, first_seed=50, sizes=_SIZES)
  whole = record_store.open_or_make(tmp_path / "whole", **options)
  calls = []

  def interrupted(clip, sizes):
    if len(calls) == 2:
      raise KeyboardInterrupt
    calls.append(clip.seed)
    return make(clip, sizes)

  make = clip_records.make_record
  monkeypatch.setattr(record_store, "_SAVE_EVERY", 1)
  monkeypatch.setattr(clip_records, "make_record", interrupted)
  with pytest.raises(KeyboardInterrupt):
    record_store.open_or_make(tmp_path / "parts", **options)
  monkeypatch.setattr(clip_records, "make_record", make)
  parts = record_store.open_or_make(tmp_path / "parts", **options)
  np.testing.assert_array_equal(parts.images, whole.images)
  np.testing.assert_array_equal(parts.surface, whole.surface)
  with pytest.raises(ValueError, match="another kind"):
    record_store.open_or_make(
      tmp_path / "parts", **(options | {"first_seed": 51})
    )


def test_surface_batch_takes_rows_of_the_store(tmp_path):
  store = record_store.open_or_make(
    tmp_path, num_clips=2, num_frames=3, first_seed=0, sizes=_SIZES
  )
  drawn = drawing.draw(2, 2, 0, 0)
  batch = drawing.surface_batch(store, drawn, num_frames=2, num_queries=8)
  assert batch["surface"].shape == (2, 2, 32, 7)
  assert batch["samples"].shape == (2, 2, 8, 4)
  assert batch["surface"].dtype == np.float32
