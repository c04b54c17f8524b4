"""Ground between parts of an object goes; paint of its colour stays."""

import numpy as np
import pytest
from scipy import ndimage

from sculpt4d_jax.io.matting import foreground
from sculpt4d_jax.io.video import reader
from sculpt4d_jax.io.video import writer

HEIGHT, WIDTH, FRAMES = 120, 160, 8
COLOUR = np.array([200, 60, 40])
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]


def walker(index, step=4):
  """A body on two legs; the feet meet in frames 3 to 5. Its mask and gap."""
  left = 40 + step * index
  body = (ROWS >= 30) & (ROWS < 50) & (COLUMNS >= left) & (COLUMNS < left + 60)
  down = (ROWS - 50) / 50
  inside = (ROWS >= 50) & (ROWS < 100)
  apart = 0 if 3 <= index <= 5 else 1
  centres = (
    left + 12 + (18 - 18 * apart) * down,
    (left + 48 - (18 - 18 * apart) * down),
  )
  legs = [inside & (np.abs(COLUMNS - c) < 6) for c in centres]
  mask = body | legs[0] | legs[1]
  gap = inside & ~mask & (COLUMNS > centres[0]) & (COLUMNS < centres[1])
  return mask, gap


def painted(masks, background):
  frames = np.broadcast_to(background, (len(masks), HEIGHT, WIDTH, 3)).copy()
  frames[np.asarray(masks)] = COLOUR
  return frames.astype(np.uint8)


@pytest.mark.parametrize("background", [(255, 255, 255), (196, 219, 234)])
@pytest.mark.parametrize("noise", [0, 3])
def test_a_gap_that_legs_enclose_at_times_is_ground(background, noise):
  masks, gaps = map(np.array, zip(*map(walker, range(FRAMES))))
  frames = painted(masks, background).astype(float)
  frames += np.random.default_rng(0).normal(scale=noise, size=frames.shape)
  frames = np.clip(np.rint(frames), 0, 255).astype(np.uint8)
  result = foreground.extract(reader.read_frames(frames))
  alpha = result.frames[..., 3]
  assert gaps[3:6].any(axis=(1, 2)).all()
  assert (alpha[gaps] < 128).mean() > 0.9
  assert (alpha[masks] >= 128).mean() > 0.97


def test_a_gap_is_found_in_a_compressed_clip(tmp_path):
  masks, gaps = map(np.array, zip(*map(walker, range(FRAMES))))
  frames = painted(masks, (196, 219, 234))
  path = writer.write_video(tmp_path / "clip.mp4", frames, fps=10)
  alpha = foreground.extract(reader.read_frames(path)).frames[..., 3]
  assert (alpha[gaps] < 128).mean() > 0.9
  assert (alpha[masks] >= 128).mean() > 0.97


@pytest.mark.parametrize("background", [(255, 255, 255), (196, 219, 234)])
@pytest.mark.parametrize("swing", [0, 6])
def test_paint_of_the_grounds_colour_stays(background, swing):
  """Two eyes and a patch on an arm that swings; none is ever open."""
  masks, patches = [], []
  for index in range(FRAMES):
    left = 40 + 5 * index
    head = np.hypot(ROWS - 50, COLUMNS - left) < 30
    hand = ROWS - 80, COLUMNS - left - 25 - swing * (index % 3)
    arm = (np.hypot(*hand) < 12) | (
      (np.abs(ROWS - 70) < 5) & (np.abs(COLUMNS - left - 20) < 20)
    )
    eyes = [np.hypot(ROWS - 45, COLUMNS - left - s) < 6 for s in (-10, 10)]
    masks.append(head | arm)
    patches.append(eyes[0] | eyes[1] | (np.hypot(*hand) < 6))
  frames = painted(masks, background)
  frames[np.array(patches)] = background
  result = foreground.extract(reader.read_frames(frames))
  assert result.method == "plain"
  assert (result.frames[..., 3][np.array(patches)] == 255).all()
  assert "was kept" in " ".join(result.warnings)


def ring(index):
  away = np.hypot(ROWS - 60, COLUMNS - 50 - 5 * index)
  return (away < 32) & (away > 16), away < 14


@pytest.mark.parametrize("is_paint", [False, True])
def test_a_closed_gap_must_follow_the_grounds_gradient(is_paint):
  slope = 150 + 0.5 * COLUMNS - 0.3 * ROWS
  background = np.stack([slope, slope + 10, slope + 20], axis=-1)
  masks, holes = map(np.array, zip(*map(ring, range(FRAMES))))
  frames = painted(masks, background)
  if is_paint:  # One colour, the ground's own in the middle of the frame.
    inside = [ndimage.binary_fill_holes(mask) & ~mask for mask in masks]
    frames[np.array(inside)] = np.rint(background[60, 68])
  alpha = foreground.extract(reader.read_frames(frames)).frames[..., 3]
  if is_paint:
    assert (alpha[holes] >= 128).mean() > 0.99
  else:
    assert (alpha[holes] < 128).mean() > 0.99


def test_a_closed_gap_before_an_even_ground_stays_and_is_said():
  masks, holes = map(np.array, zip(*map(ring, range(FRAMES))))
  result = foreground.extract(reader.read_frames(painted(masks, (255,) * 3)))
  assert (result.frames[..., 3][holes] == 255).all()
  assert "was kept" in " ".join(result.warnings)


def test_a_clip_of_one_frame_has_no_evidence():
  mask, gap = walker(4)
  clip = reader.read_frames(painted(mask[None], (255, 255, 255)))
  alpha = foreground.extract(clip).frames[..., 3]
  assert (alpha[0][gap] == 255).all()
