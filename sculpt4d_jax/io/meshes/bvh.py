"""Writes a skeleton's motion as BVH, for retargeting in animation programs.

A BVH joint has a constant offset from its parent and three angles; the root has
a position too. Bones that separate at joints cannot be represented, so the rig
should be a result of `bone_tree.hold_together`. Angles are in degrees, in the
order z, x, y.

Source: the format's description by Biovision, as Blender and MotionBuilder read
it.
"""

import os
import pathlib

import numpy as np
from scipy.spatial import transform

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import bone_tree
from sculpt4d_jax.io import atomic

PathLike = str | os.PathLike

_ANGLES = "Zrotation Xrotation Yrotation"


def write_bvh(
  path: PathLike,
  rig: bone_tree.Rig,
  fps: float,
  *,
  trajectory: np.ndarray | None = None,
) -> None:
  """Writes the skeleton and its motion, without a mesh.

  Args:
    path: Output file (.bvh).
    rig: The bones; joints must hold together.
    fps: Frames a second.
    trajectory: Global motion on top, rigid [F, 4, 4].

  Raises:
    ValueError: The suffix is another, the rate is not positive, or joints come
      apart.
    OutputError: The file cannot be written.
  """
  suffix = pathlib.Path(path).suffix.lower()
  if suffix != ".bvh":
    raise UserError(
      f"{os.fspath(path)}: expected a file ending in .bvh, got"
      f" {suffix or 'no suffix'!r}."
    )
  if not (np.isfinite(fps) and fps > 0):
    raise UserError(f"fps must be a positive number, got {fps}.")
  rotations, places = rig.locals()
  offsets = rig.joints - np.where(
    rig.parents[:, None] >= 0, rig.joints[rig.parents], 0
  )
  apart = np.abs(places[:, 1:] - offsets[1:]).max(initial=0)
  if apart > 1e-4:
    raise UserError(
      f"joints come apart by up to {apart:.2g}, which BVH cannot hold; use"
      " bone_tree.hold_together first."
    )
  if trajectory is not None:
    turn = trajectory[:, :3, :3]
    places[:, 0] = np.einsum("fij,fj->fi", turn, places[:, 0])
    places[:, 0] += trajectory[:, :3, 3]
    rotations[:, 0] = turn @ rotations[:, 0]
  order = _depth_first(rig)
  lines = ["HIERARCHY", *_hierarchy(rig, offsets, 0, 0), "MOTION"]
  lines += [f"Frames: {len(places)}", f"Frame Time: {1 / fps:.8f}"]
  angles = [_continuous_angles(rotations[:, bone]) for bone in order]
  numbers = np.concatenate([places[:, 0], *angles], 1)
  lines += [" ".join(f"{value:.6f}" for value in row) for row in numbers]
  atomic.write_bytes(path, ("\n".join(lines) + "\n").encode("ascii"))


def _depth_first(rig: bone_tree.Rig, bone: int = 0) -> list[int]:
  """Bones in the order in which the file names them."""
  order = [bone]
  for child in np.flatnonzero(rig.parents == bone):
    order += _depth_first(rig, int(child))
  return order


def _hierarchy(
  rig: bone_tree.Rig, offsets: np.ndarray, bone: int, depth: int
) -> list[str]:
  indent, inner = "  " * depth, "  " * (depth + 1)
  kind, channels = "JOINT", f"CHANNELS 3 {_ANGLES}"
  if depth == 0:
    kind = "ROOT"
    channels = f"CHANNELS 6 Xposition Yposition Zposition {_ANGLES}"
  lines = [
    f"{indent}{kind} {rig.names[bone]}",
    f"{indent}{{",
    f"{inner}OFFSET {_numbers(offsets[bone])}",
    f"{inner}{channels}",
  ]
  children = np.flatnonzero(rig.parents == bone)
  for child in children:
    lines += _hierarchy(rig, offsets, int(child), depth + 1)
  if not len(children):
    tip = rig.tips[bone] - rig.joints[bone]
    lines += [
      f"{inner}End Site",
      f"{inner}{{",
      f"{inner}  OFFSET {_numbers(tip)}",
      f"{inner}}}",
    ]
  return [*lines, f"{indent}}}"]


def _numbers(values: np.ndarray) -> str:
  return " ".join(f"{value:.6f}" for value in values)


def _continuous_angles(rotations: np.ndarray) -> np.ndarray:
  """Angles [F, 3] in degrees without jumps by a whole turn."""
  angles = transform.Rotation.from_matrix(rotations).as_euler("ZXY")
  return np.degrees(np.unwrap(angles, axis=0))
