"""IoU of fields, of clips with a known answer."""

import numpy as np
import pytest

from benchmarks.training import field_iou


class _Balls:
  """In place of a model: the latents are radii of balls."""

  def field(self, radius):
    return lambda points: radius - np.linalg.norm(points, axis=-1)


def _clip(radii):
  at = np.linspace(-1, 1, 41, dtype=np.float32)
  points = np.stack(np.meshgrid(at, at, at, indexing="ij"), -1).reshape(-1, 3)
  distance = np.linalg.norm(points, axis=-1)
  return field_iou.Clip(
    images=np.zeros((len(radii), 8, 8, 3), np.uint8),
    masks=np.zeros((len(radii), 8, 8), np.uint8),
    surface=np.zeros((len(radii), 4, 7), np.float32),
    num_uniform=4,
    points=np.broadcast_to(points, (len(radii), *points.shape)),
    inside=np.stack([distance < radius for radius in radii]),
  )


def test_iou_of_balls_is_the_ratio_of_their_volumes():
  clip = _clip([0.9, 0.9])
  iou = field_iou.iou(_Balls(), np.array([0.9, 0.45]), clip)
  # (1 + 1 / 8) / 2, to the grid.
  assert iou == pytest.approx((1 + 1 / 8) / 2, abs=0.01)


def test_an_empty_prediction_counts_as_nothing():
  assert field_iou.iou(_Balls(), np.array([-1.0]), _clip([0.5])) == 0


def test_a_line_has_means_and_intervals():
  rows = {"round trip": [0.5, 0.5], "sampled": [0.25, 0.75]}
  line = field_iou.describe("records", rows)
  assert line.startswith("| records | 2 | 0.500 [0.500, 0.500] | 0.500 [")
