"""Material points that are carried along and projected."""

import numpy as np
import trimesh

from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import guide_points
from sculpt4d_jax.geometry import mesh_distance
from sculpt4d_jax.geometry import watertight

_SETTINGS = watertight.WatertightSettings(resolution=48, test_points=4000)


def _prepared(source, num_sharp=300):
  rng = np.random.default_rng(0)
  repair, _ = watertight.plan_repair(source, _SETTINGS, rng)
  surfaces = [watertight.close(m, repair, _SETTINGS) for m in source.frames()]
  guide = guide_points.draw(
    source,
    repair,
    list(enumerate(surfaces)),
    num_uniform=400,
    num_sharp=num_sharp,
    hidden_depth=0.05,
    rng=rng,
  )
  projected = [
    guide_points.project(*guide.at(m, repair.flipped), s, _SETTINGS.cell)
    for m, s in zip(source.frames(), surfaces)
  ]
  return guide, projected


def test_points_of_a_moving_box_keep_their_place_on_it():
  box = trimesh.creation.box([1.0, 0.8, 0.6])
  shift = np.array([0.2, 0.1, 0.0])
  frames = np.stack([box.vertices - shift, box.vertices + shift])
  source = deforming_mesh.DeformingMesh(frames, box.faces)
  guide, projected = _prepared(source)
  moved = projected[1].positions - projected[0].positions
  # Marching cubes cuts edges by less than a cell, on both frames otherwise.
  assert np.abs(moved - 2 * shift).max() < _SETTINGS.cell
  flat = ~guide.is_sharp
  assert np.abs(moved - 2 * shift)[flat].mean() < 0.05 * _SETTINGS.cell
  # The field sees an edge from two cells away; beyond, normals are the box's.
  gap = np.array([0.5, 0.4, 0.3]) - np.abs(projected[0].positions + shift)
  clear = flat & (np.sort(gap, axis=1)[:, 1] > 2 * _SETTINGS.cell)
  assert clear.sum() > 150
  assert np.abs(projected[0].normals[clear]).max(1).min() > 0.999


def test_sharp_points_lie_on_edges_and_a_sphere_has_none():
  box = trimesh.creation.box([1.0, 1.0, 1.0])
  guide, projected = _prepared(
    deforming_mesh.DeformingMesh(np.asarray(box.vertices)[None], box.faces)
  )
  sharp = projected[0].positions[guide.is_sharp]
  assert len(sharp) == 300
  on_edge = np.sum(np.abs(np.abs(sharp) - 0.5) < _SETTINGS.cell, axis=1)
  assert (on_edge >= 2).all()
  ball = trimesh.creation.icosphere(3, 0.8)
  guide, _ = _prepared(
    deforming_mesh.DeformingMesh(np.asarray(ball.vertices)[None], ball.faces)
  )
  assert len(guide) == 700 and not guide.is_sharp.any()


def test_hidden_points_are_left_out():
  outer = trimesh.creation.box([1.0, 1.0, 1.0])
  inner = trimesh.creation.box([0.5, 0.5, 0.5])
  both = trimesh.util.concatenate([outer, inner])
  guide, _ = _prepared(
    deforming_mesh.DeformingMesh(np.asarray(both.vertices)[None], both.faces)
  )
  assert (guide.face_ids < len(outer.faces)).all()


def test_projection_prefers_the_side_that_is_meant():
  plate = deforming_mesh.DeformingMesh(
    np.asarray(trimesh.creation.box([1.6, 0.04, 1.6]).vertices)[None],
    trimesh.creation.box([1.6, 0.04, 1.6]).faces,
  ).frame(0)
  # Just below the middle, but meant for the upper side.
  found = guide_points.project(
    np.array([[0.1, -0.005, 0.2]]), np.array([[0.0, 1.0, 0.0]]), plate, 0.04
  )
  np.testing.assert_allclose(found.positions[0], [0.1, 0.02, 0.2], atol=1e-6)
  np.testing.assert_allclose(found.normals[0], [0, 1, 0], atol=1e-6)
  assert mesh_distance.is_closed(plate)
