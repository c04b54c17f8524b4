"""The 4D diffusion transformer: Hunyuan3D 2.1's DiT with temporal attention.

Each frame is a set of N latent tokens led by one time token. Every block is

    x <- skip_norm(skip_linear([skip, x]))     blocks after the middle one
    x <- x + spatial attention(norm x)         within a frame
    x <- x + cross-attention(norm x, context)  to the frame's own context
    x <- x + temporal attention(norm x)        among all frames, block-sparse
    x <- x + MLP(norm x), or MoE in the last blocks

and blocks before the middle one hand their output, last in first out, to those
after it. Temporal attention sees the N latent tokens only; the time token
passes it by, so that the blocks of tokens stay aligned.

Consecutive blocks of one kind form a stage: their parameters are stacked and
`lax.scan` runs through them. As tokens are a set, each frame's blocks of tokens
are brought into bit-reversed order once, at the input, where blocks that see
each other are neighbours; the output undoes it.

Source: Sculpt4D; Hunyuan3D 2.1 (`HunYuanDiTPlain`).
"""

import functools
import itertools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import attention
from sculpt4d_jax.models import dit_block
from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import dit_inputs
from sculpt4d_jax.models import frame_tokens
from sculpt4d_jax.models import layers
from sculpt4d_jax.models import remat
from sculpt4d_jax.models import streaming
from sculpt4d_jax.models import time_embedding
from sculpt4d_jax.models import token_layout
from sculpt4d_jax.models import u_shape

Array = array_types.Array
Float = array_types.Float
BlockKind = dit_config.BlockKind
ContextKeyValues = dit_inputs.ContextKeyValues
DiTConfig = dit_config.DiTConfig
Tokens = frame_tokens.Tokens


class DiTOutput(NamedTuple):
  """Output of the DiT.

  Attributes:
    velocity: [B, F, N, C], in the dtype of the latents.
    aux_losses: Load balancing loss of each MoE block, to be added to the
      objective, [num_moe_blocks].
    router_load: Fraction of the choices that fell on each expert,
      [num_moe_blocks, E].
  """

  velocity: Array
  aux_losses: Array
  router_load: Array


class DiT(nnx.Module):
  """Velocity of a clip's latents; see the module's docstring."""

  def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
    self.config = config
    dtypes = dict(
      dtype=jnp.dtype(config.dtype), param_dtype=jnp.dtype(config.param_dtype)
    )
    kwargs = dict(rngs=rngs, **dtypes)
    channels, width = config.latent_channels, config.width
    self.latent_embedding = layers.Linear(
      channels, width, kernel_axes=("latent", "embed"), **kwargs
    )
    if not config.num_token_indices:
      self.token_indices = None
    else:
      # Zero at first: the model starts as one of unordered tokens.
      self.token_indices = nnx.Param(
        jnp.zeros((config.num_token_indices, width), config.param_dtype),
        logical_axes=(None, "embed"),
      )
    self.time_embedding = time_embedding.TimeEmbedding(width, **kwargs)
    self.stages = nnx.List(
      [
        layers.stack_layers(
          lambda rngs, kind=stage.kind: dit_block.Block(
            config, kind, rngs=rngs
          ),
          stage.num_blocks,
          rngs,
        )
        for stage in config.stages
      ]
    )
    self.final_norm = layers.LayerNorm(width, **dtypes)
    self.final_linear = layers.Linear(
      width, channels, kernel_axes=("embed", "latent"), **kwargs
    )
    if config.step_embedding:
      self.step_embedding = time_embedding.StepEmbedding(width, **kwargs)

  def __call__(
    self,
    latents: Float[Array, "B F N C"],
    time: Float[Array, " B"] | Float[Array, "B F"],
    context: Float[Array, "B F I W"] | ContextKeyValues,
    *,
    temporal_mode: str | None = None,
    temporal_weight: Float[Array, " B"] | None = None,
    step: Float[Array, " B"] | None = None,
    frames_at_a_time: int = 0,
    inference: bool = False,
    on_host: streaming.OnHost = streaming.NOTHING,
  ) -> DiTOutput:
    """Predicts the velocity.

    Args:
      latents: Noisy latents of all frames.
      time: Flow time of each clip, or of each frame, 0 noise and 1 data.
      context: Image tokens of each frame, or their `encode_context`; zeros for
        the unconditional branch.
      temporal_mode: Overrides the configuration's mode.
      temporal_weight: Factor on temporal attention's update, for each clip; 0
        denoises its frames independently. None is 1.
      step: Step length of each clip, for a model with a step embedding; None is
        0, the velocity of the flow.
      frames_at_a_time: Number of frames that layers within a frame process at a
        time, to save memory in sampling; 0 takes all. Otherwise the router's
        figures are left out.
      inference: Whether no gradient is needed, which saves memory.
      on_host: Parts in the host's memory, for inference only. The router's
        figures are zeros if there are any.

    Raises:
      ValueError: Shapes do not match each other or the configuration.
    """
    mode = self._temporal_mode(temporal_mode)
    dit_inputs.check(self.config, latents, time, context)
    order = token_layout.block_order(self.config, mode, *latents.shape[1:3])
    x = self.embed(token_layout.reorder(latents, order), time, order, step)
    token_order = "natural" if order is None else "bit_reversed"
    x, aux_losses, load = self._run_stages(
      x,
      context,
      mode,
      token_order,
      temporal_weight,
      frames_at_a_time,
      inference,
      on_host,
    )
    normed = jax.tree.map(self.final_norm, x)
    velocity = self.final_linear(frame_tokens.latents(normed))
    # A bit reversal is its own inverse.
    velocity = token_layout.reorder(velocity, order).astype(latents.dtype)
    return DiTOutput(velocity, aux_losses, load)

  def embed(
    self,
    latents: Float[Array, "B F N C"],
    time: Float[Array, " B"] | Float[Array, "B F"],
    order: np.ndarray | None = None,
    step: Float[Array, " B"] | None = None,
  ) -> Tokens:
    """Embeds latents and puts the time token in front of every frame.

    Args:
      latents: Latents in the order that the blocks see.
      time: Flow time of each clip or frame.
      order: Order of the latents' blocks; None is the natural one.
      step: Step size of each clip, for a model with a step embedding.
    """
    tokens = self.latent_embedding(latents)
    if self.token_indices is not None:
      indices = partitioning.gather(self.token_indices, tokens.dtype)
      tokens = tokens + token_layout.reorder(indices[None, None], order)
    if time.ndim == 1:
      token = self.time_embedding(time)[:, None, None]
    else:
      # Frame by frame: products then have as many rows as with one time a clip,
      # and equal times give the same bits.
      token = jax.lax.map(self.time_embedding, time.T)
      token = jnp.swapaxes(token, 0, 1)[:, :, None]
    if self.config.step_embedding:
      step = jnp.zeros(len(time)) if step is None else step
      token = token + self.step_embedding(step)[:, None, None]
    elif step is not None:
      raise UserError("This model has no step embedding: leave step out.")
    # The step's length is added to the time token instead of being a further
    # one: the pretrained blocks were trained with one token in front.
    token = jnp.broadcast_to(token, (*tokens.shape[:2], 1, tokens.shape[-1]))
    return _constrain(frame_tokens.lead(token, tokens))

  def encode_context(
    self,
    context: Float[Array, "B F I W"],
    on_host: streaming.OnHost = streaming.NOTHING,
  ) -> ContextKeyValues:
    """Keys and values of all blocks, computed once for all sampling steps."""
    if on_host.layers:
      one = lambda block: block.cross_attention.encode_context(context)
      return ContextKeyValues(streaming.map_blocks(self.stages, one))

    def encode(
      block: dit_block.Block, carry: tuple[()], _: None
    ) -> tuple[tuple[()], attention.KeyValues]:
      return carry, block.cross_attention.encode_context(context)

    return ContextKeyValues(
      tuple(layers.scan_layers(encode, stage, ())[1] for stage in self.stages)
    )

  def block(self, index: int) -> dit_block.Block:
    """A single block, for tests and inspection."""
    stage, slot = self.config.locate(index)
    graphdef, params = nnx.split(self.stages[stage])
    return nnx.merge(graphdef, jax.tree.map(lambda p: p[slot], params))

  def _run_stages(
    self,
    x: Tokens,
    context: Array | ContextKeyValues,
    mode: str,
    token_order: str,
    temporal_weight: Array | None,
    frames_at_a_time: int,
    inference: bool,
    on_host: streaming.OnHost,
  ) -> tuple[Tokens, Array, Array]:
    # Four loops give the same result:
    #
    #   parts in the host's memory             _run_from_host
    #   training that recomputes blocks        _run_u_shape, the least memory
    #   other training                         below, skips sliced in order
    #   sampling                               below, skips read in place
    c = self.config
    settings = dict(
      temporal_mode=mode,
      token_order=token_order,
      frames_at_a_time=frames_at_a_time,
    )
    if any(on_host):
      return self._run_from_host(x, context, temporal_weight, settings, on_host)
    # The U runs blocks in loops and keeps nothing in the host's memory. Its blocks
    # share one context, so it has no place for keys and values, which differ
    # from block to block.
    if (
      c.remat_policy not in (None, remat.OFFLOAD)
      and c.scan_unroll == 1
      and not inference
      and not isinstance(context, ContextKeyValues)
    ):
      return self._run_u_shape(x, context, temporal_weight, settings)
    # Sampling reads skips in place. The gradient of such a read would sum over
    # all skips in every block, so training slices them in order instead. Of
    # seven blocks, 4, 5 and 6 take the outputs of 2, 1 and 0:
    #
    #   in place    kept = [x0 x1 x2]    block 4 + j reads entry 2 - j
    #   in order    skips = [x2 x1 x0]   the scan gives entry j to block 4 + j
    in_place = c.scan_unroll == 1 and inference
    skips = []  # Tokens, stacked [L, ...]; newest first unless in place.
    num_taken = 0
    figures = []
    for index, (stage, blocks) in enumerate(
      zip(self.config.stages, self.stages, strict=True)
    ):
      key_values = skip = None
      if isinstance(context, ContextKeyValues):
        key_values = context.stages[index]
      kept = None
      if stage.kind.has_skip:
        skip = jnp.arange(num_taken, num_taken + stage.num_blocks)
        if in_place:
          kept = _take(skips[::-1], 0, None)
        else:
          skip = _take(skips, num_taken, stage.num_blocks)
        num_taken += stage.num_blocks

      def run_block(
        block: dit_block.Block,
        x: Tokens,
        inputs: tuple[attention.KeyValues | None, Tokens | Array | None],
        pushes: bool = stage.kind.pushes,
        kept: Tokens | None = kept,
      ) -> tuple[Tokens, dit_block.BlockOutput]:
        key_values, skip = inputs
        if kept is not None:
          skip = _read_skip(kept, skip)
        out = block(
          x,
          context if key_values is None else key_values,
          skip,
          temporal_weight=temporal_weight,
          **settings,
        )
        out = out._replace(x=_constrain(out.x))
        # The scan stacks the second result: outputs that become skips alone.
        return out.x, out if pushes else out._replace(x=None)

      x, outputs = layers.scan_layers(
        run_block,
        blocks,
        x,
        (key_values, skip),
        unroll=c.scan_unroll,
        remat_policy=c.remat_policy,
      )
      if stage.kind.pushes:
        made = outputs.x
        if not in_place:
          made = jax.tree.map(functools.partial(jnp.flip, axis=0), made)
        skips.insert(0, made)
      if stage.kind.is_moe:
        figures.append((outputs.aux_loss, outputs.router_load))
    return x, *self._join_figures(figures)

  def _run_from_host(
    self,
    x: Tokens,
    context: Array | ContextKeyValues,
    temporal_weight: Array | None,
    settings: dict[str, str | int],
    on_host: streaming.OnHost,
  ) -> tuple[Tokens, Array, Array]:
    """Like `_run_stages`, with parts in the host's memory."""

    def apply(
      block: dit_block.Block,
      x: Tokens,
      context: Array | attention.KeyValues,
      skip: Tokens | None,
    ) -> Tokens:
      out = block(x, context, skip, temporal_weight=temporal_weight, **settings)
      return out.x

    key_values = None
    if isinstance(context, ContextKeyValues):
      key_values = context.stages
    x = streaming.run(
      self.config.stages, self.stages, x, context, key_values, apply, on_host
    )
    num_moe, experts = self.config.num_moe_blocks, self.config.num_experts
    return x, jnp.zeros(num_moe), jnp.zeros((num_moe, experts))

  def _run_u_shape(
    self,
    x: Tokens,
    context: Array,
    temporal_weight: Array | None,
    settings: dict[str, str | int],
  ) -> tuple[Tokens, Array, Array]:
    """Like `_run_stages`, but stores skips as inputs of blocks alone."""
    stages, params = [], []
    for kind, run in itertools.groupby(
      zip(self.config.stages, self.stages, strict=True),
      # A block does not know whether its output is kept as a skip.
      lambda stage: stage[0].kind._replace(pushes=False),
    ):
      plans, modules = zip(*run)
      # The stages of a group differ in nothing but `pushes`: one structure and
      # one loop, compiled once, serve them all.
      graphdef = nnx.split(modules[0])[0]

      def apply(
        params: nnx.State,
        x: Tokens,
        skip: Tokens | None,
        shared: tuple[Array, Array | None],
        graphdef: nnx.GraphDef = graphdef,
      ) -> tuple[Tokens, tuple[Array | None, Array | None]]:
        context, temporal_weight = shared
        out = nnx.merge(graphdef, params)(
          x, context, skip, temporal_weight=temporal_weight, **settings
        )
        return _constrain(out.x), (out.aux_loss, out.router_load)

      num_blocks = sum(plan.num_blocks for plan in plans)
      stages.append(u_shape.Stage(apply, num_blocks, kind.has_skip))
      stacks = [nnx.split(module)[1] for module in modules]
      params.append(jax.tree.map(lambda *p: jnp.concatenate(p), *stacks))
    x, figures = u_shape.run(
      tuple(stages),
      tuple(params),
      x,
      (context, temporal_weight),
      remat.policy(self.config.remat_policy),
    )
    # Blocks without experts have no figures.
    figures = [figure for figure in figures if figure[0] is not None]
    return x, *self._join_figures(figures)

  def _join_figures(
    self, figures: list[tuple[Array, Array]]
  ) -> tuple[Array, Array]:
    if not figures:
      return jnp.zeros((0,)), jnp.zeros((0, self.config.num_experts))
    aux_losses, load = (jnp.concatenate(parts) for parts in zip(*figures))
    return aux_losses, load

  def _temporal_mode(self, override: str | None) -> str:
    own = self.config.temporal_mode
    if override is None or override == own:
      return own
    if override not in attention.TEMPORAL_MODES:
      raise UserError(
        f"temporal_mode={override!r}: choose one of {attention.TEMPORAL_MODES}."
      )
    if own == "none":
      raise UserError(
        f"temporal_mode={override!r}: this model has the mode 'none',"
        " which has no temporal parameters; build it with another mode."
      )
    return override


def _constrain(x: Tokens) -> Tokens:
  """Splits tokens over the mesh by clips and frames."""
  return jax.tree.map(lambda y: partitioning.constrain(y, "batch", "frames"), x)


def _take(skips: list[Tokens], start: int, count: int | None) -> Tokens:
  """`count` skips of a list of stacks from `start` on; None takes all."""

  def take(*stacks: Array) -> Array:
    stack = stacks[0] if len(stacks) == 1 else jnp.concatenate(stacks)
    return stack if count is None else stack[start : start + count]

  return jax.tree.map(take, *skips)


def _read_skip(stacks: Tokens, number: Array) -> Tokens:
  """The skip that is taken after `number` others, of stacks, newest last."""
  return jax.tree.map(
    lambda stack: jax.lax.dynamic_index_in_dim(
      stack, len(stack) - 1 - number, 0, False
    ),
    stacks,
  )
