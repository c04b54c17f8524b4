import dataclasses
import math

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.geometry import mesh as mesh_lib

TriangleMesh = mesh_lib.TriangleMesh
EMPTY = TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3)))


def box(low, high):
  mesh = trimesh.creation.box(bounds=[low, high])
  return TriangleMesh(mesh.vertices, mesh.faces)


def sphere(radius, centre=(0.0, 0.0, 0.0), subdivisions=4):
  mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
  return TriangleMesh(mesh.vertices + centre, mesh.faces)


def join(*meshes):
  offsets = np.cumsum([0] + [mesh.num_vertices for mesh in meshes])
  return TriangleMesh(
    np.concatenate([mesh.vertices for mesh in meshes]),
    np.concatenate([m.faces + o for m, o in zip(meshes, offsets)]),
  )


def inside_out(mesh):
  return TriangleMesh(mesh.vertices, mesh.faces[:, ::-1])


def iou(a, b, resolution=32):
  cells = geometry_metrics.grid_points(resolution)
  return geometry_metrics.intersection_over_union(
    geometry_metrics.occupancy(a, cells), geometry_metrics.occupancy(b, cells)
  )


def scores(prediction, truth, threshold=0.05, num_points=20_000):
  return geometry_metrics.surface_scores(
    geometry_metrics.surface_points(prediction, num_points, 0),
    geometry_metrics.surface_points(truth, num_points, 0),
    threshold,
  )


def test_chamfer_and_f_score_of_four_points_worked_by_hand():
  prediction = np.array([[0.0, 0, 0], [1.0, 0, 0]])
  truth = np.array([[0.0, 0.3, 0], [0.0, -0.1, 0]])
  result = geometry_metrics.surface_scores(prediction, truth, 0.2)
  # To the truth: 0.1 and sqrt(1.01). To the prediction: 0.3 and 0.1.
  expected = ((0.1 + math.sqrt(1.01)) / 2 + (0.3 + 0.1) / 2) / 2
  assert result.chamfer == pytest.approx(expected)
  assert result.f_score == pytest.approx(0.5)  # Precision and recall are 1/2.


def test_f_score_is_harmonic_mean():
  prediction = np.array([[0.0, 0, 0]])
  truth = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
  result = geometry_metrics.surface_scores(prediction, truth, 0.5)
  assert result.f_score == pytest.approx(2 * 1 * (1 / 3) / (1 + 1 / 3))


def test_equal_meshes_score_perfectly():
  mesh = sphere(0.6, (0.1, 0.0, -0.2))
  result = scores(mesh, mesh)
  assert (result.chamfer, result.f_score) == (0.0, 1.0)
  assert iou(mesh, mesh) == 1.0


def test_chamfer_of_concentric_spheres_is_difference_of_radii():
  result = scores(sphere(0.5), sphere(0.7), num_points=20_000)
  assert result.chamfer == pytest.approx(0.2, rel=0.01)
  assert result.f_score == 0.0
  assert scores(sphere(0.5), sphere(0.7), 0.22).f_score == 1.0


def test_chamfer_of_slightly_shifted_sphere_is_half_the_shift():
  # The mean of |cos| over directions is 1/2: distances are about d |cos|.
  shift = 0.1
  result = scores(sphere(0.7), sphere(0.7, (shift, 0, 0)), num_points=50_000)
  assert result.chamfer == pytest.approx(shift / 2, rel=0.05)


def test_tessellation_floor_is_as_documented():
  a, b = sphere(0.7, subdivisions=5), sphere(0.7, subdivisions=4)
  num_points = 20_000
  floor = 0.5 * math.sqrt(4 * math.pi * 0.49 / num_points)
  result = scores(a, b, num_points=num_points)
  assert result.chamfer == pytest.approx(floor, rel=0.15)


def test_iou_of_half_overlapping_boxes_is_exact():
  # Faces on cell borders: 16 of 32 cells, of which 8 are shared.
  a = box([-0.5, -0.5, -0.5], [0.5, 0.5, 0.5])
  b = box([0.0, -0.5, -0.5], [1.0, 0.5, 0.5])
  assert iou(a, b) == pytest.approx(1 / 3)
  c = box([0.0, -0.5, -0.5], [0.5, 0.5, 0.5])
  assert iou(a, c) == pytest.approx(1 / 2)
  assert iou(c, box([-1, -1, -1], [0, 1, 1])) == 0.0


def test_iou_of_concentric_spheres_is_ratio_of_volumes():
  assert iou(sphere(0.4), sphere(0.8), 64) == pytest.approx(1 / 8, rel=0.02)


def test_occupancy_counts_cells_of_a_box():
  cells = geometry_metrics.grid_points(8)
  inside = geometry_metrics.occupancy(box([-0.5] * 3, [0.5] * 3), cells)
  assert inside.sum() == 4**3
  assert np.all(np.abs(cells[inside]) < 0.5)


def test_overlapping_parts_are_their_union():
  a, b = box([-0.75] * 3, [0.25] * 3), box([-0.25] * 3, [0.75] * 3)
  cells = geometry_metrics.grid_points(16)
  union = geometry_metrics.occupancy(a, cells) | geometry_metrics.occupancy(
    b, cells
  )
  np.testing.assert_array_equal(
    geometry_metrics.occupancy(join(a, b), cells), union
  )


def test_cavity_is_outside():
  cavity = inside_out(box([-0.5] * 3, [0.5] * 3))
  shell = join(box([-0.75] * 3, [0.75] * 3), cavity)
  inside = geometry_metrics.occupancy(shell, geometry_metrics.grid_points(16))
  assert inside.sum() == 12**3 - 8**3


def test_mesh_wound_inside_out_is_turned_around():
  mesh = sphere(0.5)
  assert iou(mesh, inside_out(mesh)) == 1.0


def test_holes_change_occupancy_little():
  mesh = sphere(0.7)
  keep = np.random.default_rng(0).random(mesh.num_faces) > 0.05
  holed = TriangleMesh(mesh.vertices, mesh.faces[keep])
  assert iou(mesh, holed) > 0.97


def test_flat_sheet_has_no_inside():
  sheet = TriangleMesh([[-1, -1, 0], [1, -1, 0], [0, 1, 0]], [[0, 1, 2]])
  cells = geometry_metrics.grid_points(16)
  assert not geometry_metrics.occupancy(sheet, cells).any()


def test_empty_prediction_scores_the_worst():
  result = scores(EMPTY, sphere(0.5))
  assert result.chamfer == pytest.approx(math.sqrt(12))
  assert result.f_score == 0.0
  assert iou(EMPTY, sphere(0.5)) == 0.0


def test_faces_without_area_are_no_surface():
  line = TriangleMesh([[0, 0, 0], [0.5, 0, 0], [1, 0, 0]], [[0, 1, 2]])
  assert not geometry_metrics.has_surface(line)
  assert scores(line, sphere(0.5)).f_score == 0.0


def test_empty_truth_and_infinite_vertices_are_refused():
  with pytest.raises(ValueError, match="truth has no points"):
    geometry_metrics.surface_scores(np.zeros((3, 3)), np.zeros((0, 3)), 0.1)
  bad = TriangleMesh([[np.nan, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
  with pytest.raises(ValueError, match="not finite"):
    geometry_metrics.has_surface(bad)


def test_truncated_distance_equals_that_of_a_sphere():
  points = geometry_metrics.grid_points(12)
  field = geometry_metrics.truncated_distance(sphere(0.6), points, 0.2)
  exact = np.clip(0.6 - np.linalg.norm(points, axis=1), -0.2, 0.2)
  np.testing.assert_allclose(field, exact, atol=2e-3)


def test_distances_to_faces_without_near_corners_are_exact():
  bar = trimesh.creation.box((1.8, 0.2, 0.2))  # Twelve faces.
  mesh = TriangleMesh(bar.vertices, bar.faces)
  points = np.array([[0, 0.15, 0], [0, 0.05, 0], [0.3, 0, 0.35], [0, 0.9, 0]])
  field = geometry_metrics.truncated_distance(mesh, points, 0.2)
  np.testing.assert_allclose(field, [-0.05, 0.05, -0.2, -0.2], atol=1e-7)


def fields(meshes, truncation=0.2, resolution=24):
  points = geometry_metrics.grid_points(resolution)
  return np.array(
    [
      geometry_metrics.truncated_distance(mesh, points, truncation)
      for mesh in meshes
    ]
  )


def test_perfect_motion_has_no_jitter_but_accelerates():
  motion = fields([sphere(0.4, (x, 0, 0)) for x in (-0.3, 0.0, 0.3, -0.1)])
  result = geometry_metrics.motion(motion, motion, 0.2)
  assert result.jitter == 0.0
  assert result.acceleration == result.truth_acceleration > 0.0


def test_constant_offset_has_no_jitter():
  still = fields([sphere(0.5)] * 4)
  off = fields([sphere(0.5, (0.1, 0.0, 0.0))] * 4)
  assert geometry_metrics.motion(off, still, 0.2).jitter == pytest.approx(0)


def test_alternating_radius_jitters_by_four_amplitudes():
  amplitude = 0.01
  still = fields([sphere(0.5)] * 5)
  noisy = fields([sphere(0.5 + amplitude * (-1) ** t) for t in range(5)])
  result = geometry_metrics.motion(noisy, still, 0.2)
  # Just below: the truncation cuts the change short at the band's borders.
  assert 3.6 * amplitude < result.jitter <= 4.0 * amplitude
  assert result.truth_acceleration == 0.0
  louder = fields([sphere(0.5 + 0.03 * (-1) ** t) for t in range(5)])
  assert geometry_metrics.motion(louder, still, 0.2).jitter > result.jitter


def test_motion_of_two_frames_is_undefined():
  two = fields([sphere(0.5)] * 2)
  assert math.isnan(geometry_metrics.motion(two, two, 0.2).jitter)


def test_flicker_of_an_empty_frame_jitters():
  truth = fields([sphere(0.5)] * 3)
  blinking = fields([sphere(0.5), EMPTY, sphere(0.5)])
  assert geometry_metrics.motion(blinking, truth, 0.2).jitter > 0.1


def moving_boxes(transform=lambda vertices: vertices):
  # Boxes with three different sides have no symmetry but half turns.
  frames = [
    box([-0.5, -0.3, -0.15], [0.4 + 0.05 * t, 0.2, 0.15]) for t in range(3)
  ]
  return [TriangleMesh(transform(m.vertices), m.faces) for m in frames]


def test_scale_translation_alignment_undoes_both():
  truth = moving_boxes()
  moved = moving_boxes(lambda v: v * 0.7 + [0.1, -0.2, 0.05])
  conventions = geometry_metrics.Conventions(alignment="scale_translation")
  aligned = geometry_metrics.align(moved, truth, conventions)
  for mesh, expected in zip(aligned, truth):
    np.testing.assert_allclose(mesh.vertices, expected.vertices, atol=1e-5)


def test_icp_alignment_undoes_a_small_rotation():
  truth = moving_boxes()
  angle = np.radians(10.0)
  c, s = np.cos(angle), np.sin(angle)
  rotation = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
  moved = moving_boxes(lambda v: v @ rotation.T * 0.8 + [0.1, 0.0, 0.2])
  conventions = geometry_metrics.Conventions(alignment="icp")
  aligned = geometry_metrics.align(moved, truth, conventions)
  for mesh, expected in zip(aligned, truth):
    np.testing.assert_allclose(mesh.vertices, expected.vertices, atol=2e-2)


def test_alignment_keeps_one_pose_for_the_sequence():
  truth = [sphere(0.4)] * 3
  shaking = [sphere(0.4, (0.1 * (-1) ** t, 0, 0)) for t in range(3)]
  conventions = geometry_metrics.Conventions(alignment="icp")
  aligned = geometry_metrics.align(shaking, truth, conventions)
  first, second = (mesh.vertices.mean(0) for mesh in aligned[:2])
  assert np.linalg.norm(first - second) > 0.15


def test_alignment_survives_empty_frames():
  truth = [sphere(0.4)] * 2
  for alignment in ("scale_translation", "icp"):
    conventions = geometry_metrics.Conventions(alignment=alignment)
    aligned = geometry_metrics.align([EMPTY, EMPTY], truth, conventions)
    assert all(mesh.is_empty for mesh in aligned)
    aligned = geometry_metrics.align([EMPTY, sphere(0.2)], truth, conventions)
    radius = np.linalg.norm(aligned[1].vertices, axis=1)
    np.testing.assert_allclose(radius, 0.4, atol=1e-3)


@pytest.mark.parametrize(
  "change",
  [
    {"num_points": 0},
    {"f_score_threshold": 0.0},
    {"alignment": "magic"},
    {"iou_resolution": -1},
    {"truncation": math.nan},
  ],
)
def test_impossible_conventions_are_refused(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    geometry_metrics.Conventions(**change)


def test_description_names_every_convention():
  conventions = geometry_metrics.Conventions(
    num_points=123,
    f_score_threshold=0.045,
    iou_resolution=67,
    jitter_resolution=89,
    truncation=0.111,
    alignment="icp",
    seed=13,
  )
  text = conventions.describe()
  for value in dataclasses.asdict(conventions).values():
    assert str(value) in text
