"""The effect of consistent sampling and shared noise on latents over time.

The paper's two ablations of the encoding. An autoencoder with fixed weights
encodes every frame of a clip. The measure is the mean change of a latent
between consecutive frames, divided by the standard deviation of the clip's
latents (for all variants, of their means under consistent sampling):

  consistent sampling  the same material points and queries in all frames;
                       independent: separate draws in every frame
  shared noise         one noise for all frames of a clip; independent: one per
  frame; mean: none

Variants are compared clip by clip under the same draws. The difference of two
variants is much more accurate than either value, because clips differ from each
other more than the variants do.
"""

from collections.abc import Sequence
import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import farthest_points
from sculpt4d_jax.models import shape_vae

Array = array_types.Array
Float = array_types.Float
Int = array_types.Int

SAMPLINGS = ("consistent", "independent")
NOISES = ("mean", "shared", "independent")


@dataclasses.dataclass(frozen=True)
class PairedDifference:
  """The difference of two variants over clips.

  Attributes:
    mean: Mean difference, first minus second.
    standard_error: Standard error of the mean, from the spread between clips.
    num_clips: Pairs.
    num_smaller: Clips where the first is smaller.
  """

  mean: float
  standard_error: float
  num_clips: int
  num_smaller: int

  @property
  def is_smaller(self) -> bool:
    """Whether the first is smaller by more than two standard errors."""
    return self.mean < -2 * self.standard_error


def paired_difference(
  first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]
) -> PairedDifference:
  """Compares two variants, [clips][draws] each, under the same draws.

  The draws of a clip are averaged first: only clips are independent.

  Raises:
    ValueError: Clips or draws differ, or there are fewer than two clips.
  """
  a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
  if a.shape != b.shape or a.ndim != 2 or len(a) < 2:
    raise UserError(
      "Pairs need the same clips and draws, two clips at least; got"
      f" {a.shape} and {b.shape}."
    )
  gaps = (a - b).mean(1)
  return PairedDifference(
    mean=float(gaps.mean()),
    standard_error=float(gaps.std(ddof=1) / len(gaps) ** 0.5),
    num_clips=len(gaps),
    num_smaller=int(np.count_nonzero(gaps < 0)),
  )


def latent_changes(
  vae: shape_vae.ShapeVAE,
  surface: Float[Array, "F P 7"],
  key: array_types.PRNGKey,
  *,
  num_uniform: int,
  num_draws: int = 1,
) -> dict[tuple[str, str], list[float]]:
  """Changes of a clip's latents from frame to frame, under all variants.

  Args:
    vae: The autoencoder.
    surface: Corresponding rows of all frames, the uniform ones first.
    key: Randomness of all draws.
    num_uniform: Uniform rows among the P.
    num_draws: Draws of rows and of noise.

  Returns:
    By sampling and noise, the change under each draw.

  Raises:
    ValueError: The clip has one frame, or too few rows for the autoencoder.
  """
  if surface.shape[0] < 2:
    raise UserError("A change needs two frames at least; the clip has one.")
  num_sharp = surface.shape[1] - num_uniform
  result = {(s, n): [] for s in SAMPLINGS for n in NOISES}
  for draw in jax.random.split(key, num_draws):
    changes = _changes(vae, surface, draw, num_uniform, num_sharp)
    for variant, change in changes.items():
      result[variant].append(float(change))
  return result


@functools.partial(nnx.jit, static_argnums=(3, 4))
def _changes(
  vae: shape_vae.ShapeVAE,
  surface: Float[Array, "F P 7"],
  key: array_types.PRNGKey,
  num_uniform: int,
  num_sharp: int,
) -> dict[tuple[str, str], jax.Array]:
  config = vae.config
  num_frames = surface.shape[0]
  select = functools.partial(
    farthest_points.select_rows,
    num_latents=config.num_latents,
    num_uniform=num_uniform,
    num_sharp=num_sharp,
    downsample_ratio=config.downsample_ratio,
  )
  rows_key, noise_key = jax.random.split(key)
  keys = jax.random.split(rows_key, num_frames)
  own = jax.random.normal(
    noise_key, (num_frames, config.num_latents, config.latent_channels)
  )
  noises = {
    "mean": jnp.zeros_like(own[:1]),
    "shared": own[:1],
    "independent": own,
  }
  posteriors = {
    "consistent": _encode(
      vae,
      surface,
      *(
        jnp.broadcast_to(rows, (num_frames, len(rows)))
        for rows in select(keys[0], surface[0])
      ),
    ),
    "independent": _encode(vae, surface, *jax.vmap(select)(keys, surface)),
  }
  scale = posteriors["consistent"].mean.std()
  return {
    (sampling, noise): jnp.abs(
      jnp.diff(posteriors[sampling].sample(noises[noise]), axis=0)
    ).mean()
    / scale
    for sampling in SAMPLINGS
    for noise in NOISES
  }


def _encode(
  vae: shape_vae.ShapeVAE,
  surface: Float[Array, "F P 7"],
  rows: Int[Array, "F R"],
  queries: Int[Array, "F N"],
) -> shape_vae.Posterior:
  take = jax.vmap(lambda frame, chosen: frame[chosen])
  return vae.encode(take(surface, rows), take(surface, queries))
