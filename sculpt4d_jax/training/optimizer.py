"""AdamW or Muon with warm-up, decay and clipping; the parameter average."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.training import parameter_groups

Array = array_types.Array

# Root mean square of AdamW's updates, per unit of learning rate.
_ADAM_RMS = 0.2


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Optimizer of one training stage.

  Attributes:
    learning_rate: Peak learning rate, after the warm-up.
    num_steps: Number of steps of the run.
    warmup_steps: Number of steps of linear warm-up from zero.
    final_fraction: Learning rate at the end of the cosine decay, as a fraction
      of the peak.
    decay_fraction: Fraction of the steps, the last ones, over which the rate
      decays; before them it is constant.
    b1: Decay rate of the first moment.
    b2: Decay rate of the second moment.
    epsilon: Added to the square root of the second moment.
    weight_decay: Decoupled weight decay, on matrices only, not on norms and
      biases.
    max_grad_norm: Largest global norm of the gradients; larger ones are scaled.
    ema_decay: Decay rate of the parameter average, once warmed up.
    use_muon: Whether Muon updates the blocks' matrices (orthogonalised
      momentum) and AdamW everything else. Muon's updates are scaled to the size
      of AdamW's, so that one learning rate serves both.
    accumulation_steps: Micro-batches per step (gradient accumulation), to save
      memory.
    temporal_learning_rate: Peak learning rate of the temporal layers; None is
      the same as the others'.
    frozen: Groups of parameters that are not updated, see `parameter_groups`;
      "base" is everything but the temporal layers.
  """

  learning_rate: float
  num_steps: int
  warmup_steps: int = 500
  final_fraction: float = 0.02
  decay_fraction: float = 1.0
  b1: float = 0.9
  b2: float = 0.99
  epsilon: float = 1e-6
  weight_decay: float = 0.01
  max_grad_norm: float = 1.0
  ema_decay: float = 0.999
  accumulation_steps: int = 1
  temporal_learning_rate: float | None = None
  frozen: tuple[str, ...] = ()
  use_muon: bool = False

  def __post_init__(self):
    frozen = parameter_groups.as_names(self.frozen)
    object.__setattr__(self, "frozen", frozen)
    if self.accumulation_steps < 1:
      raise UserError(
        f"accumulation_steps={self.accumulation_steps} must be at least 1."
      )
    if self.num_steps < 1 or self.warmup_steps < 0:
      raise UserError(
        f"num_steps={self.num_steps} must be positive and"
        f" warmup_steps={self.warmup_steps} not negative."
      )
    if not 0 < self.decay_fraction <= 1:
      raise UserError(
        f"decay_fraction={self.decay_fraction} must lie in (0, 1]."
      )


def remarks(config: OptimizerConfig) -> list[str]:
  """Warnings about settings that are allowed but rarely intended."""
  found = []
  if config.warmup_steps >= config.num_steps:
    found.append(
      f"The warm-up takes {config.warmup_steps} steps and the run"
      f" {config.num_steps}: the learning rate never reaches its peak. Set"
      " optimizer.warmup_steps lower."
    )
  elif _decay_start(config) >= config.num_steps or config.final_fraction >= 1:
    found.append(
      "The learning rate never decays: see optimizer.decay_fraction and"
      " final_fraction. The last steps' noise stays in the weights."
    )
  return found


def _decay_start(config: OptimizerConfig) -> int:
  #   peak               ___________
  #                     /           \
  #   peak * final     /             \__
  #                   0 warm-up     | decay  num_steps
  #                                 start
  #
  # A warm-up that is longer than what precedes the decay shortens the decay.
  decay_steps = max(1, int(config.num_steps * config.decay_fraction))
  return max(config.num_steps - decay_steps, config.warmup_steps)


def learning_rate_schedule(config: OptimizerConfig) -> optax.Schedule:
  """Linear warm-up, constant, cosine decay to the end of the run."""
  decay_start = _decay_start(config)
  return optax.join_schedules(
    [
      optax.linear_schedule(
        0.0, config.learning_rate, max(config.warmup_steps, 1)
      ),
      optax.constant_schedule(config.learning_rate),
      optax.cosine_decay_schedule(
        config.learning_rate,
        max(config.num_steps - decay_start, 1),
        config.final_fraction,
      ),
    ],
    [config.warmup_steps, decay_start],
  )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
  """The gradient transformation of a stage."""
  # One norm over all groups, so that clipping keeps their proportions.
  clip = optax.clip_by_global_norm(config.max_grad_norm)
  rule = _muon if config.use_muon else _adamw
  base = rule(config)
  if config.temporal_learning_rate is None and not config.frozen:
    return optax.chain(clip, base)
  temporal = config
  if config.temporal_learning_rate is not None:
    temporal = dataclasses.replace(
      config, learning_rate=config.temporal_learning_rate
    )

  def label(group: str) -> str:
    if parameter_groups.is_frozen(group, config.frozen):
      return "frozen"
    return "temporal" if group == "temporal" else "base"

  kinds = {
    "base": base,
    "temporal": rule(temporal),
    # Stores no moments.
    "frozen": optax.set_to_zero(),
  }
  return optax.chain(
    clip,
    optax.partition(kinds, lambda tree: parameter_groups.label(tree, label)),
  )


def _adamw(config: OptimizerConfig) -> optax.GradientTransformation:
  return optax.adamw(
    learning_rate_schedule(config),
    b1=config.b1,
    b2=config.b2,
    eps=config.epsilon,
    weight_decay=config.weight_decay,
    mask=_is_matrix,
  )


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
  """Source: Jordan, Muon, 2024; scaled as in Liu et al., 2025."""
  return contrib.muon(
    learning_rate_schedule(config),
    weight_decay=config.weight_decay,
    weight_decay_mask=_is_matrix,
    adam_b1=config.b1,
    adam_b2=config.b2,
    adam_weight_decay=config.weight_decay,
    muon_weight_dimension_numbers=_matrix_axes,
    consistent_rms=_ADAM_RMS,
  )


def _matrix_axes(params: Any) -> Any:
  """Input and output axes of the kernels in stacks of blocks; None elsewhere.

  The first axis of such a kernel is the layer. Experts have one more leading
  axis; attention kernels have two axes, heads and their width, in the place of
  one.
  """

  def axes(
    path: tuple[Any, ...], leaf: Array
  ) -> contrib.MuonDimensionNumbers | None:
    # Embeddings and output layers are left to AdamW, as Muon's author does.
    #
    #   kernel                shape             inputs   outputs
    #   MLP, skip             [L, D, M]         1        2
    #   experts               [L, E, D, M]      2        3
    #   query, key, value     [L, D, H, K]      1        2, 3
    #   output of attention   [L, H, K, D]      1, 2     3
    name = jax.tree_util.keystr(path)
    in_blocks = "stages" in name or "blocks" in name
    if not in_blocks or "kernel" not in name or "router" in name:
      return None
    if leaf.ndim < 3:
      return None
    if "experts" in name:
      return contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1)
    if leaf.ndim == 3:
      return contrib.MuonDimensionNumbers(1, 2)
    if "'out'" in name:
      return contrib.MuonDimensionNumbers((1, 2), 3)
    return contrib.MuonDimensionNumbers(1, (2, 3))

  return jax.tree_util.tree_map_with_path(axes, params)


def hold_frozen(params: Any, frozen: tuple[str, ...]) -> Any:
  """Stops the gradients of frozen groups, which also saves work."""
  if not frozen:
    return params
  return jax.tree_util.tree_map_with_path(
    lambda path, x: (
      jax.lax.stop_gradient(x)
      if parameter_groups.is_frozen(parameter_groups.group_of(path), frozen)
      else x
    ),
    params,
  )


def _is_matrix(params: Any) -> Any:
  """Kernels decay; norms, biases and single vectors do not."""

  def decays(path: tuple[Any, ...], leaf: Array) -> bool:
    return "kernel" in jax.tree_util.keystr(path) and leaf.ndim > 1

  return jax.tree_util.tree_map_with_path(decays, params)


def update_ema(ema: Any, params: Any, step: Array, decay: float) -> Any:
  """Updates the average with the decay min(decay, (1 + n) / (10 + n))."""
  # Early in a run the average is short: it would otherwise contain the random
  # initial parameters for a thousand steps.
  count = step.astype(jnp.float32)
  rate = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
  return jax.tree.map(lambda e, p: e * rate + p * (1.0 - rate), ema, params)
