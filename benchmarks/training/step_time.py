"""Training steps for timing: ours, and the same one in PyTorch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax.data.procedural import batches as store_batches
from sculpt4d_jax.data.procedural import store as record_store
from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import state as state_lib
from sculpt4d_jax.training import step as step_lib
from sculpt4d_jax.training.ahead_of_time import step_flops
from sculpt4d_jax.training.tasks import conditional_dit
from sculpt4d_jax.training.tasks import dit as dit_task
from sculpt4d_jax.training.tasks import presets
from sculpt4d_jax.weights import model_files

measured_peak = step_flops.measured_peak

_NUM_BATCHES = 4
_CHECKED_STEPS = 4
# Both use float32 but sum in different orders. Errors grow from step to step,
# because AdamW's first updates are signs of gradients.
_TOLERANCES = (2e-5, 1e-3)


@dataclasses.dataclass
class OurStep:
  """The step that `launch.train` takes, on batches made beforehand.

  Attributes:
    task: Model, data and loss.
    optimizer: Optimizer and number of steps.
    params: The parameters to start from, on the host.
    batches: Some batches, on the device.
    flops: Model operations of a step.
    num_tokens: Latent tokens of a step.
  """

  task: dit_task.DiTTask
  optimizer: optimizer_lib.OptimizerConfig
  params: Any
  batches: list[dict[str, Any]]
  flops: int
  num_tokens: int

  def __post_init__(self):
    self._step, self._tx = step_lib.make_step(
      self.task.loss, self.optimizer, draw=self.task.draw
    )
    self._key = jax.random.key(self.task.config.seed)
    self.restart()

  def restart(self) -> None:
    """Goes back to the first step."""
    params = jax.tree.map(jnp.array, self.params)
    self._state = state_lib.create(params, self._tx)

  def take(self, index: int) -> float:
    """Takes a step with a batch; its loss."""
    batch = self.batches[index % len(self.batches)]
    self._state, metrics = self._step(self._state, batch, self._key)
    return float(metrics["loss"])

  def key_of(self, step: int) -> Any:
    """The randomness of a step's loss."""
    return jax.random.fold_in(self._key, step)


def our_step(preset: preset_lib.Preset) -> OurStep:
  """The step of a preset's transformer, on clips of noise.

  The content of clips affects the time of a step only through the routers'
  choices. The loss on decoded shapes, which PyTorch's step lacks, is left out.
  """
  training = preset.dit_training
  plain = dataclasses.replace(training.task, shape_weight=0.0)
  training = dataclasses.replace(training, task=plain)
  preset = dataclasses.replace(preset, dit_training=training)
  vae = preset.model.vae
  task = presets.dit(preset, _noise_batches(preset))
  batches = [task.batch(step) for step in range(_NUM_BATCHES)]
  return OurStep(
    task,
    training.optimizer,
    jax.device_get(jax.jit(task.init_params)()),
    jax.device_put(batches),
    task.flops(batches[0]),
    training.task.batch_size * task.num_frames * vae.num_latents,
  )


def _noise_batches(
  preset: preset_lib.Preset,
) -> store_batches.LatentBatches:
  training, data = preset.dit_training.task, preset.data
  vae = preset.model.vae
  clips, frames = training.batch_size, data.num_frames
  rng = np.random.default_rng(0)
  side, points = data.sizes.image_size, training.context_field_points
  store = record_store.RecordStore(
    surface=np.zeros((clips, frames, 1, 7), np.float16),
    samples=rng.uniform(-1, 1, (clips, frames, points, 4)).astype(np.float16),
    images=rng.integers(0, 255, (clips, frames, side, side, 3), np.uint8),
    first_seed=0,
  )
  shape = (clips, 2, 1, frames, vae.num_latents, vae.latent_channels)
  latents = store_batches.LatentStore(
    rng.normal(size=shape).astype(np.float16),
    np.full(shape, -4.0, np.float16),
    scale=1.0,
  )
  return store_batches.LatentBatches(
    (store, latents),
    (store, latents),
    batch_size=clips,
    num_samples=training.num_points,
    seed=training.seed,
  )


class TorchStep:
  """The same step in PyTorch; see `torch_step`."""

  def __init__(self, ours: OurStep, module: Any, tensor: Any):
    self._ours = ours
    self._module = module
    self._tensor = tensor
    task = ours.task
    self._draws = jax.jit(lambda batch, key: _draws(task, batch, key))
    self._batches = [
      self._with_draws(batch, step) for step, batch in enumerate(ours.batches)
    ]

  def _with_draws(self, batch: dict[str, Any], step: int) -> dict[str, Any]:
    drawn = self._draws(batch, self._ours.key_of(step))
    whole = drawn | {"images": batch["images"]}
    if "samples" in batch:
      whole["samples"] = batch["samples"]
    return {k: self._tensor(np.array(v)) for k, v in whole.items()}

  def take(self, index: int) -> float:
    """Takes a step with a batch; its loss."""
    return self._module(self._batches[index % len(self._batches)])


def _draws(
  task: dit_task.DiTTask, batch: dict[str, Any], key: jax.Array
) -> dict[str, jax.Array]:
  """Random draws of a step's loss, identical to the task's."""
  draws = task.draw(batch, key)
  return {
    "latents": task._latents(batch, draws["latent_noise"]),
    "noise": draws["noise"],
    "time": draws["time"],
    "keep": draws["keep"].astype(jnp.float32),
    "temporal_weight": draws.get(
      "temporal_weight", jnp.ones(len(draws["time"]))
    ),
  }


def torch_step(ours: OurStep, is_compiled: bool = False) -> TorchStep:
  """The PyTorch step with our parameters, batches and random draws.

  Args:
    ours: Our step.
    is_compiled: Whether `torch.compile` compiles it.

  Raises:
    ImportError: PyTorch is not installed.
    ValueError: The preset uses features that the PyTorch step does not support.
  """
  try:
    import torch
  except ImportError:
    raise MissingPackageError(
      "The comparison needs PyTorch: pip install torch, or leave it out with"
      " --nopeer."
    ) from None
  from benchmarks.training import torch_step as torch_step_lib

  task, optimizer = ours.task, ours.optimizer
  dit = task.dit_config
  if (
    dit.dtype != "float32"
    or dit.temporal_mode != "sparse"
    or not task.config.train_image_encoder
    or optimizer.frozen
    or optimizer.temporal_learning_rate is not None
    or optimizer.use_muon
    or optimizer.accumulation_steps > 1
  ):
    raise UserError(
      "The PyTorch step is written for float32, sparse temporal attention, an"
      " image encoder that learns, AdamW and one learning rate, as"
      " configs/tiny.py has them; leave it out with --nopeer. configs/small.py"
      " wants --config.dit_training.optimizer.use_muon=False."
    )
  module = torch_step_lib.TrainingStep(
    torch_step_lib.convert(model_files.flatten(ours.params), dit),
    dit,
    task.encoder_config,
    optimizer,
    num_frames=task.num_frames,
    num_tokens=ours.batches[0]["mean"].shape[-2],
    field_weight=task.config.context_field_weight,
    field_band=task.config.field_band,
    field_heads=task.encoder_config.num_heads,
    field_freqs=conditional_dit.HEAD_FREQS,
    is_compiled=is_compiled,
  )
  return TorchStep(ours, module, torch.from_numpy)


def check_agreement(ours: OurStep, peer: TorchStep) -> None:
  """Takes the first steps with both and compares their losses.

  Raises:
    AssertionError: They differ by more than rounding.
  """
  first, later = _TOLERANCES
  for step in range(_CHECKED_STEPS):
    own, other = ours.take(step), peer.take(step)
    np.testing.assert_allclose(
      other,
      own,
      rtol=later if step else first,
      err_msg=f"losses of step {step}",
    )


def trace(step: OurStep, folder: str) -> None:
  """Writes a profile of a few steps, for TensorBoard or Perfetto."""
  with jax.profiler.trace(folder):
    for index in range(_CHECKED_STEPS):
      step.take(index)
