"""One step of each GPU kernel: the mathematics of a tile, written once.

The same functions run on the device and in plain JAX. The differences are
hidden behind four arguments of a step:

  product      Float32 matrix product of two tiles, [R, N] and [N, C];
               `product_of_rows` of [R, N] and [C, N].
  Operand      A tile of the loop: `read()` waits for it and returns it,
               `release()` says that it is not needed any more.
  Accumulator  `add(left, right)` adds their product to a running sum.
  round_to     Gives a float32 array the dtype of the factor it is multiplied
               with, which on some hardware changes its layout too.

Exponentials are base 2, as the hardware has them: a factor log2(e) goes with
the scale of the scores, so that exp(scale * s) = exp2(exponent * s). Maxima and
log-sum-exps inside the kernels have base 2 too.

Source: Dao et al., FlashAttention-2, 2023 (online softmax; backward from the
log-sum-exp).
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple, Protocol

import jax
from jax import lax
import jax.numpy as jnp

LOG2_E = math.log2(math.e)


RoundTo = Callable[[jax.Array, jax.typing.DTypeLike], jax.Array]


class Product(Protocol):
  """A matrix product of two operands on the chip."""

  def __call__(
    self, left: Any, right: Any, transposed: bool = False
  ) -> jax.Array:
    """Product of [R, N] and [N, C], or of [R, N] and [C, N] if transposed."""


class Operand(Protocol):
  """A block that is read when its copy has arrived, and released after use."""

  def read(self) -> Any:
    """Waits for the block and returns it."""

  def release(self) -> None:
    """Says that the block is not needed any more."""


class Ready:
  """An operand that needs no copy."""

  def __init__(self, value: jax.Array):
    self._value = value

  def read(self) -> jax.Array:
    """The value."""
    return self._value

  def release(self) -> None:
    """Does nothing."""


class Accumulator(Protocol):
  """A sum of products."""

  def add(self, left: Any, right: Any) -> None:
    """Adds the product of two operands."""


def cast(x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
  """The plain `round_to`."""
  return x.astype(dtype)


class Softmax(NamedTuple):
  """State of the online softmax of R queries."""

  output: jax.Array  # Sum of weights times values, [R, K] float32.
  maximum: jax.Array  # Of the scaled scores so far, base 2, [R].
  total: jax.Array  # Sum of the weights relative to the maximum, [R].

  @classmethod
  def start(cls, rows: int, head_dim: int) -> "Softmax":
    """The state before any key was seen."""
    return cls(
      jnp.zeros((rows, head_dim), jnp.float32),
      jnp.full((rows,), -jnp.inf, jnp.float32),
      jnp.zeros((rows,), jnp.float32),
    )

  def finish(self) -> tuple[jax.Array, jax.Array]:
    """Output [R, K] and natural log-sum-exp [R]; float32."""
    output = self.output * along_rows(1.0 / self.total, self.output.shape)
    return output, self.maximum / LOG2_E + jnp.log(self.total)


def forward(
  state: Softmax,
  query: Any,
  key: Operand,
  value: Operand,
  exponent: float,
  product: Product,
  take_turns: Callable[[], None],
  product_of_scores: Product | None = None,
  round_to: RoundTo = cast,
) -> Softmax:
  """Takes one tile of keys and values into the softmax.

  Args:
    state: Running maximum, sum and output of R queries.
    query: [R, K].
    key: [C, K].
    value: [C, K].
    exponent: Scale of the scores times log2(e); not negative.
    product: Matrix product.
    take_turns: Called before the second product.
    product_of_scores: Matrix product for the scores, if another one.
    round_to: Casts the weights.
  """
  scores = (product_of_scores or product)(query, key.read(), True)  # [R, C]
  key.release()
  # Scaling the maximum instead of all scores is why `exponent` must not be
  # negative. The scale of the scores is part of the exponential's argument, one
  # fused multiply-add.
  maximum = jnp.maximum(state.maximum, scores.max(axis=1) * exponent)
  shrink = jnp.exp2(state.maximum - maximum)
  weights = jnp.exp2(scores * exponent - along_rows(maximum, scores.shape))
  total = state.total * shrink + weights.sum(axis=1)
  values = value.read()
  weights = round_to(weights, values.dtype)
  take_turns()
  # Shrinking the old sum is part of adding the new one: one instruction.
  share = product(weights, values)  # [R, K]
  value.release()
  output = state.output * along_rows(shrink, share.shape) + share
  return Softmax(output, maximum, total)


def query_bar(
  total: Accumulator,
  query: Any,
  output_bar: Any,
  log_sum_exp: jax.Array,
  offset: jax.Array,
  key: Operand,
  value: Operand,
  exponent: float,
  product: Product,
  finish: Callable[[], None],
  round_to: RoundTo = cast,
) -> None:
  """Adds one tile's share of the queries' gradient, without the scale.

  Args:
    total: Sum so far of the gradient of R queries, [R, K].
    query: [R, K].
    output_bar: Cotangent of the output, [R, K].
    log_sum_exp: Log-sum-exp of the scaled scores, base 2, [R].
    offset: Sum over K of output * output_bar, less the cotangent of the
      log-sum-exp, [R].
    key: [C, K].
    value: [C, K].
    exponent: Scale of the scores times log2(e); not negative.
    product: Matrix product.
    finish: Waits until all sums are done.
    round_to: Casts weights and their gradients.
  """
  keys = key.read()
  scores = product(query, keys, transposed=True)  # [R, C]
  shape = scores.shape
  weights = jnp.exp2(scores * exponent - along_rows(log_sum_exp, shape))
  values = value.read()
  weights_bar = product(output_bar, values, transposed=True)
  value.release()
  scores_bar = weights * (weights_bar - along_rows(offset, shape))
  total.add(round_to(scores_bar, values.dtype), keys)
  finish()
  key.release()


def key_value_bar(
  key_total: Accumulator,
  value_total: Accumulator,
  key: Any,
  value: Any,
  query: Operand,
  output_bar: Operand,
  log_sum_exp: Operand,
  offset: Operand,
  exponent: float,
  product: Product,
  finish: Callable[[], None],
  round_to: RoundTo = cast,
) -> None:
  """Adds one tile's share of the gradients; the keys' lacks the scale.

  Scores are held transposed, a row for a key, so that all of a program's sums
  are over its own rows.

  Args:
    key_total: Sum so far of the gradient of R keys, [R, K].
    value_total: Sum so far of the gradient of R values, [R, K].
    key: [R, K].
    value: [R, K].
    query: [C, K].
    output_bar: Gradient of the output, [C, K]; see `query_bar`.
    log_sum_exp: Log-sum-exp of the scores, [C]; see `query_bar`.
    offset: Offset of the gradients of the scores, [C]; see `query_bar`.
    exponent: Scale of the scores times log2(e); not negative.
    product: Matrix product.
    finish: Waits until all sums are done.
    round_to: Casts weights and their gradients.
  """
  queries = query.read()
  scores = product(key, queries, transposed=True)  # [R, C]
  shape = scores.shape
  log_sum_exps = along_columns(log_sum_exp.read()[...], shape)
  log_sum_exp.release()
  weights = jnp.exp2(scores * exponent - log_sum_exps)
  output_bars = output_bar.read()
  value_total.add(round_to(weights, queries.dtype), output_bars)
  weights_bar = product(value, output_bars, transposed=True)
  offsets = along_columns(offset.read()[...], shape)
  offset.release()
  scores_bar = weights * (weights_bar - offsets)
  key_total.add(round_to(scores_bar, queries.dtype), queries)
  finish()
  output_bar.release()
  query.release()


def along_rows(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """[R] to [R, C], a value a row."""
  return lax.broadcast_in_dim(x, shape, (0,))


def along_columns(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """[C] to [R, C], a value a column."""
  return lax.broadcast_in_dim(x, shape, (1,))


def varying_as(x: jax.Array, *others: jax.Array) -> jax.Array:
  """Marks an array as varying over the mesh axes that others vary over.

  Inside `jax.shard_map` an array has a type that says so; constants, and what a
  kernel returns, lack it.
  """
  missing = frozenset().union(*map(_varying, others)) - _varying(x)
  return lax.pcast(x, tuple(missing), to="varying") if missing else x


def _varying(x: jax.Array) -> frozenset:
  axes = getattr(jax.typeof(x), "manual_axis_type", None)
  return frozenset(getattr(axes, "varying", ()))
