"""Places an example's object as its camera asks for, and mirrors it.

An example is a mapping of arrays from `examples.ExampleReader.read`; everything
that has a position in space moves together.
"""

from collections.abc import Mapping
import math

import numpy as np

from sculpt4d_jax.geometry import placement as placement_lib

Placement = placement_lib.Placement

_MIRROR = np.array([-1.0, 1.0, 1.0])


def facing(eye: np.ndarray, points: np.ndarray) -> Placement:
  """Turns an eye to the front; points [P, 3] stay in their cube."""
  azimuth = math.atan2(eye[0], eye[2])
  sine, cosine = math.sin(azimuth), math.cos(azimuth)
  turn = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
  return placement_lib.within(Placement(turn, np.zeros(3)), points)


def in_picture(camera_to_world: np.ndarray, points: np.ndarray) -> Placement:
  """Places an object as a camera sees it that looks at the origin.

  Args:
    camera_to_world: Rigid transform [4, 4].
    points: Outmost points of the object in all frames [P, 3]. The middle of
      their picture is that of the cube.
  """
  axes, eye = camera_to_world[:3, :3].T, camera_to_world[:3, 3]
  seen = points @ axes.T
  distance = np.linalg.norm(eye)
  # Where their rays meet the plane through the origin that faces the camera.
  plane = seen[:, :2] * (distance / (distance - seen[:, 2:]))
  middle = (plane.min(0) + plane.max(0)) / 2
  placed = placement_lib.in_picture(axes, middle)
  return placement_lib.within(placed, points)


def place(
  example: Mapping[str, np.ndarray], placement: Placement
) -> dict[str, np.ndarray]:
  """The example with its object placed elsewhere."""
  result = dict(example)
  for name in ("surface", "queries"):
    if name in result:
      result[name] = placement.surface(result[name])
  if "samples" in result:
    result["samples"] = placement.samples(result["samples"])
  if "depth" in result:
    result["depth"] = result["depth"] * np.float32(placement.scale)
  if "normal" in result:
    result["normal"] = placement.directions(result["normal"])
  if "camera_to_world" in result:
    camera = result["camera_to_world"].copy()
    camera[:3, :3] = placement.rotation @ camera[:3, :3]
    camera[:3, 3] = placement.points(camera[:3, 3])
    result["camera_to_world"] = camera
  return result


def mirror(example: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The example mirrored across x = 0."""
  result = dict(example)
  for name in ("surface", "queries"):
    if name in result:
      signs = np.concatenate([_MIRROR, _MIRROR, [1.0]]).astype(np.float32)
      result[name] = result[name] * signs
  if "samples" in result:
    signs = np.concatenate([_MIRROR, [1.0]]).astype(np.float32)
    result["samples"] = result["samples"] * signs
  for name in ("images", "masks", "depth", "normal"):
    if name in result:
      result[name] = np.ascontiguousarray(result[name][:, :, ::-1])
  if "normal" in result:
    result["normal"] = result["normal"] * _MIRROR.astype(np.float32)
  if "camera_to_world" in result:
    flip = np.diag([-1.0, 1.0, 1.0, 1.0])
    result["camera_to_world"] = flip @ result["camera_to_world"] @ flip
  return result
