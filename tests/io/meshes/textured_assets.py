"""A small textured, rigged asset that the writers' tests share."""

import numpy as np
import trimesh

from sculpt4d_jax.geometry import bone_tree
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import skinning
from sculpt4d_jax.geometry import textured_mesh
from sculpt4d_jax.geometry import uv_atlas

FPS = 12.0


def bending_bar(num_frames: int = 5):
  """Frames [F, V, 3], faces and a rig of a bar that bends in its middle."""
  bar = trimesh.creation.box((2, 0.3, 0.3)).subdivide().subdivide()
  rest, faces = np.asarray(bar.vertices), np.asarray(bar.faces)
  share = np.clip(rest[:, 0] / 0.4 + 0.5, 0, 1)
  weights = np.stack([1 - share, share], 1)
  angles = np.linspace(0, 1.2, num_frames)
  turns = np.stack(
    [
      trimesh.transformations.rotation_matrix(a, [0, 0, 1])[:3, :3]
      for a in angles
    ]
  )
  rotations = np.stack([np.tile(np.eye(3), (num_frames, 1, 1)), turns], 1)
  skin = skinning.Skin(
    rest, weights, rotations, np.zeros((num_frames, 2, 3)), rms=0.0
  )
  return skin.posed(), faces, bone_tree.build(skin)


def square_charts(faces: np.ndarray) -> uv_atlas.UvAtlas:
  """Every triangle its own chart: all corners are split."""
  count = len(faces)
  side = int(np.ceil(np.sqrt(count)))
  cell = np.stack([np.arange(count) % side, np.arange(count) // side], 1)
  corners = np.array([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9]])
  uv = (cell[:, None] + corners) / side
  return uv_atlas.UvAtlas(
    faces.reshape(-1),
    np.arange(3 * count).reshape(-1, 3),
    uv.reshape(-1, 2),
    64,
    64,
  )


def asset(kind: str, num_frames: int = 5, first_frame: int = 0):
  """A mesh that is "textured", "coloured" or "plain"."""
  vertices, faces, _ = bending_bar(num_frames)
  colours = None
  if kind == "coloured":
    colours = (np.arange(vertices.shape[1] * 3) % 256).reshape(-1, 3)
  mesh = deforming_mesh.DeformingMesh(vertices, faces, colours=colours)
  if kind != "textured":
    return textured_mesh.TexturedMesh(mesh, first_frame=first_frame)
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  return textured_mesh.TexturedMesh(
    mesh, square_charts(faces), image, is_lit=False, first_frame=first_frame
  )
