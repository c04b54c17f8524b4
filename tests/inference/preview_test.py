import os

import numpy as np
from PIL import Image
import pytest

from sculpt4d_jax.inference import preview
from sculpt4d_jax.io.meshes import ply_obj
from tests.io import clips

# Of 48-pixel tiles: 2-pixel gaps, so tiles begin at 2, 52, 102, ...
SIZE, GAP = 48, 2


def _tile(sheet, row, column):
  top, left = (GAP + index * (SIZE + GAP) for index in (row, column))
  return sheet[top : top + SIZE, left : left + SIZE].astype(int)


def test_frames_are_chosen_at_even_distances():
  assert preview.shown_frames(16, 6) == [0, 3, 6, 9, 12, 15]
  assert preview.shown_frames(3, 8) == [0, 1, 2]
  assert preview.shown_frames(1, 8) == [0]


def test_video_is_above_renders_of_the_same_frames():
  meshes = clips.changing_clip(4)
  video = clips.coloured_video(4)
  sheet = preview.contact_sheet(meshes, video, tile_size=SIZE)
  assert sheet.shape == (3 * (SIZE + GAP) + GAP, 4 * (SIZE + GAP) + GAP, 3)
  middle = SIZE // 2
  for column in range(4):
    np.testing.assert_allclose(
      _tile(sheet, 0, column)[middle, middle], video[column, 0, 0], atol=1
    )
  # A mesh is darker than its bright tile; frame 2 has none.
  background = _tile(sheet, 1, 2)
  for column in (0, 1, 3):
    for row in (1, 2):
      darker = (_tile(sheet, row, column) < background - 20).any(axis=-1)
      assert 0.15 < darker.mean() < 0.8
  np.testing.assert_array_equal(_tile(sheet, 2, 2), background)


def test_a_clip_keeps_one_camera():
  small = clips.bumpy_sphere(0.0, 2)
  large = ply_obj.TriangleMesh(2 * small.vertices, small.faces)
  sheet = preview.contact_sheet([small, large], tile_size=SIZE)
  background = preview.contact_sheet([ply_obj.empty_mesh()], tile_size=SIZE)
  areas = [
    (np.abs(_tile(sheet, 0, c) - _tile(background, 0, 0)) > 12)
    .any(axis=-1)
    .mean()
    for c in (0, 1)
  ]
  assert areas[1] / areas[0] == pytest.approx(4, rel=0.25)


def test_the_file_is_the_sheet(tmp_path):
  path = tmp_path / "preview.png"
  meshes = clips.changing_clip(3)
  preview.write_preview(path, meshes, max_columns=2, tile_size=SIZE)
  np.testing.assert_array_equal(
    np.asarray(Image.open(path)),
    preview.contact_sheet(meshes, max_columns=2, tile_size=SIZE),
  )


def test_bad_input_is_refused(tmp_path):
  mesh = clips.TRIANGLE
  path = tmp_path / "preview.png"
  with pytest.raises(ValueError, match="1 meshes but 2 video frames"):
    preview.write_preview(path, [mesh], clips.coloured_video(2))
  with pytest.raises(ValueError, match="at least one frame"):
    preview.write_preview(path, [])
  with pytest.raises(ValueError, match="tile_size >= 8"):
    preview.write_preview(path, [mesh], tile_size=2)
  with pytest.raises(ValueError, match="ending in .png"):
    preview.write_preview(tmp_path / "preview.gif", [mesh])
  assert not os.listdir(tmp_path)
