import numpy as np
import pytest

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry.registration import frames as frames_lib
from sculpt4d_jax.geometry.registration import graph_fit
from sculpt4d_jax.geometry.registration import outward_tracks
from sculpt4d_jax.geometry.registration import settings as settings_lib
from tests.geometry.registration import shapes

SETTINGS = settings_lib.Settings(
  graph=settings_lib.GraphSettings(num_nodes=20, num_samples=200)
)


@pytest.fixture
def tracks():
  bar = shapes.box((1, 0.2, 0.15), (12, 3, 3))
  meshes = [
    mesh_lib.TriangleMesh(shapes.bend(bar.vertices, angle), bar.faces)
    for angle in np.linspace(0, 0.6, 5)
  ]
  frames = frames_lib.Frames.of(meshes, SETTINGS.graph)
  return outward_tracks.OutwardTracks(frames, SETTINGS)


@pytest.fixture
def fits(monkeypatch):
  """Targets of all fits that were made."""
  made = []
  fit = graph_fit.GraphFit.fit

  def counted(self, target, *args, **kwargs):
    made.append(target)
    return fit(self, target, *args, **kwargs)

  monkeypatch.setattr(graph_fit.GraphFit, "fit", counted)
  return made


def test_track_through_a_part_is_part_of_the_whole_track(tracks):
  _, whole, reached = tracks.track(2)
  assert reached
  # Anew, from the part alone.
  part = outward_tracks.OutwardTracks(tracks.frames.part(1, 4), SETTINGS)
  _, alone, _ = part.track(1)
  _, shared, _ = tracks.part(1, 4).track(1)
  for track in (alone, shared):
    np.testing.assert_allclose(track.vertices, whole.vertices[1:], atol=1e-12)
    assert track.checks == whole.checks[1:]
    assert track.keys == [1] * 4


def test_each_fit_is_made_once(tracks, fits):
  tracks.track(0, others=range(0, 3))
  assert len(fits) == 2
  tracks.track(0)
  assert len(fits) == 4
  tracks.part(0, 2).track(0)
  assert len(fits) == 4


def test_tracks_do_not_share_their_arrays(tracks):
  _, first, _ = tracks.track(0)
  first.vertices[:] = 0
  first.poses[1] = None
  _, second, _ = tracks.track(0)
  assert second.vertices.any() and second.poses[1] is not None


def test_frames_that_were_not_asked_for_have_failed(tracks):
  _, track, _ = tracks.track(2, others=range(2, 4))
  assert [pose is None for pose in track.poses] == [1, 1, 0, 0, 1]
  assert np.isinf(track.checks[0].hausdorff99)


def test_a_track_that_gets_too_bad_is_given_up(tracks, fits):
  _, track, reached = tracks.track(2, give_up=0.0)
  assert not reached
  assert len(fits) == 1 and track.poses[4] is None
