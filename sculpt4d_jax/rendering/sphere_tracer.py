"""Pictures of a solid by sphere tracing its signed distance, in JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax.geometry import signed_distance

Array = array_types.Array

# At this distance and field of view, a camera sees the cube [-1, 1]^3.
CAMERA_DISTANCE = 4.0
_AMBIENT = 0.35


class View(NamedTuple):
  """The view and crop of a picture.

  Attributes:
    azimuth: Radians about +y; 0 looks from +z [...].
    elevation: Radians above the horizon [...].
    centre: Centre of the picture on the plane through the origin that faces
      the camera, (right, up), in world units [..., 2].
    extent: Half the picture's side on that plane [...].
    light: Direction to the light in the camera's frame [..., 3].
  """

  azimuth: Array
  elevation: Array
  centre: Array
  extent: Array
  light: Array


def camera_axes(view: View) -> tuple[Array, Array, Array]:
  """Right, up and backward unit vectors of the camera in the world."""
  ca, sa = jnp.cos(view.azimuth), jnp.sin(view.azimuth)
  ce, se = jnp.cos(view.elevation), jnp.sin(view.elevation)
  right = jnp.stack([ca, jnp.zeros_like(ca), -sa], -1)
  up = jnp.stack([-sa * se, ce, -ca * se], -1)
  backward = jnp.stack([sa * ce, se, ca * ce], -1)
  return right, up, backward


def render(
  solid: signed_distance.Solid,
  colours: Array,
  view: View,
  size: int,
  num_steps: int = 18,
) -> Array:
  """Renders one solid from one view.

  Args:
    solid: One solid, without leading axes.
    colours: RGB of every part [K + J, 3].
    view: One view, without leading axes.
    size: Pixels a side.
    num_steps: Steps of the tracer; thin silhouettes need the most.

  Returns:
    RGBA in [0, 1], [size, size, 4]; colour is 0 where alpha is 0.
  """
  right, up, backward = camera_axes(view)
  offset = (jnp.arange(size) + 0.5) / size * 2 - 1
  x = view.centre[0] + view.extent * offset
  y = view.centre[1] - view.extent * offset
  target = x[None, :, None] * right + y[:, None, None] * up
  eye = CAMERA_DISTANCE * backward
  ray = target - eye
  ray = ray / jnp.linalg.norm(ray, axis=-1, keepdims=True)
  nearest = jnp.full((size, size), CAMERA_DISTANCE - 1.75)

  def step(depth: Array, _: None) -> tuple[Array, None]:
    distance = -signed_distance.signed_distance(
      solid, eye + depth[..., None] * ray
    )
    # Rays that have passed the object are clamped to stay finite.
    return jnp.minimum(depth + distance, CAMERA_DISTANCE + 2.0), None

  depth, _ = jax.lax.scan(step, nearest, None, length=num_steps)
  points = eye + depth[..., None] * ray
  distance = -signed_distance.signed_distance(solid, points)
  pixel = view.extent / size
  alpha = jnp.clip(0.5 + 0.5 * (pixel - distance) / pixel, 0.0, 1.0)
  alpha = jnp.where(depth < CAMERA_DISTANCE + 1.75, alpha, 0.0)
  normal = -signed_distance.gradient(solid, points)
  normal = normal / (jnp.linalg.norm(normal, axis=-1, keepdims=True) + 1e-6)
  frame = jnp.stack([right, up, backward], -1)
  light = frame @ (view.light / jnp.linalg.norm(view.light))
  shade = _AMBIENT + (1 - _AMBIENT) * jnp.clip(normal @ light, 0.0, 1.0)
  colour = part_colours(solid, colours, points) * shade[..., None]
  rgba = jnp.concatenate([colour, alpha[..., None]], -1)
  return jnp.where(alpha[..., None] > 0, jnp.clip(rgba, 0.0, 1.0), 0.0)


def part_colours(
  solid: signed_distance.Solid, colours: Array, points: Array
) -> Array:
  """Colours of the nearest parts, blended as the surfaces are."""
  distances = signed_distance.part_distances(solid, points)
  return jax.nn.softmax(distances * 60.0, -1) @ colours
