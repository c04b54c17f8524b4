"""The same run as an Apache Beam pipeline, for many machines.

The runner decides where assets are planned and units prepared; all workers see
the assets at the same paths, and the data set in a bucket or in a shared file
system. Only units and counts pass through Beam: records are written
directly to the folder. Every unit checks whether it is done, so a runner may
retry it, run it twice, or be started again.

Needs the package apache-beam, which only this file imports.
"""

from collections.abc import Sequence
import types
from typing import Any

from sculpt4d_jax.data.preparation import prepare
from sculpt4d_jax.data.preparation import run as preparation_run
from sculpt4d_jax.data.preparation import unit_work
from sculpt4d_jax.data.preparation import units as asset_units
from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.errors import UserError

Unit = asset_units.Unit


def run(
  assets: Sequence[Unit],
  settings: prepare.PreparationSettings,
  run_settings: preparation_run.RunSettings,
  output: str,
  options: Sequence[str] = (),
) -> None:
  """Prepares all units of some assets, and waits until they are done.

  Args:
    assets: Units from `units.find_assets` and `procedural_units`.
    settings: Settings of the records.
    run_settings: Bounds of a unit; the runner chooses the number of workers.
    output: The folder of the data set, from `run.open_output`.
    options: Runner options, as on a command line; by default the DirectRunner
      with `num_workers` processes on this machine.

  Raises:
    ImportError: apache-beam is not installed.
    ValueError: The pipeline failed.
  """
  beam, pipeline_options = _import_beam()
  options = list(options) or [
    "--runner=DirectRunner",
    "--direct_running_mode=multi_processing",
    f"--direct_num_workers={run_settings.num_workers}",
  ]
  pipeline = beam.Pipeline(
    options=pipeline_options.PipelineOptions(options, save_main_session=False)
  )
  _ = (
    pipeline
    | "assets" >> beam.Create(list(assets))
    | "spread assets" >> beam.Reshuffle()
    | "plan" >> beam.FlatMap(_plan, settings, run_settings, output)
    | "spread units" >> beam.Reshuffle()
    | "prepare" >> beam.Map(_prepare, settings, run_settings, output)
    | "count" >> beam.combiners.Count.PerElement()
  )
  result = pipeline.run()
  state = str(result.wait_until_finish())
  if "DONE" not in state:
    raise UserError(
      f"The pipeline ended as {state}; start it again to resume from what is"
      " done."
    )


def _plan(
  asset: Unit,
  settings: prepare.PreparationSettings,
  run_settings: preparation_run.RunSettings,
  output: str,
) -> list[Unit]:
  return preparation_run.plan(asset, settings, run_settings, output)


def _prepare(
  unit: Unit,
  settings: prepare.PreparationSettings,
  run_settings: preparation_run.RunSettings,
  output: str,
) -> str:
  """Outcome of a unit in one word; Beam counts these."""
  verdict: dict[str, Any] = unit_work.prepare_isolated(
    unit, settings, run_settings.limits, output, run_settings.bounds
  )
  if verdict["error"]:
    return "failed"
  return "accepted" if verdict["shard"] else "rejected"


def _import_beam() -> tuple[types.ModuleType, types.ModuleType]:
  try:
    import apache_beam
    from apache_beam.options import pipeline_options
  except ImportError as error:
    raise MissingPackageError(
      "--beam needs the package apache-beam: pip install"
      " 'sculpt4d-jax[beam]' or pip install apache-beam."
    ) from error
  return apache_beam, pipeline_options
