"""Triangulates USD's parametric shapes: cubes, spheres, cones and others.

Source: UsdGeom's schemas Cube, Sphere, Cylinder, Cone, Capsule and Plane.
"""

import functools
from typing import Any

import numpy as np

KINDS = (
  "Cube",
  "Sphere",
  "Cylinder",
  "Cylinder_1",
  "Cone",
  "Capsule",
  "Capsule_1",
  "Plane",
)
_SUBDIVISIONS, _SECTIONS = 3, 32
# The axis of a shape is z here. For another axis the coordinates are permuted
# cyclically, which keeps the winding.
_TURNS = {"X": [2, 0, 1], "Y": [1, 2, 0], "Z": [0, 1, 2]}


def triangles(
  UsdGeom: Any, prim: Any, code: float
) -> tuple[np.ndarray, np.ndarray]:
  """The surface of a shape at a time code.

  Returns:
    Points, float64 [V, 3], in the prim's space; faces [T, 3], wound
    counter-clockwise seen from outside, the same at all times.
  """
  kind = prim.GetTypeName()
  shape = getattr(UsdGeom, kind)(prim)

  def value(name: str) -> float:
    return float(getattr(shape, f"Get{name}Attr")().Get(code))

  unit = _unit(kind.removesuffix("_1"))
  points = unit.vertices.copy()
  if kind == "Cube":
    return points * value("Size"), unit.faces
  if kind == "Sphere":
    return points * value("Radius"), unit.faces
  if kind == "Plane":
    points *= [value("Width"), value("Length"), 1]
  else:
    height = value("Height")
    top, bottom = (
      (value("RadiusTop"), value("RadiusBottom"))
      if kind.endswith("_1")
      else 2 * (value("Radius"),)
    )
    radius = np.where(points[:, 2] > 0, top, bottom)
    if kind.startswith("Capsule"):
      # Two hemispheres, each half the height from the middle.
      side = np.sign(points[:, 2])
      points[:, 2] -= side / 2
      points = points * radius[:, None]
      points[:, 2] += side * height / 2
    else:
      points[:, :2] *= radius[:, None]
      points[:, 2] *= height
  axis = str(shape.GetAxisAttr().Get())
  return points[:, _TURNS[axis]], unit.faces


@functools.cache
def _unit(kind: str) -> Any:
  """A shape of size, radius and height 1, around the origin along z."""
  import trimesh  # Half a second that files without such shapes do not need.

  creation = trimesh.creation
  if kind == "Cube":
    return creation.box()
  if kind == "Sphere":
    return creation.icosphere(_SUBDIVISIONS)
  if kind == "Cylinder":
    return creation.cylinder(radius=1, height=1, sections=_SECTIONS)
  if kind == "Cone":
    cone = creation.cone(radius=1, height=1, sections=_SECTIONS)
    return trimesh.Trimesh(
      cone.vertices - [0, 0, 0.5], cone.faces, process=False
    )
  if kind == "Capsule":
    capsule = creation.capsule(height=1, radius=1)
    middle = [0, 0, capsule.bounds.mean(0)[2]]
    return trimesh.Trimesh(
      capsule.vertices - middle, capsule.faces, process=False
    )
  corners = [[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0], [-0.5, 0.5, 0]]
  return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)
