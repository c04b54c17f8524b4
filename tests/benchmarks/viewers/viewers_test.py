"""The comparison with other viewers tells equal poses from different ones."""

import json

from absl import app
import numpy as np
import pytest

from benchmarks.viewers import __main__ as viewers
from benchmarks.viewers import pages

SQUARE = np.array([[[0.0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0]]])


def test_equal_poses_have_no_distance():
  assert viewers.largest_distance(SQUARE, SQUARE) == (0.0, True)


def test_a_moved_vertex_counts_by_the_size():
  moved = SQUARE.copy()
  moved[0, 2, 2] = 0.1
  far, same = viewers.largest_distance(moved, SQUARE)
  assert far == pytest.approx(0.05)
  assert same


def test_swapped_vertices_are_no_equal_poses():
  far, _ = viewers.largest_distance(SQUARE[:, [1, 0, 2, 3]], SQUARE)
  assert far == pytest.approx(1.0)


def test_split_vertices_are_compared_by_the_nearest():
  split = SQUARE[:, [0, 1, 1, 2, 3]]
  assert viewers.largest_distance(split, SQUARE) == (0.0, False)


def test_a_vertex_that_a_program_lost_shows():
  far, same = viewers.largest_distance(SQUARE[:, :3], SQUARE)
  assert far == pytest.approx(1.0)
  assert not same


def test_missing_packages_are_named(tmp_path):
  (tmp_path / "babylonjs").mkdir()
  (tmp_path / "babylonjs" / "package.json").write_text(json.dumps({}))
  assert pages.missing("Babylon", tmp_path) == ["babylonjs-loaders"]


def test_no_file_is_a_usage_error(tmp_path):
  with pytest.raises(app.UsageError, match="registered GLB files that exist"):
    viewers.main(["viewers", str(tmp_path / "none.glb")])
