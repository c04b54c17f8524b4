"""A preparation run: plans units and prepares them in several processes.

By default a few threads each wait for a worker process (`isolation.py`). Units
are independent and write their results to the folder, so one machine needs no
framework. For many machines `beam.py` sends the same units through Apache Beam.

A run may be stopped at any time: units that have verdicts are skipped, and
plans/ has the units of each asset that was opened.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
import dataclasses
import hashlib
import json
from typing import Any

from absl import logging
import tqdm

from sculpt4d_jax.data.preparation import isolation
from sculpt4d_jax.data.preparation import prepare
from sculpt4d_jax.data.preparation import unit_work
from sculpt4d_jax.data.preparation import units as asset_units
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import output_checks
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.assets import asset_files

AssetLimits = asset_files.AssetLimits
Unit = asset_units.Unit

_PLAN_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class RunSettings:
  """Numbers of workers, and limits of their processes.

  Attributes:
    num_workers: Number of units prepared at a time.
    clips_per_unit: Largest number of animations in a unit.
    memory_bytes: Address space of a unit's process.
    seconds: Time after which a unit is killed.
    threads: Threads of a unit's process.
    limits: Limits on an asset's size.
    max_units: Largest number of units that one call prepares; 0 prepares all.
  """

  num_workers: int = 2
  clips_per_unit: int = 8
  memory_bytes: int = 16 << 30
  seconds: float = 7200.0
  threads: int = 1
  limits: AssetLimits = asset_files.DEFAULT_LIMITS
  max_units: int = 0

  @property
  def bounds(self) -> dict[str, Any]:
    """Limits of a unit's process."""
    return dict(
      memory_bytes=self.memory_bytes,
      seconds=self.seconds,
      threads=self.threads,
    )


def open_output(
  output: paths.PathLike, settings: prepare.PreparationSettings
) -> Any:
  """Makes the folder of a data set, or checks that it is of the same kind.

  Raises:
    ValueError: It holds records of other settings.
    OutputError: It cannot be made.
  """
  folder = paths.of(output)
  output_checks.check_folder(folder)
  # Through JSON, so that tuples compare equal to the lists of a file.
  kind = json.loads(json.dumps(dataclasses.asdict(settings)))
  path = folder / "settings.json"
  if path.is_file():
    found = json.loads(path.read_text())
    different = sorted(
      name for name in {*found, *kind} if found.get(name) != kind.get(name)
    )
    if different:
      raise UserError(
        f"{folder} holds records of other settings ({', '.join(different)});"
        " choose another folder, or delete it to make them anew."
      )
  else:
    atomic.write_bytes(path, json.dumps(kind, indent=1).encode())
  return folder


def plan(
  asset: Unit,
  settings: prepare.PreparationSettings,
  run: RunSettings,
  output: str,
) -> list[Unit]:
  """The units of an asset; an unusable asset gets a verdict and no units."""
  if asset.location == asset_units.PROCEDURAL:
    return [asset]
  if unit_work.verdict_path(output, asset).is_file():
    return []  # Found unusable by an earlier run.
  # Opening an asset takes seconds: a run that resumes does not do it again.
  name = f"{asset.content}-{run.clips_per_unit}.json"
  remembered = paths.of(output) / "plans" / name
  if remembered.is_file():
    spans = json.loads(remembered.read_text())
    return [
      dataclasses.replace(asset, first=first, count=count)
      for first, count in spans
    ]
  outcome = isolation.run(
    asset_units.plan_asset,
    asset,
    settings,
    run.limits,
    run.clips_per_unit,
    memory_bytes=run.memory_bytes,
    # Opening an asset is enough to plan it.
    seconds=min(_PLAN_SECONDS, run.seconds),
  )
  if outcome.error:
    unit_work.reject(asset, outcome, output)
    return []
  spans = [(unit.first, unit.count) for unit in outcome.value]
  atomic.write_bytes(remembered, json.dumps(spans).encode())
  return outcome.value


def in_turns(units: Sequence[Unit]) -> list[Unit]:
  """Orders units so that any prefix is balanced.

  Objects take turns, each with its units in an order drawn from their hashes,
  so that a run that is stopped early has clips of every object.
  """
  draw = lambda unit: hashlib.sha256(unit.id.encode()).hexdigest()
  queues: dict[str, list[Unit]] = {}
  for unit in sorted(units, key=draw):
    queues.setdefault(unit.credit.object or unit.content, []).append(unit)
  turns = [
    (turn, name, unit)
    for name, queue in queues.items()
    for turn, unit in enumerate(queue)
  ]
  return [unit for _, _, unit in sorted(turns, key=lambda entry: entry[:2])]


def run_locally(
  assets: Sequence[Unit],
  settings: prepare.PreparationSettings,
  run: RunSettings,
  output: str,
) -> list[dict[str, Any]]:
  """Prepares all units of some assets on this machine.

  Args:
    assets: Units from `units.find_assets` and `procedural_units`.
    settings: Settings of the records.
    run: Numbers of workers and limits of their processes.
    output: The folder of the data set, from `open_output`.

  Returns:
    The verdicts of all units that are new.

  Raises:
    OutputError: The folder cannot be written to.
  """
  with futures.ThreadPoolExecutor(run.num_workers) as pool:
    planned = _in_parallel(
      pool, lambda asset: plan(asset, settings, run, output), assets, "plan"
    )
    units = in_turns([unit for units in planned for unit in units])
    new = [u for u in units if not unit_work.verdict_path(output, u).is_file()]
    logging.info(
      "%d units, %d of them done before.", len(units), len(units) - len(new)
    )
    if run.max_units:
      new = new[: run.max_units]
    work = lambda unit: unit_work.prepare_isolated(
      unit, settings, run.limits, output, run.bounds
    )
    return list(_in_parallel(pool, work, new, "prepare"))


def _in_parallel(
  pool: futures.Executor,
  function: Callable[[Any], Any],
  items: Iterable[Any],
  name: str,
) -> Iterator[Any]:
  """Yields results as they complete; cancels what waits if one fails."""
  waiting = [pool.submit(function, item) for item in items]
  try:
    done = futures.as_completed(waiting)
    for future in tqdm.tqdm(done, total=len(waiting), desc=name):
      yield future.result()
  except BaseException:
    for future in waiting:
      future.cancel()
    isolation.end_all()
    raise
