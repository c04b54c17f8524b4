import dataclasses

import numpy as np

from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import merged_parts
from sculpt4d_jax.geometry import textured_mesh
from sculpt4d_jax.geometry import uv_atlas
from tests.io.meshes import textured_assets


def _other(first_frame):
  """One triangle, without a texture."""
  vertices = np.array([[[0, 0, 5], [1, 0, 5], [0, 1, 5]]], np.float32)
  mesh = deforming_mesh.DeformingMesh(vertices, np.array([[0, 1, 2]]))
  return textured_mesh.TexturedMesh(mesh, first_frame=first_frame)


def _textured(part, value):
  faces = part.mesh.faces
  image = np.full((64, 64, 3), value, np.uint8)
  atlas = textured_assets.square_charts(faces)
  return dataclasses.replace(part, atlas=atlas, image=image)


def test_each_frame_shows_its_own_run_and_hides_the_others():
  runs = [
    textured_assets.asset("plain", 2),
    _other(2),
    textured_assets.asset("plain", 3, first_frame=3),
  ]
  merged = merged_parts.merge(runs)
  bar = runs[0].mesh
  assert merged.mesh.num_frames == 6
  assert merged.mesh.num_vertices == bar.num_vertices + 3  # The bar's once.
  assert merged.mesh.num_faces == bar.num_faces + 1
  for run in runs:
    for index, own in enumerate(run.mesh.frames(), run.first_frame):
      corners = merged.mesh.vertices[index][merged.mesh.faces]
      sides = corners[:, 1:] - corners[:, :1]
      seen = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=1) > 1e-9
      np.testing.assert_allclose(
        corners[seen], own.vertices[own.faces], atol=1e-6
      )


def test_faces_keep_their_colours():
  runs = [
    _textured(textured_assets.asset("plain", 2), 40),
    _textured(_other(2), 200),
    _textured(textured_assets.asset("plain", 3, first_frame=3), 40),
  ]
  merged = merged_parts.merge(runs)
  count = merged.mesh.num_faces
  middles = uv_atlas.SurfacePoints(np.arange(count), np.full((count, 3), 1 / 3))
  shown = 255 * merged.colours_at(middles)
  np.testing.assert_allclose(shown[:-1], 40, atol=0.1)
  np.testing.assert_allclose(shown[-1], 200, atol=0.1)


def test_colours_of_vertices_are_joined():
  runs = [
    textured_assets.asset("coloured", 2),
    textured_assets.asset("coloured", 2, first_frame=2),
  ]
  merged = merged_parts.merge(runs)
  np.testing.assert_array_equal(merged.mesh.colours, runs[0].mesh.colours)
