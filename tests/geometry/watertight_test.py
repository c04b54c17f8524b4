"""Watertight surfaces of shapes whose answers are known."""

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import mesh_distance
from sculpt4d_jax.geometry import watertight

_SETTINGS = watertight.WatertightSettings(resolution=48, test_points=4000)
_CREATE = trimesh.creation


def _deforming(*meshes):
  joined = trimesh.util.concatenate(list(meshes))
  return deforming_mesh.DeformingMesh(
    np.asarray(joined.vertices)[None], joined.faces
  )


def _close(mesh, frame=0):
  repair, _ = watertight.plan_repair(mesh, _SETTINGS, np.random.default_rng(0))
  return watertight.close(mesh.frame(frame), repair, _SETTINGS), repair


def _inverted(mesh):
  mesh = mesh.copy()
  mesh.invert()
  return mesh


def cloth(num=21):
  """An open wavy sheet."""
  axis = np.linspace(-0.8, 0.8, num)
  x, z = np.meshgrid(axis, axis, indexing="ij")
  corner = np.arange((num - 1) ** 2)
  a = corner // (num - 1) * num + corner % (num - 1)
  faces = np.concatenate(
    [
      np.stack([a, a + 1, a + num + 1], 1),
      np.stack([a, a + num + 1, a + num], 1),
    ]
  )
  vertices = np.stack([x, 0.1 * np.sin(4 * x), z], -1).reshape(-1, 3)
  return deforming_mesh.DeformingMesh(vertices[None], faces)


_BALL = 4 / 3 * np.pi * 0.8**3
_SHAPES = {
  "sphere": ([_CREATE.icosphere(3, 0.8)], _BALL, 0.03),
  "box": ([_CREATE.box([1.0, 0.8, 0.6])], 0.48, 0.02),
  "torus": ([_CREATE.torus(0.6, 0.2)], 2 * np.pi**2 * 0.6 * 0.04, 0.05),
  "inverted box": ([_inverted(_CREATE.box([1.0, 0.8, 0.6]))], 0.48, 0.02),
  "nested shells": (
    [_CREATE.icosphere(3, 0.8), _CREATE.icosphere(2, 0.5)],
    _BALL,
    0.03,
  ),
  "filled cavity": (
    [_CREATE.icosphere(3, 0.8), _inverted(_CREATE.icosphere(2, 0.5))],
    _BALL,
    0.03,
  ),
  # Two bars that cross: their common cube counts once.
  "self-intersecting limbs": (
    [_CREATE.box([1.6, 0.4, 0.4]), _CREATE.box([0.4, 1.6, 0.4])],
    2 * 1.6 * 0.16 - 0.064,
    0.03,
  ),
}


@pytest.mark.parametrize("name", _SHAPES)
def test_volume_of_known_shapes(name):
  meshes, volume, tolerance = _SHAPES[name]
  surface, repair = _close(_deforming(*meshes))
  assert mesh_distance.is_closed(surface)
  assert mesh_distance.signed_volume(surface) == pytest.approx(
    volume, rel=tolerance
  )
  assert not repair.sheets.any()


def test_surface_lies_on_the_source():
  source = _deforming(_CREATE.torus(0.6, 0.2))
  surface, _ = _close(source)
  off = mesh_distance.unsigned_distance(source.frame(0), surface.vertices)
  assert off.max() < 0.5 * _SETTINGS.cell
  assert off.mean() < 0.05 * _SETTINGS.cell


def test_signs_of_a_box_agree_with_its_formula():
  surface, _ = _close(_deforming(_CREATE.box([1.0, 0.8, 0.6])))
  points = np.random.default_rng(1).uniform(-1, 1, (4000, 3))
  gap = np.abs(points) - np.array([0.5, 0.4, 0.3])
  exact = -gap.max(1)  # Right in sign, and a bound in size.
  clear = np.abs(exact) > _SETTINGS.cell
  signed = mesh_distance.signed_distance(surface, points)
  assert ((signed > 0) == (exact > 0))[clear].all()
  assert np.array_equal(
    mesh_distance.pseudonormal_inside(surface, points[clear]),
    exact[clear] > 0,
  )


def test_thin_plate_keeps_its_thickness():
  # Thinner than a cell (0.042).
  surface, _ = _close(_deforming(_CREATE.box([1.6, 0.03, 1.2])))
  assert mesh_distance.is_closed(surface)
  assert mesh_distance.signed_volume(surface) == pytest.approx(
    1.6 * 0.03 * 1.2, rel=0.1
  )


def test_open_cloth_becomes_a_slab_of_two_cells():
  source = cloth()
  surface, repair = _close(source)
  assert repair.sheets.all() and not repair.body.any()
  assert mesh_distance.is_closed(surface)
  thickness = mesh_distance.signed_volume(surface) / mesh_distance.area(
    source.frame(0)
  )
  assert thickness == pytest.approx(2 * _SETTINGS.cell, rel=0.1)


def test_mesh_that_splits_in_two():
  box = _CREATE.box([0.4, 0.4, 0.4])
  count = len(box.vertices)
  joined = trimesh.util.concatenate([box, box])
  frames = np.stack([np.asarray(joined.vertices)] * 3)
  for frame, shift in enumerate((0.05, 0.2, 0.5)):
    frames[frame, :count, 0] -= shift
    frames[frame, count:, 0] += shift
  source = deforming_mesh.DeformingMesh(frames, joined.faces)
  repair, _ = watertight.plan_repair(
    source, _SETTINGS, np.random.default_rng(0)
  )
  volumes = [
    mesh_distance.signed_volume(watertight.close(m, repair, _SETTINGS))
    for m in source.frames()
  ]
  assert volumes[0] == pytest.approx(0.5 * 0.16, rel=0.05)
  assert volumes[2] == pytest.approx(2 * 0.064, rel=0.05)


def test_wall_of_a_cavity_is_not_turned():
  outer, inner = _CREATE.icosphere(2, 0.8), _CREATE.icosphere(2, 0.5)
  hollow = _deforming(outer, _inverted(inner)).frame(0)
  assert not watertight.find_flipped_faces(hollow).any()
  inside_out = _deforming(_inverted(outer)).frame(0)
  assert watertight.find_flipped_faces(inside_out).all()


def test_one_face_wound_wrong_is_turned():
  box = _CREATE.box([1, 1, 1])
  faces = np.array(box.faces)
  faces[5] = faces[5, ::-1]
  flipped = watertight.find_flipped_faces(
    mesh_lib.TriangleMesh(box.vertices, faces)
  )
  assert flipped.tolist() == [i == 5 for i in range(12)]


def test_capped_distance_is_exact_below_the_cap():
  mesh = _deforming(_CREATE.icosphere(2, 0.8)).frame(0)
  points = np.random.default_rng(0).uniform(-1, 1, (500, 3))
  exact = mesh_distance.unsigned_distance(mesh, points)
  capped = mesh_distance.unsigned_distance(mesh, points, cap=0.2)
  np.testing.assert_allclose(capped, np.minimum(exact, 0.2), atol=1e-12)


def test_a_fin_that_is_thin_between_the_frames_looked_at_is_kept():
  # A body with a fin that is thick in the first, middle and last of five
  # frames, and thinner than a cell in the others.
  body = _CREATE.box([0.8, 0.8, 0.8])
  fin = _CREATE.box([0.6, 0.6, 1.0])
  fin.vertices += [0.6, 0, 0]
  half = np.array([0.12, 0.005, 0.12, 0.005, 0.12])
  frames = []
  for scale in half:
    vertices = np.array(fin.vertices)
    vertices[:, 2] = np.sign(vertices[:, 2]) * scale + 0.013
    frames.append(np.concatenate([body.vertices, vertices]))
  faces = np.concatenate([body.faces, fin.faces + len(body.vertices)])
  mesh = deforming_mesh.DeformingMesh(np.stack(frames), faces)
  settings = watertight.WatertightSettings(resolution=32, test_points=2000)
  rng = np.random.default_rng(0)
  repair, _ = watertight.plan_repair(mesh, settings, rng)
  surfaces = [watertight.close(f, repair, settings) for f in mesh.frames()]
  assert surfaces[1].vertices[:, 0].max() < 0.6  # Lost.
  more = watertight.add_missing(mesh, repair, surfaces, settings, rng)
  assert more.sheets[len(body.faces) :].any()
  mended = [watertight.close(f, more, settings) for f in mesh.frames()]
  for surface in mended:
    assert surface.vertices[:, 0].max() > 0.85
  assert watertight.add_missing(mesh, more, mended, settings, rng) is None
