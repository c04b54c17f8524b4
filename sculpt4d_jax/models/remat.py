"""What the backward pass keeps of a layer, and what it computes again.

  full             nothing but the layer's input is kept
  offload_inputs   the same; the inputs wait in the host's memory
  keep_temporal    also the results of the kernels of attention over frames,
                   so that these run once: an array of the size of the input a
                   block of the DiT
  keep_attention   the same of all attention kernels: three such arrays
  keep_products    also what products with weights make, but for the experts':
                   queries, keys, values, hidden units and the sums to which
                   layers add, 15 more such arrays; activations, norms and
                   rotations are computed again

Any other value names a policy of `jax.checkpoint_policies`. None keeps all.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import ad_checkpoint

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError

Array = array_types.Array

FULL = "full"
OFFLOAD = "offload_inputs"
KEEP_TEMPORAL = "keep_temporal"
KEEP_ATTENTION = "keep_attention"
KEEP_PRODUCTS = "keep_products"

# Names of arrays that policies keep. The kernels' results have theirs from
# `kernels/block_sparse_attention`, which does not import this package.
LAYER_INPUT = "layer_input"
ATTENTION = "attention_kernel"
TEMPORAL = "attention_over_frames_kernel"
_PRODUCT = "product"

_OURS = (FULL, OFFLOAD, KEEP_TEMPORAL, KEEP_ATTENTION, KEEP_PRODUCTS)


def check(name: str | None) -> None:
  """Raises UserError if no policy has the name."""
  if name in (None, *_OURS) or hasattr(jax.checkpoint_policies, name):
    return
  raise UserError(
    f"remat_policy={name!r}: choose None, one of {_OURS} or a name in"
    " jax.checkpoint_policies."
  )


def policy(name: str) -> Callable[..., Any] | None:
  """The policy for `jax.checkpoint`; None keeps only inputs."""
  policies = jax.checkpoint_policies
  if name == FULL:
    return None
  if name == OFFLOAD:
    return policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[LAYER_INPUT],
      offload_src="device",
      offload_dst="pinned_host",
    )
  if name == KEEP_TEMPORAL:
    return policies.save_only_these_names(TEMPORAL)
  if name == KEEP_ATTENTION:
    return policies.save_only_these_names(ATTENTION, TEMPORAL)
  if name == KEEP_PRODUCTS:
    return policies.save_only_these_names(ATTENTION, TEMPORAL, _PRODUCT)
  return getattr(policies, name)


def product(x: Array) -> Array:
  """Names what `keep_products` keeps, as it is stored."""
  return ad_checkpoint.checkpoint_name(x, _PRODUCT)


def computes_blocks_again(name: str | None) -> bool:
  """Whether the backward pass computes whole layers again."""
  return name in (FULL, OFFLOAD)
