"""Order in memory of queries, keys and values on TPUs: heads outside tokens.

The kernels take heads one by one, [H, S, K] for a set. A product with a matrix
[D, H, K] could write this at once, as a head is 128 channels wide, the width of
a tile. Left to itself, the compiler stores such a product with its tokens
innermost and turns every array in a further pass over memory, forward and
backward: 3.67 instead of 4.15 ms for the queries of a block of the released
size, by its schedule for v5p.
"""

import jax

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning

Array = array_types.Array
Float = array_types.Float

# Smaller sets are not worth a tile.
_MIN_TOKENS = 128


def heads_outside(
  x: Float[Array, "*B S H K"],
) -> Float[Array, "*B S H K"]:
  """The same array; on TPUs it, and its gradient, are stored [*B, H, S, K]."""
  if partitioning.platform()[0] != "tpu" or x.shape[-3] < _MIN_TOKENS:
    return x
  if partitioning.current_mesh() is None:
    return _stored(x)
  # By hand: the partitioner would gather an array to fix its order in memory.
  num_leading = x.ndim - 3
  axes = ("batch", "frames")[:num_leading] + (None,) * (num_leading - 2)
  spec = partitioning.activation_spec(x.shape, (*axes, None, "heads", None))
  return partitioning.map_local(_stored, (x,), [spec], spec)


@jax.custom_vjp
def _stored(x: Array) -> Array:
  # Late: only TPUs need it.
  from jax.experimental import layout

  *leading, tokens, heads, width = range(x.ndim)
  order = layout.Layout(major_to_minor=(*leading, heads, tokens, width))
  return layout.with_layout_constraint(x, order)


_stored.defvjp(lambda x: (_stored(x), None), lambda _, bar: (_stored(bar),))
