"""Clips written and read back."""

import numpy as np
from PIL import Image
import pytest

from sculpt4d_jax.io import atomic
from sculpt4d_jax.io.video import reader
from sculpt4d_jax.io.video import writer


def moving_bar(num_frames=6, height=34, width=50):
  """A red bar that moves over opaque blue; alpha is 0 off the bar."""
  frames = np.zeros((num_frames, height, width, 4), np.uint8)
  frames[...] = (20, 90, 200, 0)
  for index, frame in enumerate(frames):
    frame[:, 6 * index : 6 * index + 12] = (200, 60, 30, 255)
  return frames


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mov", "a.gif", "a"])
@pytest.mark.parametrize("channels", [3, 4])
def test_written_clips_read_back(tmp_path, name, channels):
  frames = moving_bar()[..., :channels]
  path = writer.write_video(tmp_path / name, frames, fps=10)
  clip = reader.read_frames(path, fps=10)
  assert clip.frames.shape == (6, 34, 50, 4)
  assert clip.fps == pytest.approx(10, rel=0.01)
  assert clip.has_alpha == (channels == 4 and name != "a.mp4")
  for index in range(6):
    middle = clip.frames[index, 17, 6 * index + 6]
    np.testing.assert_allclose(middle, (200, 60, 30, 255), atol=8)
    away = clip.frames[index, 17, 48]
    if channels == 3:
      np.testing.assert_allclose(away[:3], (20, 90, 200), atol=4)
    elif name == "a.mp4":
      np.testing.assert_allclose(away[:3], 255, atol=2)
    else:
      assert away[3] < 4


def test_pictures_keep_every_bit(tmp_path):
  frames = np.random.default_rng(0).integers(
    0, 256, (3, 20, 30, 4), dtype=np.uint8
  )
  writer.write_video(tmp_path / "out", frames, fps=10)
  names = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
  assert names == ["frame_0000.png", "frame_0001.png", "frame_0002.png"]
  for index, name in enumerate(names):
    picture = np.asarray(Image.open(tmp_path / "out" / name))
    np.testing.assert_array_equal(picture, frames[index])


def test_odd_sides_become_even_by_repeating_the_last_row(tmp_path):
  frames = moving_bar(height=33, width=49)
  for name in ("a.mp4", "a.webm"):
    path = writer.write_video(tmp_path / name, frames, fps=10)
    assert reader.read_frames(path).frames.shape == (6, 34, 50, 4)


@pytest.mark.parametrize("fps", [8, 23.976, 12.5, 1])
def test_keeps_the_frame_rate(tmp_path, fps):
  frames = moving_bar()[..., :3]
  for name, tolerance in (("a.mp4", 1e-3), ("a.webm", 0.02), ("a.gif", 0.03)):
    path = writer.write_video(tmp_path / name, frames, fps)
    assert reader.read_frames(path).fps == pytest.approx(fps, rel=tolerance)


def test_same_frames_give_the_same_bytes(tmp_path):
  for name in ("a.mp4", "b.mp4"):
    writer.write_video(tmp_path / name, moving_bar(), fps=10)
  assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_refuses_other_arrays_rates_and_suffixes(tmp_path):
  frames = moving_bar()
  with pytest.raises(ValueError, match="got float32"):
    writer.write_video(tmp_path / "a.mp4", frames.astype("f4"), 10)
  with pytest.raises(ValueError, match="F > 0"):
    writer.write_video(tmp_path / "a.mp4", frames[:0], 10)
  with pytest.raises(ValueError, match="fps"):
    writer.write_video(tmp_path / "a.mp4", frames, 0)
  with pytest.raises(ValueError, match="unknown suffix"):
    writer.write_video(tmp_path / "a.xyz", frames, 10)
  assert not list(tmp_path.iterdir())


def test_leaves_nothing_behind_where_it_may_not_write(tmp_path):
  (tmp_path / "file").write_text("in the way")
  for name in ("a.mp4", "a.gif", "a"):
    with pytest.raises(atomic.OutputError):
      writer.write_video(tmp_path / "file" / name, moving_bar(), 10)
  assert [path.name for path in tmp_path.iterdir()] == ["file"]
