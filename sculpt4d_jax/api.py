"""The Python interface: models, clips to meshes, training, evaluation, weights.

  import sculpt4d_jax as s4d

  model = s4d.load("small")
  result = model.generate("clip.mp4", num_frames=16)
  result.save("out")

It uses no flags, global state or signal handlers.
"""

from collections.abc import Mapping, Sequence
import copy
import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import jax
import ml_collections

from sculpt4d_jax import preset_files
from sculpt4d_jax import shipped
from sculpt4d_jax.diffusion import windows as windows_lib
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.inference import clip_input
from sculpt4d_jax.inference import known as known_lib
from sculpt4d_jax.inference import long_clips
from sculpt4d_jax.inference import memory_choice
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import result as result_lib
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.inference import sampling as sampling_lib
from sculpt4d_jax.io import paths
from sculpt4d_jax.training import known_sizes
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.weights import checkpoint_parts

# Scoring and converting import what sampling need not wait for: two seconds.
if TYPE_CHECKING:
  from sculpt4d_jax.evaluation.protocols import conventions as conventions_lib
  from sculpt4d_jax.evaluation.protocols import scores as scores_lib
  from sculpt4d_jax.weights import pretrained

PathLike = paths.PathLike
PresetLike = PathLike | ml_collections.ConfigDict | preset_lib.Preset
Meshes = Sequence[mesh_lib.TriangleMesh]

Result = result_lib.Result

_NUM_TRIVIAL = 128  # Number of training clips for the trivial answers.


class Model:
  """A preset with its weights; make one with `load`.

  Attributes:
    preset: Name of the preset.
    config: Configuration of the preset.
    weights: Folder of the weights.
    networks: Networks with weights.
    stages: Seconds and peak memory of loading the weights.
  """

  def __init__(
    self,
    config: preset_lib.Preset,
    weights: pathlib.Path,
    networks: model_lib.Sculpt4D,
    stages: Sequence[run_log.Stage] = (),
  ):
    self.preset = config.name
    self.config = config
    self.weights = weights
    self.networks = networks
    self.stages = tuple(stages)

  def read_clip(
    self,
    clip: clip_input.ClipInput,
    *,
    num_frames: int | None = None,
    all_frames: bool = False,
    matte: str = "auto",
    start: float | None = None,
    end: float | None = None,
    progress: run_log.ProgressOption = True,
  ) -> pipeline.Clip:
    """Reads a clip as `generate` does; see `read_clip`."""
    return read_clip(
      clip,
      self.config,
      num_frames=num_frames,
      all_frames=all_frames,
      matte=matte,
      start=start,
      end=end,
      progress=progress,
    )

  def generate(
    self,
    clip: clip_input.ClipInput | pipeline.Clip,
    *,
    num_frames: int | None = None,
    quality: str | None = None,
    num_steps: int | None = None,
    seed: int | None = None,
    guidance_scale: float | None = None,
    temporal_mode: str | None = None,
    resolution: int | None = None,
    max_faces: int | None = None,
    known: known_lib.Known = (),
    windows: windows_lib.Windows | None = None,
    window_folder: PathLike | None = None,
    matte: str = "auto",
    start: float | None = None,
    end: float | None = None,
    progress: run_log.ProgressOption = True,
  ) -> Result:
    """Makes a mesh for every frame of a clip.

    Settings that are None are taken from the preset.

    Args:
      clip: Input of `read_clip`, or its result.
      num_frames: Number of frames that a longer clip is resampled to.
      quality: Name of a combination of solver, steps and guidance interval:
        "draft", "fast" or "quality"; other arguments override it.
      num_steps: Number of steps of the sampler.
      seed: Random seed; the same seed gives the same result on one machine.
      guidance_scale: Scale of classifier-free guidance; 1 turns it off.
      temporal_mode: "sparse", "full", "token", or "none" for independent
        frames.
      resolution: Number of cells of the surface's grid along an axis.
      max_faces: Largest number of faces of a mesh; 0 does not simplify.
      known: Known frames: files from `known.parse`, for instance of
        "0:mesh.glb", or frame index -> latents [N, C].
      windows: Windows of a long clip; None samples all frames at once.
      window_folder: Folder that keeps finished windows, so that an interrupted
        call resumes; the caller removes it.
      matte: Way to cut out the object; see `read_clip`.
      start: Start of the used part, seconds.
      end: End of the used part, seconds.
      progress: True for a bar on stderr, False for silence, or a function that
        is called with a `run_log.Progress` and must not raise.

    Raises:
      ValueError: The clip or a setting cannot be used, or no frame has a
        surface.
    """
    if not isinstance(clip, pipeline.Clip):
      clip = self.read_clip(
        clip,
        num_frames=num_frames,
        matte=matte,
        start=start,
        end=end,
        progress=progress,
      )
    named = sampling_lib.preset(quality) if quality else {}
    sampling = _replace(
      dataclasses.replace(self.config.sampling, **named),
      num_frames=num_frames,
      num_steps=num_steps,
      seed=seed,
      guidance_scale=guidance_scale,
      temporal_mode=temporal_mode,
    )
    surface = _replace(
      self.config.surface,
      resolution=resolution,
      max_faces=max_faces,
    )
    log = run_log.RunLog(progress)
    settings = {
      "preset": self.preset,
      "weights": str(self.weights),
      "sampling": dataclasses.asdict(sampling),
      "surface": dataclasses.asdict(surface),
      "seed": sampling.seed,
      "known_frames": known_lib.describe(known),
    }
    placement = pipeline.placement(self.networks, clip.images)
    made = pipeline.generate(
      self.networks,
      clip,
      sampling,
      surface,
      log,
      known_lib.load(
        known,
        self.networks,
        num_uniform=self.config.data.sizes.num_uniform,
        num_sharp=self.config.data.sizes.num_sharp,
        seed=sampling.seed,
        placement=placement,
        mirrored=sampling.mirror,
      ),
      windows,
      long_clips.open_folder(
        window_folder,
        sampling,
        windows,
        clip.images,
        {name: settings[name] for name in ("weights", "known_frames")},
      ),
      placement,
    )
    return Result(made, settings, (*clip.stages, *self.stages, *log.stages))

  def evaluate(
    self,
    num_sequences: int = 20,
    *,
    protocol: "str | conventions_lib.Protocol" = "project",
    progress: run_log.ProgressOption = True,
  ) -> "dict[str, scores_lib.Report]":
    """Scores the model on held-out procedural clips.

    Args:
      num_sequences: Number of clips.
      protocol: Name of a protocol, or a protocol; see `evaluate`.
      progress: See `generate`.

    Returns:
      Scores of the model, of the same weights with temporal attention off, and
      of two answers that need no model; see `evaluation/held_out.py`.
    """
    from sculpt4d_jax.evaluation import held_out
    from sculpt4d_jax.evaluation.protocols import protocol_table

    data = self.config.data
    if not 1 <= num_sequences <= data.num_held_out:
      raise UserError(
        f"num_sequences={num_sequences}: the preset has {data.num_held_out}"
        " held-out clips (data.num_held_out)."
      )
    count = min(data.num_clips, _NUM_TRIVIAL)
    return held_out.compare_seeds(
      self.networks,
      range(data.held_out_seed, data.held_out_seed + num_sequences),
      range(data.first_seed, data.first_seed + count),
      data.num_frames,
      data.sizes,
      self.config.sampling,
      self.config.surface,
      protocol_table.resolve(protocol),
      run_log.RunLog(progress),
    )

  def __repr__(self) -> str:
    return f"Model({self.preset!r}, weights={str(self.weights)!r})"


def preset(
  name: PresetLike, changes: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
  """A preset's configuration, which can be changed and passed to `load`.

  Args:
    name: A name ("tiny", "pods:v5p-64"), a .py file, or a configuration, which
      is copied.
    changes: Field -> value, for instance {"sampling.num_steps": 20}.

  Raises:
    ValueError: The preset or a field is unknown, or a value is invalid.
  """
  if isinstance(name, ml_collections.ConfigDict):
    config = copy.deepcopy(name)
  else:
    config = preset_files.read(name)
  return preset_files.change(config, changes or {})


def read_clip(
  clip: clip_input.ClipInput,
  preset: PresetLike = "small",
  *,
  num_frames: int | None = None,
  all_frames: bool = False,
  matte: str = "auto",
  start: float | None = None,
  end: float | None = None,
  progress: run_log.ProgressOption = True,
) -> pipeline.Clip:
  """Reads a clip and cuts out the object, before the long work.

  Args:
    clip: A video (mp4, mov, webm, avi, gif), a picture or a folder of
      pictures; an array [F, H, W, 3 or 4], uint8 or in [0, 1]; or a list of
      pictures: paths, PIL images or arrays.
    preset: The preset that the clip is for.
    num_frames: Number of frames that a longer clip is resampled to; None takes
      the preset's.
    all_frames: Whether all frames of the source are taken.
    matte: Method that cuts out the object: "auto", "alpha", "plain", "none" or
      "onnx:FILE"; see `io/matting/foreground.py`.
    start: Start of the used part, seconds.
    end: End of the used part, seconds.
    progress: See `Model.generate`.

  Raises:
    InputError: The clip cannot be used.
  """
  config = _typed(preset)
  log = run_log.RunLog(progress)
  read = pipeline.read_clip(
    clip_input.as_source(clip),
    log,
    num_frames=None if all_frames else num_frames or config.sampling.num_frames,
    image_size=config.model.image_encoder.image_size,
    matte=matte,
    start=start,
    end=end,
    border_ratio=config.data.sizes.border_ratio,
  )
  return dataclasses.replace(read, stages=tuple(log.stages))


def load(
  preset: PresetLike = "small",
  weights: PathLike | None = None,
  *,
  changes: Mapping[str, Any] | None = None,
  dtype: str | None = None,
  devices: Sequence[jax.Device] = (),
  progress: run_log.ProgressOption = True,
) -> Model:
  """Loads a model.

  Args:
    preset: Name, file or configuration of a preset; or only a folder of
      weights, whose networks have the sizes of a shipped preset.
    weights: Folder of weights; by default the preset's.
    changes: Field of the preset -> value, for instance
      {"sampling.offload": True}.
    dtype: Dtype of the parameters, "float32" or "bfloat16"; by default the
      stored one, but float16 becomes float32.
    devices: Devices that share a clip, such as `jax.local_devices()`; none uses
      only the default one.
    progress: See `Model.generate`.

  Raises:
    ValueError: The preset is unknown, or there are no matching weights.
  """
  if _is_path(preset) and weights is None:
    is_remote = paths.is_remote(preset)
    folder = paths.of(preset) if is_remote else shipped.find(preset)
    if str(preset) not in preset_files.names() and folder.is_dir():
      preset, weights = known_sizes.preset_of(folder), folder
  config = _typed(preset, changes)
  folder = model_lib.weights_folder(
    config.weights, None if weights is None else str(weights)
  )
  sampling = memory_choice.choose(
    config.model, config.sampling, config.surface, memory_choice.device_bytes()
  )
  config = dataclasses.replace(config, sampling=sampling)
  log = run_log.RunLog(progress)
  with log.stage("load weights"):
    networks = model_lib.Sculpt4D.load(
      config.model,
      folder,
      dtype=dtype,
      devices=devices,
      sampling=sampling,
    )
  return Model(config, folder, networks, log.stages)


def train(
  preset: PresetLike,
  workdir: PathLike,
  *,
  stages: Sequence[str] | None = None,
  changes: Mapping[str, Any] | None = None,
) -> paths.PathLike:
  """Trains a preset; resumes an interrupted run.

  Args:
    preset: A preset by name, file or configuration.
    workdir: Folder of data, checkpoints, metrics and weights.
    stages: Stages to run, of "data", "vae", "pictures", "dit" and "distill";
      None runs all but the last.
    changes: Field of the preset -> value.

  Returns:
    The folder of weights, which `load` takes.

  Raises:
    ValueError: A stage is unknown or cannot run.
  """
  # Imported late: what only training needs (optimizers, checkpoints,
  # TensorBoard) takes a second that sampling does not have to wait.
  from sculpt4d_jax.training.stages import runner

  workdir = paths.of(workdir)
  chosen = runner.STAGES if stages is None else stages
  runner.run(_typed(preset, changes), workdir, list(chosen))
  return workdir / "weights"


def convert_weights(
  source: str | Sequence[str],
  output: PathLike | None = None,
  *,
  preset: PresetLike = "sculpt4d",
  parts: Sequence[str] = checkpoint_parts.PARTS,
  dtype: str = "bfloat16",
  overwrite: bool = False,
  progress: run_log.ProgressOption = True,
  **options: Any,
) -> "pretrained.Conversion":
  """Converts released checkpoints into a folder of weights.

  Args:
    source: A file, a folder or a Hugging Face repository, or several; each
      network is taken from the first that contains it.
    output: New folder of weights, which `load` takes; None writes nothing.
    preset: Preset with the networks' sizes.
    parts: Networks to convert, of "dit", "vae" and "image_encoder".
    dtype: "bfloat16" or "float32".
    overwrite: Whether an earlier conversion in `output` is replaced.
    progress: See `Model.generate`.
    **options: Further options of `conversion.plan`: rules, heads, seed,
      downloads.

  Returns:
    The conversion; its `describe()` yields a line for every name.

  Raises:
    ValueError: The checkpoint is damaged, unknown or of another size.
  """
  from sculpt4d_jax.weights import conversion as conversion_lib

  sources = [source] if isinstance(source, str) else list(source)
  parts_of = _typed(preset).model.parts()
  configs = {name: config for name, (_, config) in parts_of.items()}
  conversion = conversion_lib.plan(sources, configs, parts=parts, **options)
  if output is not None:
    log = run_log.RunLog(progress)
    with log.stage("convert", conversion.num_steps) as bar:
      conversion_lib.write(
        conversion,
        output,
        sources=sources,
        dtype=dtype,
        overwrite=overwrite,
        on_step=bar.update,
      )
  return conversion


def plan(
  preset: PresetLike = "sculpt4d", *, changes: Mapping[str, Any] | None = None
) -> str:
  """Memory needs of a preset, as tables in Markdown.

  Args:
    preset: A preset by name, file or configuration.
    changes: Field of the preset -> value.
  """
  typed = _typed(preset, changes)
  return memory_choice.report(typed.model, typed.sampling, typed.surface)


def _typed(
  name: PresetLike, changes: Mapping[str, Any] | None = None
) -> preset_lib.Preset:
  """The typed preset; a typed one is returned unchanged."""
  if isinstance(name, preset_lib.Preset):
    if changes:
      raise UserError(
        "A typed preset takes no changes: give its name or configuration."
      )
    return name
  return preset_lib.from_config(preset(name, changes))


def _is_path(value: Any) -> bool:
  return isinstance(value, PathLike)


def _replace(config: Any, **changes: Any) -> Any:
  """Replaces the fields of a dataclass that are not None."""
  given = {name: value for name, value in changes.items() if value is not None}
  return dataclasses.replace(config, **given)
