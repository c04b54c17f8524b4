"""Rotates an example's object to face the camera, and mirrors it.

An example is a mapping of arrays from `examples.ExampleReader.read`; everything
that has a position in space moves together.
"""

from collections.abc import Mapping
import math

import numpy as np

# Largest coordinate of a rotated object, as after preparation.
_EXTENT = 0.95
_MIRROR = np.array([-1.0, 1.0, 1.0])


def facing(eye: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Pose that turns an eye to the front; points [P, 3] stay in their cube."""
  azimuth = math.atan2(eye[0], eye[2])
  sine, cosine = math.sin(azimuth), math.cos(azimuth)
  turn = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
  reach = np.abs(points @ turn.T).max()
  return turn * min(1.0, _EXTENT / reach)


def turn(
  example: Mapping[str, np.ndarray], pose: np.ndarray
) -> dict[str, np.ndarray]:
  """The example with its object turned and scaled by a pose [3, 3]."""
  result = dict(example)
  scale = np.cbrt(np.linalg.det(pose))
  moved, turned = pose.T.astype(np.float32), (pose / scale).T.astype(np.float32)
  for name in ("surface", "queries"):
    if name in result:
      rows = result[name]
      result[name] = np.concatenate(
        [rows[..., :3] @ moved, rows[..., 3:6] @ turned, rows[..., 6:]], -1
      )
  if "samples" in result:
    rows = result["samples"]
    result["samples"] = np.concatenate(
      [rows[..., :3] @ moved, rows[..., 3:] * np.float32(scale)], -1
    )
  if "depth" in result:
    result["depth"] = result["depth"] * np.float32(scale)
  if "normal" in result:
    result["normal"] = result["normal"] @ turned
  if "camera_to_world" in result:
    camera = result["camera_to_world"].copy()
    camera[:3, :3] = (pose / scale) @ camera[:3, :3]
    camera[:3, 3] = pose @ camera[:3, 3]
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
