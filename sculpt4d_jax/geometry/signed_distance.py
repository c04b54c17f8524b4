"""Exact signed distances of simple solids and their smooth unions, in JAX.

A solid is a smooth union of round cones (two spheres of any radii and their
convex hull) and rounded boxes, each with a separate pose, so that one pose a
frame makes an animation. Distances are positive inside, like all fields
(`geometry/mesh.py`).

Source: the closed forms are derived in the plane through a round cone's axis,
and in the first octant of a box. The union is the smooth maximum log(sum(exp(b
d))) / b with b = 4 / smoothness: the error is exp(-4) times `smoothness` where
two parts differ by `smoothness`, and log(2) / 4 times `smoothness` where two
surfaces intersect.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sculpt4d_jax import array_types

Array = array_types.Array

# Added to squared lengths so that gradients exist on a cone's axis and at a
# box's centre planes.
_TINY = 1e-12
_SHARPNESS = 4.0


class Solid(NamedTuple):
  """Parts of one solid, or with leading axes of many (frames, clips).

  A round cone starts at `cone_origin` and points along its own y axis. Absent
  parts have a radius or a rounding of `ABSENT`.

  Attributes:
    cone_origin: Centre of the first sphere [..., K, 3].
    cone_rotation: Columns are the part's axes [..., K, 3, 3].
    cone_length: Distance of the two centres [..., K].
    cone_radii: Radii of the two spheres [..., K, 2]; they differ at most by the
      length.
    box_origin: Centres [..., J, 3].
    box_rotation: Columns are the part's axes [..., J, 3, 3].
    box_half_size: Half the sides, rounding included [..., J, 3].
    box_rounding: Radius of the edges [..., J].
    smoothness: Width of the blend between parts [...].
  """

  cone_origin: Array
  cone_rotation: Array
  cone_length: Array
  cone_radii: Array
  box_origin: Array
  box_rotation: Array
  box_half_size: Array
  box_rounding: Array
  smoothness: Array


ABSENT = -10.0


def round_cone(points: Array, length: Array, radii: Array) -> Array:
  """Signed distance of a round cone along +y from the origin.

  Args:
    points: [..., 3], in the cone's frame.
    length: Distance of the two centres [...].
    radii: [..., 2].

  Returns:
    Distances [...], positive inside.
  """
  across = jnp.sqrt(points[..., 0] ** 2 + points[..., 2] ** 2 + _TINY)
  along = points[..., 1]
  sine = (radii[..., 0] - radii[..., 1]) / length
  cosine = jnp.sqrt(jnp.maximum(1.0 - sine**2, _TINY))
  projection = cosine * along - sine * across
  start = jnp.sqrt(across**2 + along**2) - radii[..., 0]
  end = jnp.sqrt(across**2 + (along - length) ** 2) - radii[..., 1]
  side = cosine * across + sine * along - radii[..., 0]
  outside = jnp.where(
    projection < 0.0,
    start,
    jnp.where(projection > cosine * length, end, side),
  )
  return -outside


def rounded_box(points: Array, half_size: Array, rounding: Array) -> Array:
  """Signed distance of a box with rounded edges, centred at the origin.

  Args:
    points: [..., 3], in the box's frame.
    half_size: [..., 3], rounding included.
    rounding: [...].

  Returns:
    Distances [...], positive inside.
  """
  offset = jnp.abs(points) - (half_size - rounding[..., None])
  outer = jnp.sqrt(jnp.sum(jnp.maximum(offset, 0.0) ** 2, -1) + _TINY)
  return rounding - outer - jnp.minimum(_largest(offset), 0.0)


def _largest(x: Array) -> Array:
  """Largest of three numbers: [..., 3] -> [...].

  The gradient of `max` divides by the number of elements that equal it, which
  is 0 where a compiler computes them twice with different rounding.
  """
  x, y, z = (x[..., i] for i in range(3))
  larger = jnp.where(x > y, x, y)
  return jnp.where(larger > z, larger, z)


def to_part(points: Array, origin: Array, rotation: Array) -> Array:
  """Points [..., 3] of the world in a part's frame."""
  offset = points - origin
  # Written out, because XLA would not fuse a batched 3x3 matrix product.
  return sum(offset[..., i, None] * rotation[..., i, :] for i in range(3))


def part_distances(solid: Solid, points: Array) -> Array:
  """Signed distances of all parts at points [..., 3]: [..., K + J]."""
  points = points[..., None, :]
  local = to_part(points, solid.cone_origin, solid.cone_rotation)
  cones = round_cone(local, solid.cone_length, solid.cone_radii)
  local = to_part(points, solid.box_origin, solid.box_rotation)
  boxes = rounded_box(local, solid.box_half_size, solid.box_rounding)
  return jnp.concatenate([cones, boxes], -1)


def signed_distance(solid: Solid, points: Array) -> Array:
  """Signed distance of one solid (no leading axes) at points [..., 3].

  Returns:
    Distances [...], positive inside.
  """
  sharpness = _SHARPNESS / solid.smoothness
  scaled = part_distances(solid, points) * sharpness
  return jax.nn.logsumexp(scaled, -1) / sharpness


def gradient(solid: Solid, points: Array) -> Array:
  """Gradient of the signed distance at points [..., 3]: points inwards."""
  return jax.grad(lambda p: signed_distance(solid, p).sum())(points)


def project_to_surface(
  solid: Solid, points: Array, num_steps: int = 6
) -> tuple[Array, Array]:
  """Moves points to the surface along the gradient (Newton's method).

  Args:
    solid: One solid.
    points: [..., 3].
    num_steps: Newton steps; each squares the error near the surface.

  Returns:
    Positions and outward unit normals, each [..., 3].
  """

  def step(points: Array, _: None) -> tuple[Array, None]:
    distance = signed_distance(solid, points)[..., None]
    slope = gradient(solid, points)
    square = jnp.sum(slope**2, -1, keepdims=True)
    # The gradient almost vanishes where blends meet, so steps are bounded.
    move = distance * slope / jnp.maximum(square, 0.05)
    return points - move, None

  points, _ = jax.lax.scan(step, points, None, length=num_steps)
  slope = gradient(solid, points)
  length = jnp.sqrt(jnp.sum(slope**2, -1, keepdims=True) + _TINY)
  return points, -slope / length
