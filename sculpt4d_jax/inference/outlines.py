r"""Fits shapes to the outlines of the object while a clip is sampled.

After a call of the velocity, x + (1 - t) v is the network's estimate of the
clean latents. A few gradient steps move it such that its shapes cover the
object's outline in every frame, and nothing else; the velocity is changed to
point there, and the next call of the network makes a plausible shape of it.

A ray through a pixel hits the shape if the field is positive somewhere on it:

     eye --------o----o----O----o----o----->     O: largest value; compared with
                          field                     the mask, moved by gradient

The field is evaluated on all points of some random rays without gradients, and
once more at the largest one of each with gradients. The camera is predicted by
a `ViewHead`: fitting it as well would move it towards the wrong shape.

Sources: Chung et al., Diffusion posterior sampling, 2023, and He et al.,
Manifold preserving guided diffusion, 2024 (gradients on the clean estimate
instead of through the network).
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import ndimage

from sculpt4d_jax import array_types
from sculpt4d_jax.diffusion import guidance
from sculpt4d_jax.diffusion import known_frames
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import placement as placement_lib
from sculpt4d_jax.inference import sampling
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.rendering import sphere_tracer

AnyArray = array_types.AnyArray
Array = array_types.Array
Float = array_types.Float
UInt8 = array_types.UInt8

_NUM_PIXELS = 2048  # Candidates of a frame, from which each step draws.
_NUM_RAYS = 128  # Rays of a frame in a step.
_NUM_DEPTHS = 24  # Points of a ray.
_DEPTH = 0.95  # Points lie between -_DEPTH and _DEPTH along the view.
# Share of the picture's side around the object in which pixels are compared.
_MARGIN = 0.1
# Field value at which a ray is considered to hit with a probability of 0.73.
_SOFTNESS = 0.1
_OBJECT = 127


class Outlines(NamedTuple):
  """What the shapes of one clip are compared with.

  Attributes:
    view: The camera, numbers of a `ViewHead` [4].
    pixels: Places in the picture, from -1 to 1, y up [F, P, 2].
    covered: The object's coverage there, from 0 to 1 [F, P].
  """

  view: Array
  pixels: Array
  covered: Array


def as_view(numbers: Float[AnyArray, " 4"]) -> sphere_tracer.View:
  """The camera in front of the object that the head's numbers describe."""
  return sphere_tracer.View(
    azimuth=jnp.zeros_like(numbers[0]),
    elevation=numbers[0],
    centre=numbers[1:3],
    extent=jnp.exp(numbers[3]),
    light=jnp.array([0.0, 1.0, 0.0]),
  )


def as_numbers(view: sphere_tracer.View) -> np.ndarray:
  """What the head should answer for a camera in front of the object [4]."""
  numbers = [view.elevation, *view.centre, np.log(view.extent)]
  return np.array(numbers, np.float32)


def level(numbers: Float[AnyArray, " 4"]) -> Array:
  """The same camera, seen from an object in the picture's frame [4]."""
  return jnp.asarray(numbers).at[:3].set(0.0)


def placement(numbers: Float[AnyArray, " 4"]) -> placement_lib.Placement:
  """How an upright object stands in the picture's frame of a camera."""
  view = as_view(np.asarray(numbers))
  axes = np.stack([np.asarray(x) for x in sphere_tracer.camera_axes(view)])
  return placement_lib.in_picture(axes, view.centre)


def gather(
  view: Float[AnyArray, " 4"], masks: UInt8[np.ndarray, "F S S"]
) -> Outlines:
  """Chooses pixels in and around the object.

  Args:
    view: The camera, from a `ViewHead`.
    masks: Coverage of the pictures that the model sees, 255 on the object.

  Raises:
    ValueError: Masks have another shape.
  """
  masks = np.asarray(masks)
  if masks.ndim != 3 or masks.shape[1] != masks.shape[2]:
    raise UserError(f"masks must be [F, S, S], got {list(masks.shape)}.")
  side = masks.shape[1]
  at = (np.arange(side) + 0.5) / side * 2 - 1
  places = np.stack(np.meshgrid(at, -at), -1).reshape(-1, 2)
  # The same pixels in every run: the sampler's seed alone makes a difference.
  rng = np.random.default_rng(0)
  pixels, covered = [], []
  for mask in masks:
    near = ndimage.binary_dilation(
      mask > _OBJECT, iterations=max(1, round(_MARGIN * side))
    )
    # A frame without an object is empty everywhere.
    rows = np.flatnonzero(near) if near.any() else np.arange(near.size)
    rows = rng.choice(rows, _NUM_PIXELS)
    pixels.append(places[rows])
    covered.append(mask.ravel()[rows] / 255)
  return Outlines(
    jnp.asarray(view),
    jnp.asarray(np.stack(pixels), jnp.float32),
    jnp.asarray(np.stack(covered), jnp.float32),
  )


def fitting(
  vae: shape_vae.ShapeVAE,
  outlines: Outlines,
  config: sampling.SamplingConfig,
) -> known_frames.Wrapper:
  """Wraps velocity functions; to be traced.

  Args:
    vae: The autoencoder, whose decoder gives the field.
    outlines: Those of one clip; a batch must hold this clip alone.
    config: Number and size of steps, and the first time.
  """

  def wrapper(velocity: guidance.VelocityFunction) -> guidance.VelocityFunction:
    def run(x: Array, time: Array) -> Array:
      answer = velocity(x, time).astype(jnp.float32)
      left = 1 - time[0]

      def fitted() -> Array:
        clean = x[0] + left * answer[0]
        # Other rays at every call, which is known by its time.
        key = jax.random.fold_in(
          jax.random.key(0), (time[0] * 1e6).astype(jnp.uint32)
        )
        moved = _fit(vae, clean, outlines, config, key)
        # x + left * velocity is then the moved estimate.
        return answer + ((moved - clean) / jnp.maximum(left, 1e-3))[None]

      return lax.cond(
        (time[0] >= config.outline_from) & (left > 0), fitted, lambda: answer
      )

    return run

  return wrapper


def _fit(
  vae: shape_vae.ShapeVAE,
  latents: Float[Array, "F N C"],
  outlines: Outlines,
  config: sampling.SamplingConfig,
  key: Array,
) -> Float[Array, "F N C"]:
  """Latents after some steps of Adam."""
  optimizer = optax.adam(config.outline_rate)
  num_frames, num_pixels = outlines.covered.shape

  def step(
    carry: tuple[Array, optax.OptState], key: Array
  ) -> tuple[tuple[Array, optax.OptState], None]:
    latents, state = carry
    rows = jax.random.randint(key, (num_frames, _NUM_RAYS), 0, num_pixels)
    pixels = jnp.take_along_axis(outlines.pixels, rows[..., None], 1)
    covered = jnp.take_along_axis(outlines.covered, rows, 1)
    # Frame by frame: the decoder's activations of a clip would need as many
    # times the memory as it has frames.
    gradient = lax.map(
      lambda frame: jax.grad(_frame_loss, 1)(vae, *frame, outlines.view),
      (latents, pixels, covered),
    )
    change, state = optimizer.update(gradient, state)
    return (latents + change, state), None

  carry = latents, optimizer.init(latents)
  (latents, _), _ = lax.scan(
    step, carry, jax.random.split(key, config.outline_steps)
  )
  return latents


def _frame_loss(
  vae: shape_vae.ShapeVAE,
  latents: Float[Array, "N C"],
  pixels: Float[AnyArray, "R 2"],
  covered: Float[Array, " R"],
  numbers: Float[Array, " 4"],
) -> Array:
  """Cross entropy between rays that hit the shape and the mask."""
  view = as_view(numbers)
  key_values = vae.field_keys_values(vae.decode_from_diffusion(latents[None]))

  def field(points: Array) -> Array:
    flat = points.reshape(1, -1, 3)
    values = vae.query_field(key_values, flat)[0].astype(jnp.float32)
    return values.reshape(points.shape[:-1])

  depths = jnp.linspace(-_DEPTH, _DEPTH, _NUM_DEPTHS)
  along = ray_points(view, pixels[:, None], depths)
  largest = jnp.argmax(lax.stop_gradient(field(lax.stop_gradient(along))), -1)
  values = field(ray_points(view, pixels, depths[largest]))
  losses = optax.sigmoid_binary_cross_entropy(values / _SOFTNESS, covered)
  return losses.mean()


def ray_points(
  view: sphere_tracer.View,
  pixels: Float[AnyArray, "*B 2"],
  depths: Float[AnyArray, "*B"],
) -> Float[Array, "*B 3"]:
  """Points on the rays of pixels.

  Args:
    view: The camera.
    pixels: Places in the picture, from -1 to 1, y up.
    depths: Distance from the plane through the origin, towards the camera.
  """
  right, up, backward = sphere_tracer.camera_axes(view)
  plane = view.centre + view.extent * pixels
  nearer = (1 - depths / sphere_tracer.CAMERA_DISTANCE)[..., None]
  plane = plane * nearer
  return (
    plane[..., :1] * right + plane[..., 1:] * up + depths[..., None] * backward
  )
