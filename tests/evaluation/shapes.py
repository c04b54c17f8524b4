"""Shapes for tests of evaluations."""

import numpy as np
import trimesh

from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.geometry import mesh as mesh_lib

TriangleMesh = mesh_lib.TriangleMesh
EMPTY = TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3)))


def sphere(radius=0.5, centre=(0.0, 0.0, 0.0), subdivisions=3):
  mesh = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
  return TriangleMesh(mesh.vertices + centre, mesh.faces)


def box(extents, centre=(0.0, 0.0, 0.0)):
  mesh = trimesh.creation.box(extents=extents)
  return TriangleMesh(mesh.vertices + centre, mesh.faces)


def body(seed):
  """A box with three limbs, no symmetry, in about [-0.7, 0.7]^3."""
  rng = np.random.default_rng(seed)
  parts = [trimesh.creation.box(extents=rng.uniform(0.2, 0.9, 3))]
  for _ in range(3):
    limb = trimesh.creation.capsule(
      height=rng.uniform(0.3, 0.7), radius=rng.uniform(0.06, 0.15)
    )
    limb.apply_transform(
      trimesh.transformations.random_rotation_matrix(rng.random(3))
    )
    limb.apply_translation(rng.uniform(-0.35, 0.35, 3))
    parts.append(limb)
  mesh = trimesh.util.concatenate(parts)
  return TriangleMesh(mesh.vertices, mesh.faces)


def moved(mesh, shift):
  return TriangleMesh(mesh.vertices + np.asarray(shift), mesh.faces)


def sequence(meshes):
  return sequences.ShapeSequence(tuple(meshes))


def as_trimesh(mesh):
  return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
