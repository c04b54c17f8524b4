"""Estimates the light of a clip, to remove shading from its texture.

A picture's colour is modelled as albedo times light, and light as a function of
the surface normal in the camera's frame, assuming that lamps and camera are
fixed while the object moves. The function has one grey channel and is a
spherical harmonic expansion of degree 2, which covers all but a few per cent of
the irradiance of distant lamps on a matte surface. Albedo and light are
ambiguous in one picture of one colour. Two facts separate them: light changes
intensity much more than chromaticity, so the fit assumes one albedo for points
of one chromaticity; and the object rotates, so one point has several normals.

Source: Ramamoorthi and Hanrahan, An Efficient Representation for Irradiance
Environment Maps, 2001.
"""

import dataclasses

import numpy as np
from scipy.cluster import vq

from sculpt4d_jax.geometry import uv_atlas
from sculpt4d_jax.rendering import cameras
from sculpt4d_jax.rendering import texture_baking

_CLUSTERS = 6
_ROUNDS = 15
_DARKEST = 0.15  # Light is clipped at this share of its maximum.
_SURE = 0.2  # Smallest weight of the views that are used.
_SPHERE = cameras.hammersley_angles(400)


@dataclasses.dataclass(frozen=True)
class Light:
  """Light as a function of the normal.

  Attributes:
    coefficients: Factors of nine harmonics in the camera's frame, [9]; scaled
      so that the largest light over all normals is 1.
    camera_to_world: Rotation, [3, 3].
  """

  coefficients: np.ndarray
  camera_to_world: np.ndarray

  def __call__(self, normals: np.ndarray) -> np.ndarray:
    """Light [P], about (0, 1], at unit normals in world space [P, 3]."""
    values = _harmonics(normals @ self.camera_to_world) @ self.coefficients
    return np.maximum(values, _DARKEST)


def estimate(
  clip: texture_baking.Footage, frames: texture_baking.Frames = "all"
) -> Light:
  """Estimates the light from the vertices' colours in the frames.

  Args:
    clip: The video on its surface, colours as filmed.
    frames: Indices of the frames to use.

  Returns:
    The light; constant if too little of the surface is visible.
  """
  rotation = clip.camera.camera_to_world[:3, :3]
  points = uv_atlas.vertex_points(clip.faces, clip.vertices.shape[1])
  colours, normals, weights = [], [], []
  chosen = range(1 if frames == "first" else clip.num_frames)
  for frame in chosen:
    seen = texture_baking.observe(clip, frame, points)
    sure = seen.weights > _SURE
    colours.append(seen.colours[sure])
    normals.append(clip.normals(frame)[sure] @ rotation)
    weights.append(seen.weights[sure])
  colours, normals = np.concatenate(colours), np.concatenate(normals)
  weights = np.concatenate(weights)
  flat = np.zeros(9)
  flat[0] = 1.0
  if len(colours) < 100:
    return Light(flat, rotation)
  return Light(_fit(colours, normals, weights), rotation)


def _fit(
  colours: np.ndarray, normals: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Coefficients [9] by alternating least squares over clusters of colour."""
  brightness = colours.sum(1)
  chromaticity = colours / np.maximum(brightness, 1e-6)[:, None]
  _, label = vq.kmeans2(
    chromaticity, _CLUSTERS, minit="++", seed=np.random.default_rng(0)
  )
  basis = _harmonics(normals)
  light = np.ones(len(colours))
  coefficients = np.zeros(9)
  # Regularised: unobserved normals stay near the mean light.
  damping = np.diag([0.0] + 8 * [1e-3 * weights.sum()])
  for _ in range(_ROUNDS):
    albedo = _cluster_sums(label, weights * brightness * light) / np.maximum(
      _cluster_sums(label, weights * light**2), 1e-9
    )
    scaled = basis * albedo[label, None]
    matrix = scaled.T @ (weights[:, None] * scaled)
    coefficients = np.linalg.solve(
      matrix + damping * albedo.mean() ** 2,
      scaled.T @ (weights * brightness),
    )
    light = np.maximum(basis @ coefficients, 1e-3)
  sphere = np.stack([cameras.orbit_eye(a, e, 1.0) for a, e in _SPHERE])
  # Only normals that face the camera are visible and count for the maximum.
  shown = _harmonics(sphere[sphere[:, 2] > 0.2]) @ coefficients
  return coefficients / max(shown.max(), 1e-6)


def _cluster_sums(label: np.ndarray, values: np.ndarray) -> np.ndarray:
  return np.bincount(label, values, _CLUSTERS)


def _harmonics(normals: np.ndarray) -> np.ndarray:
  """Real spherical harmonics up to degree 2 without their constants, [P, 9]."""
  x, y, z = normals.T
  return np.stack(
    [
      np.ones_like(x),
      x,
      y,
      z,
      x * y,
      y * z,
      x * z,
      x * x - y * y,
      3 * z * z - 1,
    ],
    axis=1,
  )
