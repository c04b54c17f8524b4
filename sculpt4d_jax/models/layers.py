"""Layers that all networks here are built from.

Parameters are float32 (`param_dtype`) and are cast to the compute `dtype` where
they are used. Each parameter names its logical axes in the metadata field
`logical_axes`; `partitioning.py` maps those to the device mesh. The names are

  embed   the transformer's width D         heads     attention heads H
  kv      the width of a head K             mlp       the hidden width M
  expert  experts E                         latent    latent channels C
  context the context's width               None      never sharded

A parameter with one more axis than it names is a stack of layers: the first
axis is the layer.
"""

from collections.abc import Callable
import math
from typing import Any, TypeVar

from flax import nnx
import jax
from jax import ad_checkpoint
from jax import lax
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import eight_bits
from sculpt4d_jax.models import remat

Array = array_types.Array
Initializer = Callable[[Array | None, tuple[int, ...], Any], Array]
Axes = tuple[str | None, ...]
Module = TypeVar("Module", bound=nnx.Module)


class NoRngs:
  """Takes the place of nnx.Rngs where only shapes of parameters are wanted.

  Its keys are None, for which initialisers make zeros: tracing all the draws of
  a network takes longer than reading its weights.
  """

  def params(self) -> None:
    """No key."""


def fan_in_uniform(fan_in: int) -> Initializer:
  """Uniform in +-1/sqrt(fan_in), as Hunyuan3D 2.1 (PyTorch's default)."""
  bound = 1.0 / math.sqrt(fan_in)

  def init(key: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
    if key is None:
      return jnp.zeros(shape, dtype)
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def zeros(key: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
  """Zero initialiser; `key` is not used."""
  del key
  return jnp.zeros(shape, dtype)


class Linear(nnx.Module):
  """y = x . kernel + bias over one or several axes.

  The kernel has shape `in_features + out_features`, so an attention projection
  is [D, H, K] and its output projection [H, K, D].
  """

  # Set by `lora.attach`; its output is added to the layer's.
  adapter = None
  # Scales of a kernel in eight bits, see `quantization.py`.
  kernel_scale = None

  def __init__(
    self,
    in_features: int | tuple[int, ...],
    out_features: int | tuple[int, ...],
    *,
    kernel_axes: Axes,
    rngs: nnx.Rngs,
    use_bias: bool = True,
    kernel_init: Initializer | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    ins = in_features if isinstance(in_features, tuple) else (in_features,)
    outs = out_features if isinstance(out_features, tuple) else (out_features,)
    if len(kernel_axes) != len(ins) + len(outs):
      raise UserError(
        f"kernel_axes={kernel_axes} must name the {len(ins) + len(outs)}"
        f" axes of a kernel {ins + outs}."
      )
    self.num_in_axes = len(ins)
    self.dtype = dtype
    init = kernel_init or fan_in_uniform(math.prod(ins))
    self.kernel = nnx.Param(
      init(rngs.params(), ins + outs, param_dtype), logical_axes=kernel_axes
    )
    if use_bias:
      # Biases start like kernels, as in PyTorch.
      bias = init(rngs.params(), outs, param_dtype)
      self.bias = nnx.Param(bias, logical_axes=kernel_axes[len(ins) :])
    else:
      self.bias = None

  def __call__(
    self,
    x: Any,
    *,
    ins: tuple[int, ...] | None = None,
    outs: tuple[int, ...] | None = None,
  ) -> Any:
    """Maps the last axes of x, [..., *in], to [..., *out].

    Args:
      x: An array, or a tree of several, which share one gathered kernel.
      ins: Other shape of the same inputs, for instance heads in groups.
      outs: Other shape of the outputs.
    """
    if self.kernel_scale is None:
      # Cast before it is gathered: half the bytes in bfloat16.
      kernel = partitioning.gather(self.kernel, self.dtype)
    else:
      kernel = eight_bits.restore(
        self.kernel[...], self.kernel_scale[...], self.dtype
      )
    shape = kernel.shape
    own_ins, own_outs = shape[: self.num_in_axes], shape[self.num_in_axes :]
    ins, outs = ins or own_ins, outs or own_outs
    kernel = kernel.reshape(*ins, *outs)

    def apply(x: Array) -> Array:
      y = jnp.tensordot(x.astype(self.dtype), kernel, len(ins))
      leading = y.shape[: y.ndim - len(outs)]
      if self.adapter is not None:
        own = self.adapter(x.reshape(*leading, *own_ins))
        y = y + own.reshape(*leading, *outs)
      if self.bias is not None:
        y = y + self.bias[...].astype(self.dtype).reshape(outs)
      return y

    return jax.tree.map(apply, x)


class LayerNorm(nnx.Module):
  """Layer normalisation over the last axis, computed in float32."""

  def __init__(
    self,
    features: int,
    *,
    axis: str | None = "embed",
    epsilon: float = 1e-6,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    self.epsilon = epsilon
    self.dtype = dtype
    self.scale = nnx.Param(
      jnp.ones((features,), param_dtype), logical_axes=(axis,)
    )
    self.bias = nnx.Param(
      jnp.zeros((features,), param_dtype), logical_axes=(axis,)
    )

  @jax.named_scope("norm")
  def __call__(self, x: Array) -> Array:
    """Normalises the last axis; computes in float32, returns `dtype`."""
    # float32: a variance of bfloat16 activations loses its digits.
    is_half = x.dtype == jnp.bfloat16
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    if is_half and partitioning.platform()[0] == "tpu":
      # In one pass over memory. The difference of two squares loses digits that
      # float32 has, and bfloat16 activations have not.
      variance = jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean)
      variance = jnp.maximum(variance, 0.0)
    else:
      variance = jnp.square(centred).mean(-1, keepdims=True)
    y = centred * lax.rsqrt(variance + self.epsilon)
    y = y * self.scale[...] + self.bias[...]
    return y.astype(self.dtype)


class RMSNorm(nnx.Module):
  """x / rms(x) * scale over the last axis, computed in float32."""

  def __init__(
    self,
    features: int,
    *,
    axis: str | None = None,
    epsilon: float = 1e-6,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    self.epsilon = epsilon
    self.dtype = dtype
    self.scale = nnx.Param(
      jnp.ones((features,), param_dtype), logical_axes=(axis,)
    )

  @jax.named_scope("norm")
  def __call__(self, x: Array) -> Array:
    """Normalises the last axis; computes in float32, returns `dtype`."""
    x = x.astype(jnp.float32)  # As in LayerNorm.
    square = jnp.square(x).mean(-1, keepdims=True)
    y = x * lax.rsqrt(square + self.epsilon) * self.scale[...]
    return y.astype(self.dtype)


_SQRT_HALF = math.sqrt(0.5)
_NORMAL_DENSITY_AT_ZERO = 1.0 / math.sqrt(2.0 * math.pi)


@jax.custom_vjp
def gelu(x: Array) -> Array:
  """Exact GELU: x times the normal distribution's mass below x, in x's dtype.

  The backward pass stores only x and recomputes the rest; automatic
  differentiation would store several arrays of its size. With erf the error is
  at most 5e-7, and on CPUs erf takes half the time of erfc, which is more exact
  only far below zero, where the result is near zero.
  """
  return (x * _normal_mass(x)).astype(x.dtype)


def _normal_mass(x: Array) -> Array:
  return 0.5 * (1.0 + lax.erf(x.astype(jnp.float32) * _SQRT_HALF))


def _gelu_forward(x: Array) -> tuple[Array, Array]:
  return gelu(x), x


def _gelu_backward(x: Array, bar: Array) -> tuple[Array]:
  wide = x.astype(jnp.float32)
  density = _NORMAL_DENSITY_AT_ZERO * jnp.exp(-0.5 * jnp.square(wide))
  slope = _normal_mass(x) + wide * density
  return ((bar * slope).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


class MLP(nnx.Module):
  """Linear, exact (erf) GELU, Linear.

  The exact form matters: the tanh form is off by 5e-4 after seven blocks.
  """

  def __init__(
    self,
    features: int,
    hidden_features: int,
    *,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    kwargs = dict(rngs=rngs, dtype=dtype, param_dtype=param_dtype)
    self.fc1 = Linear(
      features, hidden_features, kernel_axes=("embed", "mlp"), **kwargs
    )
    self.fc2 = Linear(
      hidden_features, features, kernel_axes=("mlp", "embed"), **kwargs
    )

  def __call__(self, x: Any) -> Any:
    """Maps the last axis to hidden units and back; trees as in `Linear`."""
    hidden = jax.tree.map(remat.product, self.fc1(x))
    return self.fc2(jax.tree.map(gelu, hidden))


def stack_layers(
  create: Callable[[nnx.Rngs], Module],
  num_layers: int,
  rngs: nnx.Rngs | NoRngs,
) -> Module:
  """Creates `num_layers` equal modules as one, parameters stacked [L, ...]."""
  if isinstance(rngs, NoRngs):
    graphdef, params = nnx.split(create(rngs))
    stack = lambda x: jnp.broadcast_to(x, (num_layers, *x.shape))
    return nnx.merge(graphdef, jax.tree.map(stack, params))

  # Every layer draws different parameters.
  @nnx.split_rngs(splits=num_layers)
  @nnx.vmap(in_axes=0, out_axes=0)
  def create_all(rngs: nnx.Rngs) -> Module:
    return create(rngs)

  return create_all(rngs)


def scan_layers(
  body: Callable[[Module, Any, Any], tuple[Any, Any]],
  stacked: Module,
  carry: Any,
  xs: Any = None,
  *,
  unroll: bool | int = 1,
  remat_policy: str | None = None,
) -> tuple[Any, Any]:
  """Applies stacked layers one after the other, as `jax.lax.scan` does.

  Args:
    body: (layer, carry, x) -> (carry, y).
    stacked: Layers from `stack_layers`.
    carry: Activations that pass from layer to layer.
    xs: One slice for each layer, or None.
    unroll: Number of layers in an iteration; True, or the number of layers,
      unrolls all. A scan compiles one layer for any number of layers; unrolled,
      XLA may fuse across layers, and residuals are not copied to and from
      stacked arrays.
    remat_policy: Policy of what the backward pass finds stored, see
      `remat.py`; None stores all activations.

  Returns:
    The last carry, and the stacked ys.
  """
  graphdef, params = nnx.split(stacked)
  num_layers = jax.tree.leaves(params)[0].shape[0]

  def step(carry: Any, layer: tuple[nnx.State, Any]) -> tuple[Any, Any]:
    layer_params, x = layer
    if remat_policy == remat.OFFLOAD:
      # The name is saved, hence the unnamed input is not.
      carry = ad_checkpoint.checkpoint_name(carry, remat.LAYER_INPUT)
    return body(nnx.merge(graphdef, layer_params), carry, x)

  if remat_policy is not None:
    # A loop already keeps XLA from merging the recomputation with the forward
    # pass. Unrolled layers, and a single one, which XLA inlines, need a
    # barrier.
    is_loop = unroll == 1 and num_layers > 1
    policy = remat.policy(remat_policy)
    step = jax.checkpoint(step, policy=policy, prevent_cse=not is_loop)
  if unroll is not True and unroll < num_layers:
    return lax.scan(step, carry, (params, xs), unroll=unroll)
  ys = []
  for layer in _unstack((params, xs), num_layers):
    carry, y = step(carry, layer)
    ys.append(y)
  return carry, jax.tree.map(lambda *y: jnp.stack(y), *ys)


def _unstack(stacked: Any, num_layers: int) -> list[Any]:
  """The trees of the single layers."""
  # The gradient of `split` is a concatenation; that of indexing would sum the
  # full stack once for every layer.
  leaves, tree = jax.tree.flatten(stacked)
  parts = [lax.split(x, (1,) * num_layers) for x in leaves]
  return [
    tree.unflatten([lax.squeeze(x, (0,)) for x in layer])
    for layer in zip(*parts)
  ]
