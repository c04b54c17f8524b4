"""Stores of procedural clips."""

import json

import numpy as np
import pytest

from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import store

_SIZES = clip_records.RecordSizes(
  num_uniform=16, num_sharp=0, num_near=8, num_volume=8, image_size=8
)


def _open(folder, num_clips, sizes=_SIZES):
  return store.open_or_make(
    folder, num_clips=num_clips, num_frames=2, first_seed=5, sizes=sizes
  )


def test_a_store_grows_and_keeps_its_clips(tmp_path):
  small = _open(tmp_path / "grown", 1)
  first = np.array(small.images[0])
  grown = _open(tmp_path / "grown", 3)
  whole = _open(tmp_path / "whole", 3)
  np.testing.assert_array_equal(grown.images[0], first)
  for name in ("surface", "samples", "images"):
    np.testing.assert_array_equal(getattr(grown, name), getattr(whole, name))
  with pytest.raises(ValueError, match="another kind"):
    _open(tmp_path / "grown", 2)


def test_an_unfinished_store_does_not_grow(tmp_path):
  _open(tmp_path, 2)
  status = tmp_path / "store.json"
  status.write_text(json.dumps(json.loads(status.read_text()) | {"done": 1}))
  with pytest.raises(ValueError, match="another kind"):
    _open(tmp_path, 3)
