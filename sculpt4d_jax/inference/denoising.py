"""From noise to latents: the DiT, guided, inside a sampler."""

from collections.abc import Callable

import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.diffusion import guidance
from sculpt4d_jax.diffusion import known_frames
from sculpt4d_jax.diffusion import samplers
from sculpt4d_jax.diffusion import windows as windows_lib
from sculpt4d_jax.inference import sampling
from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.models import streaming

Array = array_types.Array
Float = array_types.Float


def denoise_clips(
  dit: dit_lib.DiT,
  context: Float[Array, "B F I W"],
  noise: Float[Array, "B F N C"],
  config: sampling.SamplingConfig,
  on_call: Callable[[int], None] | None = None,
  known: known_frames.KnownFrames | None = None,
  windows: windows_lib.Windows | None = None,
) -> Float[Array, "B F N C"]:
  """Integrates the guided velocity from noise to latents; to be traced.

  Args:
    dit: The transformer.
    context: The clips' image tokens.
    noise: Initial state.
    config: Steps and guidance; the seed is in the noise.
    on_call: Called from inside the compiled loop with the number of finished
      velocity calls.
    known: Frames whose latents are given; they are returned unchanged.
    windows: Averages velocities over windows of the clips.
  """
  velocity = guided_velocity(dit, context, config, windows)
  if known is not None:
    wrapper = known_frames.clean(known)
    if config.known == "path":
      wrapper = known_frames.on_path(known, noise)
    velocity = guidance.wrap(velocity, wrapper)
  x = samplers.integrate(velocity, noise, config.calls, on_call=on_call)
  return x if known is None else known.put(x)


def guided_velocity(
  dit: dit_lib.DiT,
  context: Float[Array, "B F I W"],
  config: sampling.SamplingConfig,
  windows: windows_lib.Windows | None = None,
) -> guidance.Velocity:
  """The velocity of clips, guided as the settings say; to be traced."""
  mode = config.temporal_mode
  if dit.config.temporal_mode == "none":
    mode = None

  on_host = streaming.OnHost(config.stream_layers, config.skips_on_host)

  def encoded(context: Array) -> Array | dit_lib.ContextKeyValues:
    context = partitioning.constrain(context, "batch", "frames")
    if not config.cache_context:
      return context
    return dit.encode_context(context, on_host)

  def of_window(
    x: Array, time: Array, context: Array | dit_lib.ContextKeyValues
  ) -> Array:
    step = None
    if config.takes_shortcuts and dit.config.step_embedding:
      step = jnp.full(len(x), 1.0 / (config.num_steps - 1))
    return dit(
      x,
      time,
      context,
      temporal_mode=mode,
      step=step,
      frames_at_a_time=config.frames_at_a_time,
      inference=True,
      on_host=on_host,
    ).velocity

  def velocity_of(
    context: Array | dit_lib.ContextKeyValues,
  ) -> guidance.VelocityFunction:
    if windows is None:
      return lambda x, time: of_window(x, time, context)
    # [B, F, I, W], or keys and values [L, B, F, I, H, K].
    frame_axis = lambda y: 1 if y.ndim == 4 else 2
    return windows_lib.averaged(of_window, context, windows, frame_axis)

  if config.guidance_scale == 1.0:
    return velocity_of(encoded(context))
  conditional = None
  if config.guidance_in_turns:
    # Keys and values of zeros are zeros: one token does for all.
    nothing = jnp.zeros_like(context[:, :, :1])
    conditional = velocity_of(encoded(context))
    pair = guidance.pair_in_turns(conditional, velocity_of(encoded(nothing)))
  else:
    both = encoded(jnp.concatenate([context, jnp.zeros_like(context)]))
    pair = guidance.pair_in_one_batch(velocity_of(both))
    if not config.guides_always:
      conditional = velocity_of(encoded(context))
  return guidance.scheduled(
    pair,
    conditional,
    config.guidance_scale,
    interval=config.guidance_interval,
    keep_difference=config.keep_difference,
  )
