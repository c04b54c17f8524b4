"""Clips with difficult cut-outs; see tests/data/clips/README.md."""

import pathlib

import numpy as np
import pytest
from scipy import ndimage

from sculpt4d_jax.io.matting import crop
from sculpt4d_jax.io.matting import foreground
from sculpt4d_jax.io.video import reader
from tests.io.matting import foreground_test as made

CLIPS = pathlib.Path(__file__).resolve().parents[2] / "data" / "clips"
TRUE_AREA = 0.126  # Of the F in the frame.
TRUE_SIDE = 221  # Of its crop.


@pytest.mark.parametrize(
  "name",
  [
    "noise_white",
    "contact_shadow",
    "green_screen_noise",
    "rounded_corners",
    "watermark",
  ],
)
def test_the_object_alone_is_cut_out(name):
  clip = reader.read_frames(CLIPS / f"{name}.mp4", num_frames=8)
  result = foreground.extract(clip)
  alpha = result.frames[..., 3]
  assert result.method == "plain"
  assert (alpha >= 128).mean() == pytest.approx(TRUE_AREA, rel=0.03)
  side = crop.object_square(alpha, 0.15).side
  assert side == pytest.approx(TRUE_SIDE, rel=0.02)


def test_a_watermark_is_said_to_be_left_out():
  clip = reader.read_frames(CLIPS / "watermark.mp4", num_frames=8)
  assert "stands still" in " ".join(foreground.extract(clip).warnings)


def test_no_green_of_the_screen_is_left_between_arms_and_body():
  clip = reader.read_frames(CLIPS / "man_green.mp4", num_frames=8)
  result = foreground.extract(clip)
  ground = np.median(clip.frames[0, :6, :, :3].reshape(-1, 3), axis=0)
  away = np.linalg.norm(clip.frames[..., :3] - ground, axis=-1)
  alpha = result.frames[..., 3]
  assert not ((away < 40) & (alpha >= 250)).any()
  assert 0.06 < (alpha >= 128).mean() < 0.08  # The man is all there.


def ramp(edge0, edge1, values):
  return np.clip((values - edge0) / (edge1 - edge0), 0, 1)


@pytest.mark.parametrize("sigma", [3, 8])
def test_a_swaying_object_on_noisy_grey_is_whole(sigma):
  coverage = made.discs(step=3)
  noise = np.random.default_rng(0).normal(scale=sigma, size=(6, 120, 160, 3))
  frames = np.clip(made.paint(coverage, 128) + noise, 0, 255).astype(np.uint8)
  result = foreground.extract(reader.read_frames(frames))
  assert result.method == "plain"
  alpha = result.frames[..., 3]
  assert made.intersection_over_union(alpha, coverage) > 0.95
  side = crop.object_square(alpha, 0.15).side
  true = crop.object_square((255 * coverage).astype(np.uint8), 0.15).side
  assert side == pytest.approx(true, rel=0.06)


def test_a_floor_before_a_wall_is_ground():
  rows = np.mgrid[: made.HEIGHT, : made.WIDTH][0][..., None]
  ground = np.where(rows > 80, [150, 110, 80], [225, 222, 210]).astype(float)
  coverage = made.discs()
  frames = made.paint(coverage, ground, np.array([40, 60, 200.0]))
  result = foreground.extract(reader.read_frames(frames))
  assert result.method == "plain"
  alpha = result.frames[..., 3]
  assert made.intersection_over_union(alpha, coverage) > 0.93


def test_a_strip_at_the_edge_is_no_object():
  coverage = made.discs()
  frames = made.paint(coverage, (240, 240, 240))
  frames[:, :, -5:] = 0
  result = foreground.extract(reader.read_frames(frames))
  assert not result.frames[:, :, -6:, 3].any()
  alpha = result.frames[..., 3]
  assert made.intersection_over_union(alpha, coverage) > 0.97


def test_a_dark_soft_shadow_goes_and_a_grey_object_stays():
  rows, columns = np.mgrid[: made.HEIGHT, : made.WIDTH]
  coverage = made.discs()
  centres = 40 + 10 * np.arange(6)
  shadow = np.stack(
    [
      0.5 * np.exp(-(((columns - c) / 24) ** 2) - ((rows - 88) / 8) ** 2)
      for c in centres
    ]
  )
  ground = 250 * (1 - shadow[..., None]) * np.ones(3)
  frames = made.paint(coverage, ground, np.array([90, 90, 90.0]))
  result = foreground.extract(reader.read_frames(frames))
  alpha = result.frames[..., 3]
  assert made.intersection_over_union(alpha, coverage) > 0.93


@pytest.mark.parametrize("opacity", [60, 127, 200])
def test_an_object_that_is_half_transparent_is_made_opaque(opacity):
  coverage = made.discs()
  frames = np.zeros((6, made.HEIGHT, made.WIDTH, 4), np.uint8)
  frames[..., :3] = (200, 60, 40)
  frames[..., 3] = np.rint(opacity * coverage)
  result = foreground.extract(reader.read_frames(frames))
  assert result.method == "alpha"
  alpha = result.frames[..., 3]
  assert made.intersection_over_union(alpha, coverage) > 0.98
  assert alpha.max() == 255
  assert f"{opacity / 255:.0%}" in result.warnings[0]


def test_an_even_alpha_layer_says_nothing():
  coverage = made.discs()
  rgb = made.paint(coverage, (255, 255, 255))
  layer = np.full((*rgb.shape[:3], 1), 128, np.uint8)
  clip = reader.read_frames(np.concatenate([rgb, layer], axis=-1))
  result = foreground.extract(clip)
  assert result.method == "plain"
  alpha = result.frames[..., 3]
  assert made.intersection_over_union(alpha, coverage) > 0.98


@pytest.mark.parametrize("is_black", [False, True])
def test_a_shadow_in_the_alpha_layer_is_left_out(is_black):
  rows, columns = np.mgrid[: made.HEIGHT, : made.WIDTH]
  coverage = made.discs()
  frames = np.zeros((6, made.HEIGHT, made.WIDTH, 4), np.uint8)
  if not is_black:
    frames[coverage > 0, :3] = (200, 60, 40)
  for index, frame in enumerate(frames):
    centre = 40 + 10 * index
    shade = 0.4 * np.exp(
      -(((columns - centre) / 30) ** 2) - ((rows - 90) / 6) ** 2
    )
    frame[..., 3] = np.rint(255 * np.maximum(coverage[index], shade))
  result = foreground.extract(reader.read_frames(frames))
  assert result.method == "alpha"
  alpha = result.frames[..., 3]
  assert not alpha[coverage == 0].any()
  assert made.intersection_over_union(alpha, coverage) > 0.99
  assert "shadow" in result.warnings[0]


def test_a_black_object_with_soft_edges_has_no_shadow():
  coverage = ndimage.gaussian_filter(made.discs(), (0, 1, 1))
  frames = np.zeros((6, made.HEIGHT, made.WIDTH, 4), np.uint8)
  frames[..., 3] = np.rint(255 * coverage)
  result = foreground.extract(reader.read_frames(frames))
  np.testing.assert_array_equal(result.frames, frames)
  assert not result.warnings
