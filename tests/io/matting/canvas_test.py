"""The plain area of a window is found; walls, bars and photographs are not."""

import numpy as np
import pytest
from scipy import ndimage

from sculpt4d_jax.io.matting import canvas
from sculpt4d_jax.io.matting import foreground
from sculpt4d_jax.io.video import reader
from sculpt4d_jax.io.video import writer
from tests.io.matting import foreground_test as made

HEIGHT, WIDTH, FRAMES = 144, 200, 8
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]


def recording(step=6):
  """A window with title, tools and a cursor: frames and the object's mask."""
  screen = np.full((HEIGHT, WIDTH, 3), 61, np.uint8)
  screen[:14] = (32, 34, 38)
  screen[4:10, 10:60:3] = 220  # The title's letters.
  screen[14:, :28] = (45, 45, 50)
  for row in range(20, HEIGHT - 16, 18):
    screen[row : row + 12, 8:20] = (120, 130, 140)
  screen[-10:] = (20, 60, 110)
  frames, masks = [], []
  for index in range(FRAMES):
    mask = np.hypot(ROWS - 74, (COLUMNS - 80 - step * index) / 0.8) < 26
    frame = screen.copy()
    frame[mask] = (190, 150, 110)
    row, column = 110 - 3 * index, 170 - 4 * index
    frame[row : row + 6, column : column + 3] = 250  # The cursor.
    frames.append(frame)
    masks.append(mask)
  return np.stack(frames), np.stack(masks)


@pytest.mark.parametrize("step", [0, 6])
def test_the_object_of_a_window_is_cut_out(tmp_path, step):
  frames, masks = recording(step)
  path = writer.write_video(tmp_path / "clip.mp4", frames, fps=10)
  result = foreground.extract(reader.read_frames(path))
  assert result.method == "plain"
  alpha = result.frames[..., 3]
  assert made.intersection_over_union(alpha, masks) > 0.95
  assert not alpha[:, :14].any() and not alpha[:, :, :28].any()
  assert "screen recording" in " ".join(result.warnings)
  assert result.confidence > 0.5


def test_the_area_is_that_of_the_window():
  rows, columns = canvas.find(recording()[0])
  assert (rows.start, rows.stop) == (14 + 3, HEIGHT - 10 - 3)
  assert (columns.start, columns.stop) == (28 + 3, WIDTH)


def wall():
  frame = np.full((HEIGHT, WIDTH, 3), (225, 222, 210), np.uint8)
  frame[100:] = (150, 110, 80)
  return frame


def bars():
  frame = np.full((HEIGHT, WIDTH, 3), (225, 222, 210), np.uint8)
  frame[:20] = frame[-20:] = 0
  return frame


def plain():
  return np.full((HEIGHT, WIDTH, 3), 255, np.uint8)


def photograph():
  noise = np.random.default_rng(0).normal(size=(HEIGHT, WIDTH, 3))
  smooth = ndimage.gaussian_filter(noise, (5, 5, 0))
  return np.clip(128 + 400 * smooth, 0, 255).astype(np.uint8)


def round_area():
  frame = plain()
  frame[np.hypot(ROWS - 72, COLUMNS - 100) > 60] = (50, 80, 50)
  return frame


@pytest.mark.parametrize("make", [wall, bars, plain, photograph, round_area])
def test_other_clips_have_no_window(make):
  frames = np.repeat(make()[None], 4, axis=0)
  assert canvas.find(frames) is None
  frames[:, 60:90, 80:110] = (30, 60, 200)
  assert canvas.find(frames) is None
