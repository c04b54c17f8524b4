import dataclasses

import numpy as np
import pytest

from sculpt4d_jax.geometry import isosurface
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry.registration import result
from sculpt4d_jax.geometry.registration import segmenting
from sculpt4d_jax.geometry.registration import sequence
from sculpt4d_jax.geometry.registration import settings as settings_lib

FAILED = result.Verdict.FAILED
SETTINGS = settings_lib.Settings(
  graph=settings_lib.GraphSettings(num_nodes=40, num_samples=500)
)


def _fork(is_fused, shift):
  """A body with two legs; `is_fused` fills the gap between them."""
  axis = np.linspace(-1, 1, 33)
  points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
  boxes = [((0, 0.5, 0), (0.8, 0.3, 0.3))]  # Centre and half sizes.
  boxes += [((side, -0.2, 0), (0.2, 0.6, 0.3)) for side in (-0.6, 0.6)]
  if is_fused:
    boxes.append(((0, -0.2, 0), (0.8, 0.6, 0.3)))
  outside = [
    (np.abs(points - np.array(centre)) - np.array(half)).max(-1)
    for centre, half in boxes
  ]
  surface = isosurface.extract_surface(-np.min(outside, 0).astype(np.float32))
  return mesh_lib.TriangleMesh(surface.vertices + shift, surface.faces)


def _frames(fused):
  return [
    _fork(is_fused, np.float32([0.02 * index, 0, 0]))
    for index, is_fused in enumerate(fused)
  ]


@pytest.mark.slow
def test_legs_that_fuse_get_a_topology_though_the_parts_are_as_many():
  meshes = _frames([False, False, True, True, False])
  found = sequence.register(meshes, SETTINGS, key=0)
  assert found.frames_with(FAILED) == [2, 3]
  spans = [(s.first_frame, s.last_frame) for s in found.segments]
  assert spans == [(0, 1), (2, 3), (4, 4)]
  assert found.num_topologies == 2
  assert result.groups_of(found.segments) == [[0, 2], [1]]
  assert all(r.hausdorff99 < 0.01 for r in found.segment_reports)
  assert [r.frame for r in found.segment_reports] == list(range(5))
  assert [r.key for r in found.segment_reports[2:4]] in ([2, 2], [3, 3])
  for segment in found.segments:
    for number, mesh in enumerate(segment.mesh.frames(), segment.first_frame):
      low, high = meshes[number].vertices.min(0), meshes[number].vertices.max(0)
      np.testing.assert_allclose(mesh.vertices.min(0), low, atol=0.02)
      np.testing.assert_allclose(mesh.vertices.max(0), high, atol=0.02)
  # The mesh of all frames, which bones need, is the key frame's.
  assert found.mesh.num_vertices == meshes[0].num_vertices
  alone = dataclasses.replace(SETTINGS, max_added_topologies=0)
  assert len(sequence.register(meshes, alone, key=0).segments) == 1


def test_one_topology_suffices_where_no_frame_fails():
  found = sequence.register(_frames([False] * 3), SETTINGS)
  assert len(found.segments) == found.num_topologies == 1


@pytest.mark.parametrize(
  "counts, runs",
  [
    ([1, 1, 1], [(0, 2)]),
    ([1, 1, 2, 2], [(0, 1), (2, 3)]),
    ([1, 2, 1, 1], [(0, 3)]),
    ([3, 1, 1, 1], [(0, 3)]),
    ([1, 1, 2, 1, 1], [(0, 4)]),
    ([1, 1, 3, 3, 3, 1, 1], [(0, 1), (2, 4), (5, 6)]),
  ],
)
def test_runs_of_parts(counts, runs):
  assert segmenting.runs_of_parts(counts) == runs
