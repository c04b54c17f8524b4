"""The three networks of a preset with their weights, ready to sample.

Five functions are compiled, once for each shape of clips: the image encoder;
the context's keys and values; a call of the guided velocity with the sampler's
update; the autoencoder's decoder; the field at a chunk of points.

Frames are encoded a few at a time and decoded one by one, so only the DiT holds
a complete clip. Memory can be reduced further at the cost of time: `offload`
keeps the other two networks on the host while they are not used,
`stream_layers` also the transformer's blocks, and `SamplingConfig` has more
options. `memory_plan.py` predicts the result for
a given device.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import threading
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax import shipped
from sculpt4d_jax.diffusion import known_frames as known_frames_lib
from sculpt4d_jax.diffusion import samplers
from sculpt4d_jax.diffusion import windows as windows_lib
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import denoising
from sculpt4d_jax.inference import devices as devices_lib
from sculpt4d_jax.inference import mirror
from sculpt4d_jax.inference import outlines as outlines_lib
from sculpt4d_jax.inference import sampling as sampling_lib
from sculpt4d_jax.io import paths
from sculpt4d_jax.models import attention
from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import networks
from sculpt4d_jax.models import quantization
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.models import streaming
from sculpt4d_jax.models import view_head as view_head_lib
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights import model_folders
from sculpt4d_jax.weights import view_heads

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
    stream_layers: bool = False,
    devices: Sequence[jax.Device] = (),
    find_view_head: Callable[[], view_head_lib.ViewHead | None] = lambda: None,
  ):
    """Takes networks.

    Args:
      vae: The autoencoder.
      image_encoder: The image encoder.
      dit: The transformer.
      details: Details from their files.
      offload: Keeps the image encoder and the autoencoder on the host while
        they are not used.
      stream_layers: Keeps the transformer's blocks in the host's memory, from
        which a device copies them one by one.
      devices: Devices that share a clip; none leaves all to the default one.
        One device streams layers. With devices of several processes, all of
        these must call `denoise` with the same arguments.
      find_view_head: Reads the head that predicts how pictures were taken, to
        fit shapes to outlines; called once, when it is needed.

    Raises:
      ValueError: The device cannot stream layers.
    """
    self._find_view_head = find_view_head
    self.vae_config = vae.config
    self.encoder_config = image_encoder.config
    self.dit_config = dit.config
    self.details = details or {}
    self._vae_def, self._vae = nnx.split(vae)
    self._encoder_def, self._encoder = nnx.split(image_encoder)
    self._dit_def, params = nnx.split(dit)
    self._offload = offload
    place = jax.device_get if offload else jax.device_put
    self._vae, self._encoder = place((self._vae, self._encoder))
    self._placed_vae: nnx.State | None = None
    self._streams = stream_layers
    leaves = jax.tree.leaves(params)
    self._is_packed = any(leaf.dtype == np.int8 for leaf in leaves)
    self._transformer = devices_lib.Transformer(
      params, dit.config, devices, stream_layers
    )
    self._encode = jax.jit(self._encode_impl)
    static = dict(static_argnames=("config", "windows"))
    self._begin = jax.jit(self._begin_impl, **static)
    self._advance = jax.jit(self._advance_impl, **static)
    self._encode_surface = jax.jit(self._encode_surface_impl)
    self._noise = jax.jit(self._noise_impl, static_argnums=(1, 2))
    self._keys_values = jax.jit(self._keys_values_impl)
    self._field = jax.jit(self._field_impl)
    # A thread's clip decides where the transformer's weights are.
    self._denoising = threading.Lock()
    self._placing = threading.Lock()

  @classmethod
  def load(
    cls,
    model: networks.NetworkConfigs,
    folder: paths.PathLike,
    *,
    dtype: str | None = None,
    devices: Sequence[jax.Device] = (),
    sampling: SamplingConfig | None = None,
  ) -> "Sculpt4D":
    """Builds a preset's networks and reads their weights.

    Args:
      model: Configurations of the networks.
      folder: Folder written by a training or a conversion.
      dtype: Dtype of the parameters; see `model_folders.load`.
      devices: Devices that share a clip; none leaves all to the default one.
      sampling: Says how weights are kept: `offload`, `stream_layers` and
        `weights`, by default as stored, on the device. The other fields are
        not used.

    Raises:
      ValueError: The device cannot stream layers.
      model_files.ModelFileError: Weights are missing or do not fit.
    """
    folder = model_folders.local(folder)
    if not folder.is_dir():
      raise model_files.ModelFileError(
        f"{folder} is no folder of weights: expected one that a training or a"
        " conversion wrote. A downloaded checkpoint is converted first: see"
        " `sculpt4d convert --help`."
      )
    offload = sampling is not None and sampling.offload
    streams = sampling is not None and sampling.stream_layers
    packs = sampling is not None and sampling.weights == "int8"
    modules, details = {}, {}
    for name, (kind, config) in model.parts().items():
      # One block in a loop is traced and loaded sooner than all of them one
      # after the other, which is for training, and computes as fast.
      config = dataclasses.replace(config, scan_unroll=1)
      graphdef, abstract_params = networks.abstract(kind, config)
      params, details[name] = model_folders.load(
        folder,
        name,
        abstract_params,
        config,
        dtype,
        # Kernels are packed, or stay, before they reach the device.
        on_host=packs or streams if name == "dit" else offload,
      )
      if "scale_factor" in details[name]:
        # The latents' scale is measured in training, after the config.
        config = dataclasses.replace(
          config, scale_factor=details[name]["scale_factor"]
        )
      modules[name] = nnx.merge(graphdef, params)
      modules[name].config = config
    if packs:
      quantization.quantize(modules["dit"].stages)
      # Packed kernels are not split over devices.
      devices = devices_lib.first(devices)
    return cls(
      **modules,
      details=details,
      offload=offload,
      stream_layers=streams,
      devices=devices,
      find_view_head=lambda: view_heads.load(folder),
    )

  @functools.cached_property
  def view_head(self) -> view_head_lib.ViewHead | None:
    """Head that predicts how pictures were taken; None without one."""
    return self._find_view_head()

  def set_weights(self, image_encoder: nnx.State, dit: nnx.State) -> None:
    """Replaces the weights by others of the same shapes; no recompilation."""
    self._encoder = jax.device_get(image_encoder)
    if not self._offload:
      self._encoder = jax.device_put(self._encoder)
    self._transformer.replace(dit)

  @property
  def _dit(self) -> nnx.State:
    return self._transformer.params

  def sample(
    self,
    images: UInt8[np.ndarray, "F S S 3"],
    config: SamplingConfig,
    on_step: Callable[[int], None] | None = None,
    known_frames: Mapping[int, Float[np.ndarray, "N C"]] | None = None,
    windows: windows_lib.Windows | None = None,
    masks: UInt8[np.ndarray, "F S S"] | None = None,
  ) -> Float[np.ndarray, "F N C"] | Float[np.ndarray, "F 2 N C"]:
    """Samples the diffusion latents of one clip.

    With `config.mirror`, those of its mirror image too; see `mirror.py`.

    Args:
      images: The clip on a white background, cropped; see `io/matting/crop.py`.
      config: Steps, guidance, seed.
      on_step: Called with the number of calls of the velocity that are done,
        after each of them.
      known_frames: Latents of frames that are given, by their index; they are
        returned unchanged. Known first frames extend a clip; known frames at
        both ends fill the gap between them.
      windows: Averages velocities over windows of a long clip.
      masks: Coverage of the pictures, 255 on the object. With them, and a view
        head, shapes are fitted to outlines as `config.outline_steps` says.

    Raises:
      ValueError: A known frame is not of this clip, or not of this model.
    """
    if config.mirror:
      return mirror.sample(
        self.sample, images, config, on_step, known_frames, windows, masks
      )
    noise = self._draw(config.seed, len(images), config.noise)
    known = None
    if known_frames:
      known = self._known(known_frames, noise.shape[1:])
    context = self._encoded(images)
    outlines = self.outlines(context, masks, config)
    inputs = context, noise, config, on_step, known, windows, outlines
    return self.denoise(*inputs)[0]

  def outlines(
    self,
    context: Float[Array, "1 F I W"],
    masks: UInt8[np.ndarray, "F S S"] | None,
    config: SamplingConfig,
  ) -> outlines_lib.Outlines | None:
    """What shapes are fitted to, or None if they are not; see `sample`."""
    if masks is None or not config.outline_steps or self.view_head is None:
      return None
    numbers = self.view_head(context)[0]
    if self.dit_config.picture_frame:
      numbers = outlines_lib.level(numbers)
    return outlines_lib.gather(numbers, masks)

  def _known(
    self, given: Mapping[int, np.ndarray], shape: tuple[int, ...]
  ) -> known_frames_lib.KnownFrames:
    """Known frames of one clip."""
    data, is_known = np.zeros(shape, np.float32), np.zeros(shape[0], bool)
    for index, latents in given.items():
      if not 0 <= index < shape[0]:
        raise UserError(
          f"Known frame {index} is not among the clip's {shape[0]} frames,"
          f" which are 0 to {shape[0] - 1}."
        )
      if np.shape(latents) != shape[1:]:
        raise UserError(
          f"Latents of known frame {index} are {np.shape(latents)}, but this"
          f" model's are {shape[1:]}."
        )
      data[index], is_known[index] = latents, True
    return known_frames_lib.KnownFrames(is_known[None], data[None])

  def encode(
    self, images: UInt8[np.ndarray, "F S S 3"]
  ) -> Float[Array, "F I W"]:
    """The image tokens of a clip's frames; see `sample`."""
    return self._encoded(images)[0]

  def _encoded(self, images: np.ndarray) -> Float[Array, "1 F I W"]:
    self._placed_vae = None  # Makes room where it is offloaded.
    return self._encode(self._encoder, images)

  def draw_noise(
    self, seed: int, num_frames: int, kind: str = "independent"
  ) -> Float[Array, "F N C"]:
    """Draws the noise from which a clip is denoised."""
    return self._draw(seed, num_frames, kind)[0]

  def _draw(
    self, seed: int, num_frames: int, kind: str
  ) -> Float[Array, "1 F N C"]:
    # As `jax.random.key` takes a whole number, whose program is one more.
    return self._noise(np.int64(seed), num_frames, kind)

  def denoise(
    self,
    context: Float[Array, "B F I W"],
    noise: Float[Array, "B F N C"],
    config: SamplingConfig,
    on_step: Callable[[int], None] | None = None,
    known: known_frames_lib.KnownFrames | None = None,
    windows: windows_lib.Windows | None = None,
    outlines: outlines_lib.Outlines | None = None,
  ) -> Float[np.ndarray, "B F N C"]:
    """Samples the latents of clips of equal length from given noise.

    Args:
      context: Context of each clip, from `encode`.
      noise: Initial state, before the temperature.
      config: Steps and guidance; its seed and frames are not used.
      on_step: See `sample`.
      known: Frames that are given; data are float32 [B, F, N, C].
      windows: Averages velocities over windows. `long_clips` samples windows
        one after the other instead.
      outlines: Outlines of the only clip, from `outlines`, to fit shapes to.

    Raises:
      ValueError: The device cannot keep skips on the host, or weights in 8 bits
        are asked of a model that was loaded with others.
    """
    if config.weights == "int8" and not self._is_packed:
      raise UserError(
        "weights='int8' packs weights as they are loaded, and these are not"
        " packed: load the model with sampling.weights='int8'."
      )
    if config.skips_on_host:
      streaming.check(self._transformer.device)
    options = {
      "known": known,
      # Numbers that change no program, so that it is compiled once.
      "config": dataclasses.replace(
        config,
        seed=0,
        num_frames=1,
        temperature=1.0,
        mirror=False,
        stream_layers=self._streams,
      ),
      "windows": windows,
    }
    frames = noise.shape[1] if windows is None else windows.size
    with self._denoising:
      self._placed_vae = None
      num_frames = min(frames, noise.shape[1])
      with self._transformer.on_mesh(config, num_frames) as place:
        noise, context, options["known"] = place((noise, context, known))
        noise, contexts, state = self._begin(
          self._dit, noise, context, np.float32(config.temperature), **options
        )
        if outlines is not None:
          fitted = {"vae": self._vae_on_device(), "outlines": outlines}
          options |= place(fitted)
        for number in range(len(config.calls)):
          state = self._advance(
            self._dit, noise, contexts, state, np.int32(number), **options
          )
          if on_step is not None:
            jax.block_until_ready(state)
            on_step(number + 1)
        x = partitioning.on_host(state.x)
        return jax.device_get(denoising.finish(x, known))

  def _encode_impl(self, params: nnx.State, images: Array) -> Array:
    encoder = nnx.merge(self._encoder_def, params)

    def encode(images: Array) -> Array:
      return encoder(images.astype(jnp.float32) / 127.5 - 1.0)

    # Full groups and a remainder. `lax.map` would go frame by frame, or hide
    # the number of frames from the attention, which chooses its chunk size by
    # it.
    whole = len(images) // FRAMES_AT_A_TIME * FRAMES_AT_A_TIME
    rest = encode(images[whole:]) if whole < len(images) else None
    if not whole:
      return rest[None]
    groups = images[:whole].reshape(-1, FRAMES_AT_A_TIME, *images.shape[1:])
    context = jax.lax.map(encode, groups)
    context = context.reshape(whole, *context.shape[2:])
    if rest is not None:
      context = jnp.concatenate([context, rest])
    return context[None]

  def _begin_impl(
    self,
    params: nnx.State,
    noise: Array,
    context: Array,
    temperature: Array,
    **options: Any,
  ) -> tuple[Array, denoising.Contexts, samplers.State]:
    dit = nnx.merge(self._dit_def, params)
    noise = noise * temperature
    return noise, *denoising.Denoiser(dit, noise, **options).begin(context)

  def _advance_impl(
    self, params: nnx.State, noise: Array, *call: Any, **options: Any
  ) -> samplers.State:
    dit = nnx.merge(self._dit_def, params)
    vae, outlines = options.pop("vae", None), options.pop("outlines", None)
    if outlines is not None:
      vae = nnx.merge(self._vae_def, vae)
      config = options["config"]
      options["fitting"] = outlines_lib.fitting(vae, outlines, config)
    return denoising.Denoiser(dit, noise, **options).advance(*call)

  def _noise_impl(self, seed: Array, num_frames: int, kind: str) -> Array:
    frames = 1 if kind == "shared" else num_frames
    sizes = self.vae_config.num_latents, self.vae_config.latent_channels
    key = jax.random.key(seed)
    noise = jax.random.normal(key, (frames, *sizes), jnp.float32)
    return jnp.broadcast_to(noise, (1, num_frames, *sizes))

  def encode_surface(
    self,
    surface: Float[np.ndarray, "P R"],
    queries: Float[np.ndarray, "N R"],
    noise: Float[np.ndarray, "N C"],
  ) -> Float[np.ndarray, "N C"]:
    """The latents of one shape; see `ShapeVAE.encode_to_diffusion`."""
    vae = self._vae_on_device()
    return jax.device_get(self._encode_surface(vae, surface, queries, noise))

  def _vae_on_device(self) -> nnx.State:
    """The autoencoder's weights, copied once for all frames of a clip."""
    with self._placing:  # Frames are decoded in several threads.
      placed = self._placed_vae
      if placed is None:  # From the host, if offloaded.
        placed = self._placed_vae = jax.device_put(self._vae)
      return placed

  def _encode_surface_impl(self, params: nnx.State, *arrays: Array) -> Array:
    vae = nnx.merge(self._vae_def, params)
    batch = (x[None] for x in arrays)
    return vae.encode_to_diffusion(*batch)[0].astype(jnp.float32)

  def field(
    self, latents: Float[np.ndarray, "N C"] | Float[np.ndarray, "2 N C"]
  ) -> Callable[[np.ndarray], Array]:
    """The field of one frame: points [Q, 3] -> values [Q], positive inside.

    Of the latents of a frame and of its mirror image it is the mean. Values are
    returned before they are computed, so that the next points can be prepared
    meanwhile.
    """
    if np.ndim(latents) == 3:
      own, mirrored = map(self.field, latents)
      return lambda points: (
        0.5 * (own(points) + mirrored(mirror.points(points)))
      )
    vae = self._vae_on_device()
    key_values = self._keys_values(vae, latents)
    # Flattened once: for thousands of points, that takes as long as a tenth of
    # their values.
    leaves = jax.tree.leaves(vae)

    def evaluate(points: np.ndarray) -> np.ndarray:
      return self._field(leaves, key_values, points)

    return evaluate

  def _keys_values_impl(
    self, params: nnx.State, latents: Array
  ) -> attention.KeyValues:
    vae = nnx.merge(self._vae_def, params)
    return vae.field_keys_values(vae.decode_from_diffusion(latents[None]))

  def _field_impl(
    self,
    leaves: Sequence[Array],
    key_values: attention.KeyValues,
    points: Array,
  ) -> Array:
    params = jax.tree.unflatten(jax.tree.structure(self._vae), leaves)
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
    raise UserError("This preset ships no weights: name a folder of them.")
  return shipped.find(preset)
