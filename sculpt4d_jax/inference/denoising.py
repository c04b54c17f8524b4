"""From noise to latents: the DiT, guided, inside a sampler.

`Denoiser.run` is one program. `begin` and `advance` are its parts, one call of
the velocity at a time: a program that runs between calls can report and stop,
and unlike one with a callback inside it is kept in JAX's compilation cache.
"""

import dataclasses
from typing import NamedTuple

import jax
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


Encoded = Array | dit_lib.ContextKeyValues


class Contexts(NamedTuple):
  """Image tokens, or their keys and values, as the settings need them.

  Attributes:
    clips: Those of the clips, for calls without guidance or in turns.
    nothing: Those of the empty context, for guidance in turns.
    both: Those of the clips and as many empty ones, for guidance in one batch.
  """

  clips: Encoded | None
  nothing: Encoded | None
  both: Encoded | None


@dataclasses.dataclass(frozen=True)
class Denoiser:
  """Integrates the guided velocity of some clips; made and used in a trace.

  Attributes:
    dit: The transformer.
    noise: Initial state.
    config: Steps and guidance; the seed is in the noise.
    known: Frames whose latents are given, which are returned unchanged, and
      blended ones.
    windows: Averages velocities over windows of the clips.
    fitting: Fits shapes to outlines; see `outlines.fitting`.
  """

  dit: dit_lib.DiT
  noise: Float[Array, "B F N C"]
  config: sampling.SamplingConfig
  known: known_frames.KnownFrames | None = None
  windows: windows_lib.Windows | None = None
  fitting: known_frames.Wrapper | None = None

  def run(self, context: Float[Array, "B F I W"]) -> Float[Array, "B F N C"]:
    """All calls: from noise to latents, given the clips' image tokens."""
    velocity = self._velocity(encode(self.dit, context, self.config))
    x = samplers.integrate(velocity, self.noise, self.config.calls)
    return finish(x, self.known)

  def begin(
    self, context: Float[Array, "B F I W"]
  ) -> tuple[Contexts, samplers.State]:
    """What `advance` needs for the first call."""
    contexts = encode(self.dit, context, self.config)
    velocity = self._velocity(contexts)
    state = samplers.begin(velocity, self.noise, self.config.calls)
    return contexts, _placed(state)

  def advance(
    self, contexts: Contexts, state: samplers.State, number: Array | int
  ) -> samplers.State:
    """Makes one call of the velocity, with this number from 0."""
    velocity = self._velocity(contexts)
    return _placed(samplers.advance(velocity, state, self.config.calls, number))

  def _velocity(self, contexts: Contexts) -> guidance.Velocity:
    """The guided velocity, of known frames too."""
    velocity = guided_velocity(self.dit, contexts, self.config, self.windows)
    if self.fitting is not None:
      velocity = guidance.wrap(velocity, self.fitting)
    if self.known is None:
      return velocity
    wrapper = known_frames.clean(self.known)
    if self.config.known == "path":
      wrapper = known_frames.on_path(self.known, self.noise)
    velocity = guidance.wrap(velocity, wrapper)
    if self.known.share is None:
      return velocity
    return guidance.wrap(velocity, known_frames.blended(self.known, self.noise))


def finish(
  x: Float[Array, "B F N C"], known: known_frames.KnownFrames | None
) -> Float[Array, "B F N C"]:
  """The latents, with known frames as they were given."""
  return x if known is None else known.put(x)


def _placed(state: samplers.State) -> samplers.State:
  """Divides the state like the clips, before the first call and after each."""
  return jax.tree.map(
    lambda x: partitioning.constrain(x, "batch", "frames"), state
  )


def encode(
  dit: dit_lib.DiT,
  context: Float[Array, "B F I W"],
  config: sampling.SamplingConfig,
) -> Contexts:
  """Keys and values of the contexts, once for all calls; to be traced."""
  on_host = streaming.OnHost(config.stream_layers, config.skips_on_host)

  def encoded(context: Array) -> Encoded:
    context = partitioning.constrain(context, "batch", "frames")
    if not config.cache_context:
      return context
    return dit.encode_context(context, on_host)

  if config.guidance_scale == 1.0:
    return Contexts(encoded(context), None, None)
  if config.guidance_in_turns:
    # Keys and values of zeros are zeros: one token does for all.
    nothing = jnp.zeros_like(context[:, :, :1])
    return Contexts(encoded(context), encoded(nothing), None)
  both = encoded(jnp.concatenate([context, jnp.zeros_like(context)]))
  clips = None if config.guides_always else encoded(context)
  return Contexts(clips, None, both)


def guided_velocity(
  dit: dit_lib.DiT,
  contexts: Contexts,
  config: sampling.SamplingConfig,
  windows: windows_lib.Windows | None = None,
) -> guidance.Velocity:
  """The velocity of clips, guided as the settings say; to be traced."""
  mode = config.temporal_mode
  if dit.config.temporal_mode == "none":
    mode = None

  on_host = streaming.OnHost(config.stream_layers, config.skips_on_host)

  def of_window(x: Array, time: Array, context: Encoded) -> Array:
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

  def velocity_of(context: Encoded) -> guidance.VelocityFunction:
    if windows is None:
      return lambda x, time: of_window(x, time, context)
    # [B, F, I, W], or keys and values [L, B, F, I, H, K].
    frame_axis = lambda y: 1 if y.ndim == 4 else 2
    return windows_lib.averaged(of_window, context, windows, frame_axis)

  conditional = None
  if contexts.clips is not None:
    conditional = velocity_of(contexts.clips)
  if config.guidance_scale == 1.0:
    return conditional
  if config.guidance_in_turns:
    pair = guidance.pair_in_turns(conditional, velocity_of(contexts.nothing))
  else:
    pair = guidance.pair_in_one_batch(velocity_of(contexts.both))
  return guidance.scheduled(
    pair,
    conditional,
    config.guidance_scale,
    interval=config.guidance_interval,
    keep_difference=config.keep_difference,
  )
