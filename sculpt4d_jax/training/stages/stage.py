"""What the stages of a training share: checks, the run and its weights."""

import abc
from collections.abc import Collection, Mapping, Sequence
import pathlib
from typing import Any, ClassVar, Protocol

from absl import logging
from flax import nnx
import jax

from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import paths
from sculpt4d_jax.models import networks
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import loop
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import schedule as schedule_lib
from sculpt4d_jax.training import sources
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights import model_folders

VAE_FILE = pathlib.PurePath("weights") / "vae.safetensors"


class Settings(Protocol):
  """A stage's section of a preset."""

  task: Any  # Configuration with `seed` and `eval_clips`.
  optimizer: optimizer_lib.OptimizerConfig
  schedule: schedule_lib.Schedule


class Stage(abc.ABC):
  """A stage of a training.

  `check` finds problems in seconds, instead of after hours of the stage before.

  Attributes:
    name: Name in --stages, and of the folder with checkpoints and metrics.
  """

  name: ClassVar[str]

  def __init__(
    self,
    preset: preset_lib.Preset,
    settings: Settings,
    workdir: paths.PathLike,
  ):
    """Remembers the preset, its section for this stage, and the folder."""
    self.preset = preset
    self.settings = settings
    self.workdir = workdir

  @abc.abstractmethod
  def shapes(self) -> loop.Task:
    """The task without data, for sizes alone."""

  @abc.abstractmethod
  def run(self, source: sources.Source) -> None:
    """Trains, or resumes, and writes the finished weights."""

  def check(self, mesh: partitioning.Mesh, planned: Collection[str]) -> None:
    """Checks that the stage can run, as far as this can be known in advance.

    Args:
      mesh: The devices.
      planned: Names of all stages of the run.

    Raises:
      ValueError: The mesh does not divide a step, the metric of the best
        checkpoints is not evaluated, or a previous stage is not finished.
      model_files.ModelFileError: Initial weights are missing or have other
        sizes.
    """
    del planned
    self.shapes().check_mesh(mesh, self.settings.optimizer.accumulation_steps)
    schedule = self.settings.schedule
    metric = schedule.best_metric
    evaluated = self.evaluations().get(schedule_lib.kind(metric))
    if schedule.keep_best and not evaluated:
      raise UserError(
        f"The best checkpoints are chosen by {metric}, which this stage does"
        " not evaluate: see eval_clips and samples.every, or choose another"
        " best_metric."
      )

  def evaluations(self) -> dict[str, int]:
    """Kind of metrics -> 0 if they are never computed."""
    return {"eval": self.settings.task.eval_clips}

  def check_weights(
    self,
    folder: paths.PathLike,
    names: Sequence[str],
    model: networks.NetworkConfigs | None = None,
  ) -> None:
    """Checks that a folder has networks of these sizes.

    Args:
      folder: Folder of weights.
      names: Some of "vae", "image_encoder" and "dit".
      model: Sizes; None takes the preset's.

    Raises:
      model_files.ModelFileError: A network is missing or has another size.
    """
    folder = paths.of(folder)
    found = model_folders.open_parts(folder)
    missing = [name for name in names if name not in found]
    if missing:
      raise model_files.ModelFileError(
        f"{folder} has no {' and no '.join(missing)}, only {', '.join(found)}."
      )
    parts = (model or self.preset.model).parts()
    for name in names:
      model_files.check_config(
        folder / name, model_files.fields(found[name].config), parts[name][1]
      )

  def train(
    self,
    task: loop.Task,
    source: sources.Source,
    observers: Sequence[loop.Observer] = (),
  ) -> tuple[Any, dict[str, Any]]:
    """Trains a task to its last step.

    Args:
      task: The task, with data.
      source: The source of its data, the same as when the run began.
      observers: Callbacks.

    Returns:
      Parameters, and facts to store with them.
    """
    folder = self.workdir / self.name
    sources.check_identity(folder, source)
    trained = loop.train(
      task,
      self.settings.optimizer,
      folder,
      mesh=self.preset.mesh,
      seed=self.settings.task.seed,
      schedule=self.settings.schedule,
      observers=observers,
    )
    # Computed here only if the run did not.
    evaluated = trained.evaluated
    if evaluated is None:
      evaluated = task.evaluate(trained.params)
    details = {
      "steps": self.settings.optimizer.num_steps,
      "eval": evaluated,
    }
    logging.info("Stage %s: %s", self.name, details)
    return trained.params, details

  def load_vae(self, init_from: str) -> tuple[shape_vae.ShapeVAE, float]:
    """The run's autoencoder, and the scale factor of its latents.

    Args:
      init_from: Folder of weights it is copied from if the run has none, or "".
    """
    config, path = self.preset.model.vae, self.workdir / VAE_FILE
    graphdef, abstract = networks.abstract(shape_vae.ShapeVAE, config)
    if not path.exists() and init_from:
      params, details = model_folders.load(
        init_from, "vae", abstract, config, dtype="float32"
      )
      details |= {"copied_from": str(init_from)}
      model_files.save(path, params, config, details)
    params, details = model_files.load(path, abstract, config)
    # A pretrained autoencoder has its factor in the configuration.
    scale = details.get("scale_factor", config.scale_factor)
    return nnx.merge(graphdef, params), scale

  def save_networks(self, params: Any, details: Mapping[str, Any]) -> None:
    """Writes the transformer and the image encoder into the run's weights."""
    for name in ("dit", "image_encoder"):
      save(
        self.workdir / "weights" / f"{name}.safetensors",
        params[name],
        getattr(self.preset.model, name),
        details,
      )


def save(
  path: paths.StorePath,
  params: Any,
  config: Any,
  details: Mapping[str, Any],
) -> None:
  """Writes weights on the first process; all processes wait for them."""
  if jax.process_index() == 0:
    model_files.save(path, params, config, details)
  sources.wait_for_all(path.name)
