"""Farthest-point sampling, and selection of the encoder's surface rows.

The shape encoder sees a surface as rows (position, normal, label), uniform
samples first, then samples on sharp edges. It keeps `downsample_ratio` rows per
query, drawn from each group without replacement. Queries, one per latent token,
are the rows that farthest-point sampling picks in each group.

Functions return ROW INDICES, never points: rows correspond between the frames
of an object, so the rows picked in frame 0 are used in every frame.

Source: Hunyuan3D 2.1, shape autoencoder (sampling of the encoder's queries);
Eldar et al., The Farthest Point Strategy for Progressive Image Sampling, 1997.
"""

import dataclasses
import fractions

import jax
from jax import lax
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError

Array = array_types.Array
AnyArray = array_types.AnyArray
Float = array_types.Float
Int = array_types.Int
PRNGKey = array_types.PRNGKey


def farthest_points(
  points: Float[AnyArray, "P 3"],
  num_samples: int,
  start: Int[Array, ""] | int = 0,
) -> Int[Array, " num_samples"]:
  """Picks points one by one, each the farthest from all picked before.

  May be traced, and mapped over several clouds with `jax.vmap`.

  Args:
    points: Positions; compared in float32 for any dtype.
    num_samples: Number of picks, at most P.
    start: Row of the first pick.

  Returns:
    Rows in the order of picking, int32. Of equally far rows the first is
    taken.

  Raises:
    ValueError: The shape or the number of samples does not fit.
  """
  if points.ndim != 2 or points.shape[1] != 3:
    raise UserError(
      f"points must be [P, 3], got {points.shape}; use jax.vmap for batches."
    )
  if not 1 <= num_samples <= points.shape[0]:
    raise UserError(
      f"num_samples={num_samples} must lie in 1..{points.shape[0]}, the"
      " number of points."
    )
  # Half precision would merge neighbouring points.
  x, y, z = jnp.asarray(points, jnp.float32).T

  def pick(
    carry: tuple[Array, Array], _: None
  ) -> tuple[tuple[Array, Array], Array]:
    row, distance = carry
    to_row = (x - x[row]) ** 2 + (y - y[row]) ** 2 + (z - z[row]) ** 2
    distance = jnp.minimum(distance, to_row)
    return (jnp.argmax(distance).astype(jnp.int32), distance), row

  nothing_picked = jnp.full_like(x, jnp.inf)
  first = jnp.asarray(start, jnp.int32)
  _, rows = lax.scan(pick, (first, nothing_picked), length=num_samples)
  return rows


def spatial_order(points: Float[Array, "P 3"]) -> Int[Array, " P"]:
  """Rows of points in the order of a balanced k-d tree's leaves.

  Points are split at the median along y, each half along x, each quarter along
  z, and so on. y is up and x is horizontal in front views, so a row index is
  about the same region in all clouds of one size. A part with an odd number of
  points is sorted along its axis and not split.
  """
  rows = jnp.arange(points.shape[0])[None]  # [parts, points of a part]
  axis = 0
  while rows.shape[1] > 1:
    along = points[rows, (1, 0, 2)[axis % 3]]
    rows = jnp.take_along_axis(rows, jnp.argsort(along, axis=1), axis=1)
    axis += 1
    if rows.shape[1] % 2:
      break
    rows = rows.reshape(2 * rows.shape[0], -1)
  return rows.reshape(-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class GroupSizes:
  """Numbers of rows read from each group, and numbers of queries among them."""

  uniform_inputs: int
  sharp_inputs: int
  uniform_queries: int
  sharp_queries: int

  @property
  def num_queries(self) -> int:
    """Number of queries from both groups together."""
    return self.uniform_queries + self.sharp_queries


def group_sizes(
  num_latents: int,
  num_uniform: int,
  num_sharp: int,
  downsample_ratio: int = 20,
) -> GroupSizes:
  """Divides the queries between uniform and sharp rows in proportion.

  Args:
    num_latents: Number of queries N.
    num_uniform: Rows of uniform samples on a surface.
    num_sharp: Rows of sharp-edge samples that follow them; may be 0.
    downsample_ratio: Rows read for each query.

  Raises:
    ValueError: The queries do not divide evenly, or there are too few rows.
  """
  if min(num_latents, num_uniform, downsample_ratio) < 1 or num_sharp < 0:
    raise UserError(
      "num_latents, num_uniform and downsample_ratio must be positive and"
      f" num_sharp not negative; got {num_latents}, {num_uniform},"
      f" {downsample_ratio} and {num_sharp}."
    )
  share = fractions.Fraction(num_uniform, num_uniform + num_sharp)
  uniform_queries = num_latents * share
  if uniform_queries.denominator != 1:
    raise UserError(
      f"num_latents={num_latents} queries cannot be shared out as"
      f" {num_uniform} to {num_sharp}; choose numbers of points that give"
      " each group a whole number of queries."
    )
  queries = (int(uniform_queries), num_latents - int(uniform_queries))
  inputs = tuple(downsample_ratio * n for n in queries)
  if inputs[0] > num_uniform or inputs[1] > num_sharp:
    raise UserError(
      f"{num_latents} latents read {inputs[0]} uniform and {inputs[1]} sharp"
      f" rows, but a surface has {num_uniform} and {num_sharp}; sample more"
      " points or lower downsample_ratio."
    )
  return GroupSizes(*inputs, *queries)


def select_inputs(
  key: PRNGKey, num_uniform: int, num_sharp: int, sizes: GroupSizes
) -> Int[Array, " P"]:
  """Draws the rows that are read: uniform rows, then sharp rows, shuffled."""
  keys = jax.random.split(key)
  uniform = jax.random.permutation(keys[0], num_uniform)
  sharp = num_uniform + jax.random.permutation(keys[1], num_sharp)
  return jnp.concatenate(
    [uniform[: sizes.uniform_inputs], sharp[: sizes.sharp_inputs]]
  ).astype(jnp.int32)


def select_queries(
  surface: Float[AnyArray, "P 7"],
  inputs: Int[AnyArray, " R"],
  sizes: GroupSizes,
  *,
  uniform_start: Int[Array, ""] | int = 0,
  sharp_start: Int[Array, ""] | int = 0,
) -> Int[Array, " N"]:
  """Picks the rows that become queries, uniform rows first.

  Args:
    surface: Rows whose first three columns are the position. For a sequence:
      frame 0; the rows found are those of all its frames.
    inputs: The rows that are read, from `select_inputs`.
    sizes: Numbers of inputs and of queries in each group.
    uniform_start: First pick, as a position among the uniform inputs.
    sharp_start: First pick, as a position among the sharp inputs.

  Returns:
    Rows of `surface`, each group in the order of picking.
  """
  if inputs.shape != (sizes.uniform_inputs + sizes.sharp_inputs,):
    raise UserError(
      f"inputs has shape {inputs.shape}, but {sizes} reads"
      f" {sizes.uniform_inputs} + {sizes.sharp_inputs} rows."
    )
  surface, inputs = jnp.asarray(surface), jnp.asarray(inputs, jnp.int32)
  uniform = inputs[: sizes.uniform_inputs]
  sharp = inputs[sizes.uniform_inputs :]
  groups = (
    (uniform, sizes.uniform_queries, uniform_start),
    (sharp, sizes.sharp_queries, sharp_start),
  )
  rows = []
  for group, num_queries, start in groups:
    if num_queries:
      picks = farthest_points(surface[group, :3], num_queries, start)
      rows.append(group[picks])
  return jnp.concatenate(rows)


def select_rows(
  key: PRNGKey,
  surface: Float[AnyArray, "P 7"],
  *,
  num_latents: int,
  num_uniform: int,
  num_sharp: int,
  downsample_ratio: int = 20,
) -> tuple[Int[Array, " R"], Int[Array, " N"]]:
  """Draws the rows that are read and picks the queries among them.

  Args:
    key: Randomness of the rows that are kept and of the first picks.
    surface: `num_uniform` uniform rows, then `num_sharp` sharp-edge rows.
      For a sequence: frame 0.
    num_latents: Number of queries N.
    num_uniform: Number of uniform rows.
    num_sharp: Number of sharp-edge rows.
    downsample_ratio: Rows read for each query.

  Returns:
    Rows of the surface that are read, and rows that are queries, int32.

  Raises:
    ValueError: The sizes do not fit each other or the surface.
  """
  if surface.shape[0] != num_uniform + num_sharp:
    raise UserError(
      f"surface has {surface.shape[0]} rows, expected num_uniform ="
      f" {num_uniform} and num_sharp = {num_sharp} of them."
    )
  sizes = group_sizes(num_latents, num_uniform, num_sharp, downsample_ratio)
  inputs_key, uniform_key, sharp_key = jax.random.split(key, 3)
  inputs = select_inputs(inputs_key, num_uniform, num_sharp, sizes)
  queries = select_queries(
    surface,
    inputs,
    sizes,
    uniform_start=jax.random.randint(uniform_key, (), 0, sizes.uniform_inputs),
    sharp_start=jax.random.randint(
      sharp_key, (), 0, max(sizes.sharp_inputs, 1)
    ),
  )
  return inputs, queries
