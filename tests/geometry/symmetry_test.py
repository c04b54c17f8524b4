import numpy as np
import trimesh

from sculpt4d_jax.geometry import symmetry


def _beast(lift):
  """Symmetric in z but for its front legs, one of which is lifted."""
  parts = [trimesh.creation.box((1.6, 0.5, 0.5)).subdivide().subdivide()]
  head = trimesh.creation.icosphere(2, 0.3)
  head.apply_translation((0.9, 0.3, 0))
  parts.append(head)
  for x in (-0.6, 0.6):
    for z in (-0.2, 0.2):
      leg = trimesh.creation.cylinder(0.1, 0.8, sections=8)
      leg.apply_transform(
        trimesh.transformations.rotation_matrix(1.57, [1, 0, 0])
      )
      raised = lift if (x > 0 and z > 0) else 0.0
      leg.apply_translation((x + raised, -0.5 + raised, z))
      parts.append(leg)
  joined = trimesh.util.concatenate(parts)
  return np.asarray(joined.vertices), np.asarray(joined.faces)


def _turned(vertices, yaw=0.6):
  turn = trimesh.transformations.rotation_matrix(yaw, [0, 1, 0])[:3, :3]
  return vertices @ turn.T + [0.1, 0.0, -0.2]


def test_a_turned_plane_is_found():
  vertices, faces = _beast(0.0)
  found = symmetry.find(_turned(vertices)[None], faces)
  normal = _turned(np.array([[0, 0, 1.0]]))[0] - [0.1, 0, -0.2]
  assert abs(found.plane.normal @ normal) > 0.999
  assert found.error < 0.01
  image = found.plane.mirror(_turned(vertices))
  gap = np.linalg.norm(_turned(vertices)[found.partner] - image, axis=1)
  assert np.quantile(gap, 0.95) < 0.06


def test_each_vertex_asks_the_frame_that_fits_it():
  apart, faces = _beast(0.5)
  together, _ = _beast(0.0)
  frames = np.stack([_turned(apart, 0.2), _turned(together, 0.7)])
  found = symmetry.find(frames, faces)
  alone = symmetry.find(frames[:1], faces, max_error=0.2)
  near = 0.02 * found.size
  assert (found.distance < near).mean() > 0.95
  assert (alone.distance < near).mean() < 0.9


def test_a_shape_without_symmetry_has_none():
  rng = np.random.default_rng(0)
  hull = trimesh.convex.convex_hull(
    rng.normal(size=(12, 3)) * [1, 0.8, 0.6] + rng.exponential(1, (12, 3))
  )
  hull = hull.subdivide().subdivide()
  assert symmetry.find(np.asarray(hull.vertices)[None], hull.faces) is None
