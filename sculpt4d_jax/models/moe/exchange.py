"""Experts on a device mesh: gather the experts, or exchange the tokens.

By default tokens stay in place. Parameters of the experts are sharded like all
others, and every device gathers those of the current layer (on TPU those of
some hidden units at a time): the work is balanced however tokens are routed.

Where the mesh has an `expert` axis, each of its devices holds some of the
experts. They then exchange tokens instead of parameters: every device receives
the tokens of all devices along that axis, applies its own experts to those that
chose them, and the sums of the results are sent back. There is no capacity, so
no token is ever dropped.

Both compute the same sum as a single device.
"""

from collections.abc import Callable
from typing import NamedTuple

from jax import lax
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning

Array = array_types.Array
Spec = partitioning.Spec

_EXPERT, _TENSOR = "expert", "tensor"


class ExpertWeights(NamedTuple):
  """Weights of all experts: [E, D, M], [E, M], [E, M, D], [E, D]."""

  kernel1: Array
  bias1: Array
  kernel2: Array
  bias2: Array


Gather = Callable[[ExpertWeights], ExpertWeights]
Apply = Callable[[Array, Array, Array, ExpertWeights, Gather], Array]


def on_mesh(
  apply: Apply,
  x: Array,
  gates: Array,
  chosen: Array,
  weights: ExpertWeights,
  logical_axes: ExpertWeights,
) -> Array:
  """Applies the experts on the mesh in use.

  Args:
    apply: (x, gates, chosen, weights, gather) -> y on one device. The weights
      are this device's shards, from which `gather` makes full weights of all or
      some hidden units (None stays None). A choice of E or more adds nothing.
    x: Tokens [..., D]; of four axes, the first two are clips and frames.
    gates: [..., k].
    chosen: [..., k].
    weights: Weights of all experts.
    logical_axes: Names of the axes of each of them.
  """
  mesh = partitioning.current_mesh()
  leading = (
    ("batch", "frames", None)[: x.ndim - 1]
    if x.ndim == 4
    else (("batch",) + (None,) * (x.ndim - 2))
  )
  specs = [
    partitioning.activation_spec(y.shape, (*leading, None))
    for y in (x, gates, chosen)
  ]
  weight_specs = ExpertWeights(
    *(
      partitioning.parameter_spec(w.shape, axes, mesh)
      for w, axes in zip(weights, logical_axes)
    )
  )
  is_exchanged = weight_specs.kernel1[0] is not None
  is_split = _EXPERT in _names(specs[0][0])
  is_partial = _TENSOR in _names(weight_specs.kernel1[2])

  def gather(weights: ExpertWeights) -> ExpertWeights:
    return ExpertWeights(*map(_gather, weights, weight_specs))

  def local(
    x: Array, gates: Array, chosen: Array, weights: ExpertWeights
  ) -> Array:
    if is_partial:  # Partial sums over hidden units; the bias is added once.
      first = lax.axis_index(_TENSOR) == 0
      weights = weights._replace(bias2=jnp.where(first, weights.bias2, 0))
    if is_exchanged:
      if is_split:
        x, gates, chosen = (
          lax.all_gather(y, _EXPERT, axis=0, tiled=True)
          for y in (x, gates, chosen)
        )
      chosen = _own_choices(chosen, len(weights.kernel1))
    y = apply(x, gates, chosen, weights, gather)
    if is_partial:
      y = lax.psum(y, _TENSOR)
    # Every device has its experts' sums for all tokens.
    if is_exchanged and is_split:
      y = lax.psum_scatter(y, _EXPERT, scatter_dimension=0, tiled=True)
    elif is_exchanged:
      y = lax.psum(y, _EXPERT)
    return y

  return partitioning.map_local(
    local, (x, gates, chosen, weights), (*specs, weight_specs), specs[0]
  )


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  return (entry,) if isinstance(entry, str) else (entry or ())


def _gather(weight: Array | None, spec: Spec) -> Array | None:
  """A weight, complete except for other devices' experts and hidden units."""
  if weight is None:
    return None
  for axis, entry in enumerate(spec):
    # One mesh axis after the other: among all chips of a slice at once the
    # TPU's compiler would all-reduce full weights, twice the bytes.
    for name in reversed(_names(entry)):
      if name not in (_EXPERT, _TENSOR):
        weight = lax.all_gather(weight, name, axis=axis, tiled=True)
  return weight


def _own_choices(chosen: Array, num_own: int) -> Array:
  """Choices counted from the first own expert; `num_own` stands for others."""
  own = chosen - num_own * lax.axis_index(_EXPERT)
  is_own = (own >= 0) & (own < num_own)
  return jnp.where(is_own, own, num_own)
