"""What a wrong camera costs: IoU of true shapes, placed by another camera.

A picture shows neither the camera's elevation nor the object's scale. Who takes
another camera for the true one and is right in everything else puts each point
of the object on the same pixel at the same depth, in units of the picture; the
IoU of that with the truth bounds what shapes can reach without a better guess.
"""

import numpy as np

from benchmarks.sampling import field_scores
from sculpt4d_jax import array_types
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.inference import outlines
from sculpt4d_jax.rendering import sphere_tracer

AnyArray = array_types.AnyArray
Float = array_types.Float


def iou(
  clip: solids.SyntheticClip,
  true: sphere_tracer.View,
  taken: Float[AnyArray, " 4"],
) -> float:
  """Mean over the frames of a clip.

  Args:
    clip: The object.
    true: The camera of its pictures.
    taken: The camera that is taken for it, numbers of a `ViewHead`.
  """
  at = moved(field_scores.points(), outlines.as_view(taken), true)
  placed = field_scores.true_fields(clip, at)
  return float(
    field_scores.by_frame(placed, field_scores.true_fields(clip))[0].mean()
  )


def moved(
  points: Float[np.ndarray, "Q 3"],
  seen: sphere_tracer.View,
  true: sphere_tracer.View,
) -> Float[np.ndarray, "Q 3"]:
  """Points that `true` shows where `seen` shows the given ones."""
  right, up, backward = map(np.asarray, sphere_tracer.camera_axes(seen))
  depths = points @ backward
  plane = np.stack([points @ right, points @ up], -1)
  plane /= (1 - depths / sphere_tracer.CAMERA_DISTANCE)[:, None]
  pixels = (plane - np.asarray(seen.centre)) / np.asarray(seen.extent)
  scale = np.asarray(true.extent) / np.asarray(seen.extent)
  return np.asarray(outlines.ray_points(true, pixels, depths * scale))
