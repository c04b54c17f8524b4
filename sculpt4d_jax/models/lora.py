"""Low-rank adapters: small trained additions to frozen linear maps.

    y = x W + b + alpha / rank * (x A) B        A [in, rank], B [rank, out]

B is initialised to zero, so an adapted network initially equals the original. A
and B are applied to the activations one after the other; neither their product
nor a gradient of W is computed. After training, `fold` adds the product to W
and removes the adapter.

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021.
"""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

from flax import nnx
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import layers

Array = array_types.Array

# The part of a parameter's path that identifies adapters.
ADAPTER = "adapter"


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
  """Settings of the adapters.

  Attributes:
    rank: Rank of the added product; 0 adapts nothing.
    alpha: The product is scaled by alpha / rank.
    modules: Names in the path of the adapted maps: a kind of layer such as
      "temporal_attention", "spatial_attention", "cross_attention", "mlp",
      "skip_linear", or a single map in it such as "query" or "fc1".
    also_train: Groups of parameters (`training/parameter_groups.py`) that are
      trained in addition to the adapters, such as "temporal".
  """

  rank: int = 0
  alpha: float = 16.0
  modules: tuple[str, ...] = (
    "spatial_attention",
    "cross_attention",
    "temporal_attention",
  )
  also_train: tuple[str, ...] = ()

  def __post_init__(self):
    for name in ("modules", "also_train"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    if self.rank < 0:
      raise UserError(f"rank={self.rank} must be 0, which is off, or more.")
    if self.rank and not self.modules:
      raise UserError("LoRA with no modules adapts nothing; name some.")

  @property
  def scale(self) -> float:
    """Factor on the product of both low-rank matrices."""
    return self.alpha / self.rank


class Adapter(nnx.Module):
  """The addition to a Linear layer, or to each of a stack of them."""

  def __init__(
    self, linear: layers.Linear, config: LoRAConfig, *, rngs: nnx.Rngs
  ):
    kernel = linear.kernel
    axes = kernel.get_metadata()["logical_axes"]
    shape = kernel[...].shape
    stack, own = shape[: len(shape) - len(axes)], shape[-len(axes) :]
    self.num_in_axes = linear.num_in_axes
    ins, outs = own[: self.num_in_axes], own[self.num_in_axes :]
    self.scale = config.scale
    self.dtype = linear.dtype
    init = layers.fan_in_uniform(math.prod(ins))
    dtype = kernel[...].dtype
    self.a = nnx.Param(
      init(rngs.params(), stack + ins + (config.rank,), dtype),
      logical_axes=axes[: self.num_in_axes] + (None,),
    )
    self.b = nnx.Param(
      jnp.zeros(stack + (config.rank,) + outs, dtype),
      logical_axes=(None,) + axes[self.num_in_axes :],
    )

  def __call__(self, x: Array) -> Array:
    """The addition to the layer's output for its input x, [..., *in]."""
    a = partitioning.gather(self.a, self.dtype)
    b = partitioning.gather(self.b, self.dtype)
    low = jnp.tensordot(x.astype(self.dtype), a, self.num_in_axes)
    return self.scale * jnp.tensordot(low, b, 1)

  def product(self) -> Array:
    """The term added to the kernel or the stack of kernels."""
    a, b = self.a[...], self.b[...]
    num_axes = len(self.a.get_metadata()["logical_axes"])
    stack = a.shape[: a.ndim - num_axes]
    rank = a.shape[-1]
    ins, outs = a.shape[len(stack) : -1], b.shape[len(stack) + 1 :]
    product = jnp.matmul(
      a.reshape(*stack, -1, rank),
      b.reshape(*stack, rank, -1),
      precision="highest",
    )
    return self.scale * product.reshape(*stack, *ins, *outs)


def attach(module: nnx.Module, config: LoRAConfig, *, rngs: nnx.Rngs) -> None:
  """Adds adapters to the selected maps of a module.

  Raises:
    ValueError: A name does not match a map, or is of the experts, which are not
      supported.
  """
  found = set()
  for path, linear in list(_linears(module)):
    names = set(path) & set(config.modules)
    if names:
      linear.adapter = Adapter(linear, config, rngs=rngs)
      found |= names
  missing = sorted(set(config.modules) - found)
  if missing:
    maps = sorted(
      {
        name
        for path, _ in _linears(module)
        for name in path
        if isinstance(name, str)
      }
    )
    raise UserError(
      f"lora.modules {missing} name no linear map of the model (experts are"
      f" separate stacks and cannot be adapted); choose among {maps}."
    )


def fold(module: nnx.Module) -> None:
  """Adds every adapter's product to its map and removes the adapter."""
  for _, linear in list(_linears(module)):
    if linear.adapter is not None:
      kernel = linear.kernel
      kernel[...] = kernel[...] + linear.adapter.product()
      del linear.adapter


def _linears(module: nnx.Module) -> Iterator[tuple[tuple[Any, ...], Any]]:
  for path, part in nnx.iter_modules(module):
    if isinstance(part, layers.Linear):
      yield path, part
