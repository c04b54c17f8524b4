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
import threading
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax import shipped
from sculpt4d_jax.inference import denoising
from sculpt4d_jax.inference import sampling as sampling_lib
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io import paths
from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import networks
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights import model_folders

Array = array_types.Array
Float = array_types.Float
UInt8 = array_types.UInt8

SamplingConfig = sampling_lib.SamplingConfig
# Frames that the image encoder takes at a time.
FRAMES_AT_A_TIME = 8


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
      self._denoise_impl, static_argnames=("config", "on_call")
    )
    self._noise = jax.jit(self._noise_impl, static_argnums=(1, 2))
    self._keys_values = jax.jit(self._keys_values_impl)
    self._field = jax.jit(self._field_impl)
    self._on_step: Callable[[int], None] | None = None
    self._reporting = threading.Lock()

  @classmethod
  def load(
    cls,
    model: networks.NetworkConfigs,
    folder: paths.PathLike,
    *,
    dtype: str | None = None,
    offload: bool = False,
  ) -> "Sculpt4D":
    """Builds a preset's networks and reads their weights.

    Args:
      model: Configurations of the networks.
      folder: What launch.train or launch.convert_weights wrote.
      dtype: Of the parameters; see `model_folders.load`.
      offload: Keeps the image encoder and the autoencoder on the host while
        they are not used.

    Raises:
      model_files.ModelFileError: Weights are missing or do not fit.
    """
    folder = local_copies.fetch(folder)
    if not folder.is_dir():
      raise model_files.ModelFileError(
        f"{folder} is no folder of weights: expected one that a training or a"
        " conversion wrote. A downloaded checkpoint is converted first: see"
        " `sculpt4d convert --help`."
      )
    modules, details = {}, {}
    for name, (kind, config) in model.parts().items():
      graphdef, abstract_params = networks.abstract(kind, config)
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
        graphdef, _ = networks.abstract(kind, config)
      modules[name] = nnx.merge(graphdef, params)
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
      on_step: Called from inside the compiled loop with the number of calls
        of the velocity that are done.
    """
    noise = self.draw_noise(config.seed, len(images), config.noise)
    return self.denoise(
      self.encode(images)[None], noise[None], config, on_step
    )[0]

  def encode(
    self, images: UInt8[np.ndarray, "F S S 3"]
  ) -> Float[Array, "F I W"]:
    """The image tokens of a clip's frames; see `sample`."""
    return self._encode(self._encoder, jnp.asarray(images))

  def draw_noise(
    self, seed: int, num_frames: int, kind: str = "independent"
  ) -> Float[Array, "F N C"]:
    """What a clip is denoised from."""
    return self._noise(jax.random.key(seed), num_frames, kind)

  def denoise(
    self,
    context: Float[Array, "B F I W"],
    noise: Float[Array, "B F N C"],
    config: SamplingConfig,
    on_step: Callable[[int], None] | None = None,
  ) -> Float[np.ndarray, "B F N C"]:
    """Samples the latents of clips of equal length from given noise.

    Args:
      context: What `encode` made of each clip.
      noise: Where to start.
      config: Steps and guidance; its seed and frames are not used.
      on_step: See `sample`.
    """
    with self._reporting:
      self._on_step = on_step
      latents = self._denoise(
        self._dit,
        context,
        noise,
        config=dataclasses.replace(config, seed=0, num_frames=1),
        # Always the same function: another one would be compiled anew.
        on_call=None if on_step is None else self._tell,
      )
      latents = jax.device_get(latents)
      jax.effects_barrier()
    return latents

  def _tell(self, done: int) -> None:
    """Calls the listener of the clip that is being denoised."""
    if self._on_step is not None:
      self._on_step(done)

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

  def _denoise_impl(self, params, context, noise, config, on_call):
    dit = nnx.merge(self._dit_def, params)
    return denoising.denoise_clips(dit, context, noise, config, on_call)

  def _noise_impl(self, key, num_frames, kind):
    frames = 1 if kind == "shared" else num_frames
    sizes = self.vae_config.num_latents, self.vae_config.latent_channels
    noise = jax.random.normal(key, (frames, *sizes), jnp.float32)
    return jnp.broadcast_to(noise, (num_frames, *sizes))

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


def weights_folder(preset: str, given: str | None) -> Any:
  """The folder of weights: the given one, else the preset's.

  Raises:
    ValueError: There is neither.
  """
  if given:
    return paths.of(given) if paths.is_remote(given) else shipped.find(given)
  if not preset:
    raise ValueError("This preset ships no weights: name a folder of them.")
  return shipped.find(preset)
