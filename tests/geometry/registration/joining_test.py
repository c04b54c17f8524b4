import numpy as np

from sculpt4d_jax.geometry.registration import checks
from sculpt4d_jax.geometry.registration import frames as frames_lib
from sculpt4d_jax.geometry.registration import joining
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.geometry.registration import tracker
from tests.geometry.registration import shapes


def _track(distances):
  found = [checks.Check(d, d, 0.0, 0.0, 0.0) for d in distances]
  return tracker.Track(
    [None] * len(found), np.zeros((len(found), 1, 3)), found, [0] * len(found)
  )


def test_bad_runs_by_hand():
  track = _track([0, 0.02, 0.03, 0, 0.05])
  assert joining.bad_runs(track, 0.01) == [(1, 2), (4, 4)]
  assert joining.bad_runs(track, 0.1) == []


def test_points_are_carried_with_their_height_above_the_surface():
  cube = shapes.box()
  turn = shapes.turn(0.5)
  vertices = cube.vertices.astype(float)
  moved = np.stack([vertices, vertices @ turn.T + [1, 0, 0]])
  points = np.array([[0.6, 0.1, 0.2], [0.1, 0.45, 0.0], [0.5, -0.2, 0.1]])
  carried = joining.compose(points, moved, cube.faces.astype(np.int64), 0)
  np.testing.assert_allclose(carried[0], points, atol=1e-6)
  np.testing.assert_allclose(carried[1], points @ turn.T + [1, 0, 0], atol=1e-6)


def test_frames_whose_parts_are_apart_are_tried_as_key():
  one = shapes.box((1.6, 0.5, 0.5), (8, 3, 3))
  two = shapes.joined(
    shapes.ball(0.4, (-0.6, 0, 0)), shapes.ball(0.4, (0.6, 0, 0))
  )
  frames = frames_lib.Frames.of(
    [one, one, two, one], settings_lib.GraphSettings(num_samples=50)
  )
  assert joining.key_candidates(frames, 2) == [0, 2]
