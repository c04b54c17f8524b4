"""The three networks of a preset with their weights, ready to sample.

Every function here is compiled once for a clip's shape: the image encoder; the
whole sampling loop, in which the context's keys and values are computed once a
clip; the autoencoder's decoder; the field at a chunk of points.

Frames are encoded a few at a time and decoded one by one, so that only the DiT
sees a whole clip. What it needs of the device's memory can be cut further, at
the price of time: `offload` keeps the other two networks on the host while they
are not used, and `SamplingConfig` has two more ways. `memory_plan.py` tells
what that makes of a given device.
"""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.diffusion import guidance
from sculpt4d_jax.diffusion import samplers
from sculpt4d_jax.models import attention
from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.weights import checkpoint_parts
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights import model_folders

Array = array_types.Array
Float = array_types.Float
UInt8 = array_types.UInt8

NOISES = ("independent", "shared")
# Frames that the image encoder takes at a time.
FRAMES_AT_A_TIME = 8


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How latents are sampled; see `configs/base.py`.

  Attributes:
    num_frames: Frames that a longer clip is resampled to.
    num_steps: Euler steps as Hunyuan3D 2.1 counts them; the model is called
      once less.
    guidance_scale: Of classifier-free guidance; 1 turns it off.
    timestep_shift: Above 1, steps are longer near the data.
    noise: "independent" for every frame, or "shared" by all of them.
    temporal_mode: "sparse", "full", "token" or "none".
    seed: Same seed, same machine: same result.
    guidance_in_turns: Calls the DiT with and without context one after the
      other instead of together: less memory, the same result but for rounding.
    cache_context: Keeps the context's keys and values of all blocks, rather
      than compute them in every step.
    offload: Keeps the image encoder and the autoencoder on the host while they
      are not used.
  """

  num_frames: int
  num_steps: int
  guidance_scale: float
  timestep_shift: float
  noise: str
  temporal_mode: str
  seed: int
  guidance_in_turns: bool = False
  cache_context: bool = True
  offload: bool = False

  def __post_init__(self):
    if self.num_frames < 1:
      raise ValueError(f"num_frames={self.num_frames} must be at least 1.")
    if self.num_steps < 2:
      raise ValueError(f"num_steps={self.num_steps} must be at least 2.")
    if self.noise not in NOISES:
      raise ValueError(f"noise={self.noise!r}: choose one of {NOISES}.")
    if self.temporal_mode not in attention.TEMPORAL_MODES:
      raise ValueError(
        f"temporal_mode={self.temporal_mode!r}: choose one of"
        f" {attention.TEMPORAL_MODES}."
      )


class Sculpt4D:
  """Image encoder, DiT and autoencoder with their weights."""

  def __init__(
    self,
    vae: shape_vae.ShapeVAE,
    image_encoder: image_encoder_lib.ImageEncoder,
    dit: dit_lib.DiT,
    details: dict[str, Any] | None = None,
    *,
    offload: bool = False,
  ):
    self.vae_config = vae.config
    self.encoder_config = image_encoder.config
    self.dit_config = dit.config
    self.details = details or {}
    self._vae_def, self._vae = nnx.split(vae)
    self._encoder_def, self._encoder = nnx.split(image_encoder)
    self._dit_def, self._dit = nnx.split(dit)
    self._offload = offload
    place = jax.device_get if offload else jax.device_put
    self._vae, self._encoder = place((self._vae, self._encoder))
    self._dit = jax.device_put(self._dit)
    self._encode = jax.jit(self._encode_impl)
    self._denoise = jax.jit(
      self._denoise_impl, static_argnames=("config", "on_step")
    )
    self._keys_values = jax.jit(self._keys_values_impl)
    self._field = jax.jit(self._field_impl)

  @classmethod
  def load(
    cls,
    model: ml_collections.ConfigDict,
    folder: str | pathlib.Path,
    *,
    dtype: str | None = None,
    offload: bool = False,
  ) -> "Sculpt4D":
    """Builds a preset's networks and reads their weights.

    Args:
      model: The preset's `model` section.
      folder: What launch.train or launch.convert_weights wrote.
      dtype: Of the parameters; see `model_folders.load`.
      offload: Keeps the image encoder and the autoencoder on the host while
        they are not used.

    Raises:
      model_files.ModelFileError: Weights are missing or do not fit.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
      raise model_files.ModelFileError(
        f"{folder} is no folder of weights: expected one that launch.train or"
        " launch.convert_weights wrote. A downloaded checkpoint is converted"
        " first: python -m launch.convert_weights --help."
      )
    modules, details = {}, {}
    for name, (kind, config) in parts(model).items():
      abstract = nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))
      abstract_params = nnx.split(abstract)[1]
      params, details[name] = model_folders.load(
        folder,
        name,
        abstract_params,
        config,
        dtype,
        on_host=offload and name != "dit",
      )
      if "scale_factor" in details[name]:
        # The latents' scale is measured in training, after the config.
        config = dataclasses.replace(
          config, scale_factor=details[name]["scale_factor"]
        )
        abstract = nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))
      modules[name] = nnx.merge(nnx.split(abstract)[0], params)
    return cls(**modules, details=details, offload=offload)

  def set_weights(self, image_encoder: nnx.State, dit: nnx.State) -> None:
    """Takes other weights of the same shapes; nothing is compiled anew."""
    self._encoder = jax.device_get(image_encoder)
    if not self._offload:
      self._encoder = jax.device_put(self._encoder)
    self._dit = jax.device_put(dit)

  def sample(
    self,
    images: UInt8[np.ndarray, "F S S 3"],
    config: SamplingConfig,
    on_step: Callable[[int], None] | None = None,
  ) -> Float[np.ndarray, "F N C"]:
    """Samples the diffusion latents of one clip.

    Args:
      images: The clip on a white background, cropped; see `io/matting/crop.py`.
      config: Steps, guidance, seed.
      on_step: Called from inside the compiled loop with the number of steps
        that are done.
    """
    key = jax.random.key(config.seed)
    context = self._encode(self._encoder, jnp.asarray(images))
    latents = self._denoise(
      self._dit,
      context,
      key,
      config=dataclasses.replace(config, seed=0),
      on_step=on_step,
    )
    latents = jax.device_get(latents)
    jax.effects_barrier()
    return latents

  def _encode_impl(self, params, images):
    encoder = nnx.merge(self._encoder_def, params)

    def encode(images):
      return encoder(images.astype(jnp.float32) / 127.5 - 1.0)

    # Whole groups and a rest. `lax.map` would do it frame by frame or hide the
    # number of frames from the attention, which chooses its chunks by it.
    whole = len(images) // FRAMES_AT_A_TIME * FRAMES_AT_A_TIME
    rest = encode(images[whole:]) if whole < len(images) else None
    if not whole:
      return rest
    groups = images[:whole].reshape(-1, FRAMES_AT_A_TIME, *images.shape[1:])
    context = jax.lax.map(encode, groups)
    context = context.reshape(whole, *context.shape[2:])
    return context if rest is None else jnp.concatenate([context, rest])

  def _denoise_impl(self, params, context, key, config, on_step):
    dit = nnx.merge(self._dit_def, params)
    noise = self._noise(key, len(context), config.noise)
    return denoise_clips(dit, context[None], noise, config, on_step)[0]

  def _noise(self, key, num_frames, kind):
    frames = 1 if kind == "shared" else num_frames
    shape = (
      1,
      frames,
      self.vae_config.num_latents,
      self.vae_config.latent_channels,
    )
    noise = jax.random.normal(key, shape, jnp.float32)
    return jnp.broadcast_to(noise, (1, num_frames, *shape[2:]))

  def field(
    self, latents: Float[np.ndarray, "N C"]
  ) -> Callable[[np.ndarray], np.ndarray]:
    """The field of one frame: points [Q, 3] -> values [Q], positive inside."""
    vae = jax.device_put(self._vae)  # From the host, if it is there.
    key_values = self._keys_values(vae, jnp.asarray(latents))

    def evaluate(points: np.ndarray) -> np.ndarray:
      return np.asarray(self._field(vae, key_values, points))

    return evaluate

  def _keys_values_impl(self, params, latents):
    vae = nnx.merge(self._vae_def, params)
    return vae.field_keys_values(vae.decode_from_diffusion(latents[None]))

  def _field_impl(self, params, key_values, points):
    vae = nnx.merge(self._vae_def, params)
    return vae.query_field(key_values, points[None])[0].astype(jnp.float32)


def denoise_clips(
  dit: dit_lib.DiT,
  context: Float[Array, "B F I W"],
  noise: Float[Array, "B F N C"],
  config: SamplingConfig,
  on_step: Callable[[int], None] | None = None,
) -> Float[Array, "B F N C"]:
  """Follows the guided velocity from noise to latents; to be traced.

  Args:
    dit: The transformer.
    context: The clips' image tokens.
    noise: Where to start.
    config: Steps and guidance; the seed is in the noise.
    on_step: See `Sculpt4D.sample`.
  """
  mode = config.temporal_mode
  if dit.config.temporal_mode == "none":
    mode = None

  def velocity_of(context):
    context = partitioning.constrain(context, "batch", "frames")
    if config.cache_context:
      context = dit.encode_context(context)
    return lambda x, time: dit(x, time, context, temporal_mode=mode).velocity

  if config.guidance_scale == 1.0:
    velocity = velocity_of(context)
  elif config.guidance_in_turns:
    # Keys and values of zeros are zeros: one token does for all.
    nothing = jnp.zeros_like(context[:, :, :1])
    velocity = guidance.one_after_the_other(
      velocity_of(context), velocity_of(nothing), config.guidance_scale
    )
  else:
    both = jnp.concatenate([context, jnp.zeros_like(context)])
    velocity = guidance.in_one_batch(velocity_of(both), config.guidance_scale)
  times = samplers.euler_times(config.num_steps, shift=config.timestep_shift)
  if on_step is not None:
    velocity = _reporting(velocity, times, on_step)
  return samplers.euler(velocity, noise, times)


def weights_folder(preset: str, given: str | None) -> pathlib.Path:
  """The folder of weights: the given one, else the preset's.

  Raises:
    ValueError: There is neither.
  """
  if given:
    return pathlib.Path(given)
  if not preset:
    raise ValueError(
      "This preset ships no weights; give a folder of them with"
      " --checkpoint=FOLDER."
    )
  root = pathlib.Path(__file__).resolve().parents[2]
  return root / preset


def parts(model: ml_collections.ConfigDict) -> dict[str, tuple[Any, Any]]:
  """Network and configuration of every part."""
  return {
    name: (kind, config(**model[name]))
    for name, (kind, config) in checkpoint_parts.KINDS.items()
  }


def _reporting(velocity, times, on_step):
  """A velocity that tells how far the sampler has come."""
  starts = jnp.asarray(times[:-1])

  def reporting(x, time):
    result = velocity(x, time)
    # Depends on the result, so that the step is done when it reports.
    done = jnp.searchsorted(starts, time[0], side="right")
    done = done + (0.0 * result.ravel()[0]).astype(done.dtype)
    jax.debug.callback(lambda n: on_step(int(n)), done)
    return result

  return reporting
