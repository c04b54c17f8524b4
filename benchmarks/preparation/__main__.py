r"""Measures the preparation of records on shapes with known answers.

  python -m benchmarks.preparation
  python -m benchmarks.preparation --assets=my_assets --num_clips=8

Prints two tables. The first compares records of moving shapes (sphere, box,
torus, thin plate, cloth, a body with a cape, intersecting limbs, nested shells,
a mesh wound inside out, one that splits in two) with formulas. The second
damages good clips, of these shapes and of your assets, and shows whether each
limit of the quality gate separates good clips from damaged ones; the exit code
is 1 if one does not.
"""

from collections.abc import Iterator
import math

from absl import flags

from benchmarks.preparation import gate_trials
from benchmarks.preparation import known_answers
from benchmarks.preparation import round_trip
from launch import program
from sculpt4d_jax.data.preparation import prepare
from sculpt4d_jax.data.preparation import quality_gate
from sculpt4d_jax.data.preparation import units as asset_units
from sculpt4d_jax.geometry import watertight
from sculpt4d_jax.io.assets import asset_files

_RESOLUTION = flags.DEFINE_integer(
  "resolution",
  128,
  "Cells a side of the watertight surfaces' grid.",
  lower_bound=8,
)
_ASSETS = flags.DEFINE_list("assets", [], "Folders of assets.")
_NUM_CLIPS = flags.DEFINE_integer(
  "num_clips", 8, "Clips of the assets, one an asset in turn.", lower_bound=0
)
_TRIALS = flags.DEFINE_bool("trials", True, "Whether clips are broken.")


def _settings() -> prepare.PreparationSettings:
  return prepare.PreparationSettings(
    num_frames=known_answers.NUM_FRAMES,
    max_windows=1,
    num_uniform=4096,
    num_sharp=4096,
    num_parts=1,
    num_queries=64,
    num_near=8192,
    num_volume=4096,
    num_views=1,
    image_size=128,
    supersampling=1,
    surface=watertight.WatertightSettings(resolution=_RESOLUTION.value),
  )


def _print_answers(
  settings: prepare.PreparationSettings,
) -> list[round_trip.RoundTrip]:
  """Prints the first table; returns the clips that the gate accepts."""
  print(
    f"Records against known answers, {_RESOLUTION.value} cells a side"
    f" (a cell is {settings.surface.cell:.4f}):\n"
  )
  print(
    "| shape | volume error | wrong signs | further than a cell | distance"
    " error, cells | sharp points | off the edge, cells | slip, cells |"
    " slip, 99 % | gate |"
  )
  print("|---|---|---|---|---|---|---|---|---|---|")
  good = []
  for shape in known_answers.all_shapes():
    trip = round_trip.make(shape.mesh, settings, seed=0)
    errors = known_answers.errors(shape, trip)
    reasons = quality_gate.judge(round_trip.measure(trip), settings.limits)
    verdict = "; ".join(reason.partition(":")[0] for reason in reasons)
    print(
      f"| {shape.name} | {errors.volume:.2%} | {errors.sign:.2%} |"
      f" {errors.clear_sign:.2%} | {_number(errors.distance)} |"
      f" {errors.sharp:.0%} | {_number(errors.off_edge)} |"
      f" {_number(errors.slip)} | {_number(errors.slip_99)} |"
      f" {verdict or 'accepted'} |",
      flush=True,
    )
    if not reasons:
      good.append(trip)
  return good


def _number(value: float) -> str:
  return "" if math.isnan(value) else f"{value:.3f}"


def _real_trips(
  settings: prepare.PreparationSettings,
) -> Iterator[round_trip.RoundTrip]:
  """Round trips of accepted clips, alternating between assets."""
  limits, queues = asset_files.DEFAULT_LIMITS, []
  for asset in asset_units.find_assets(_ASSETS.value):
    try:
      units = asset_units.plan_asset(asset, settings, limits, 10_000)
      queues += [asset_units.jobs(unit, settings, limits) for unit in units]
    except asset_files.AssetError:
      continue
  count = 0
  while queues and count < _NUM_CLIPS.value:
    jobs = queues.pop(0)
    job = next(jobs, None)
    if job is None:
      continue
    queues.append(jobs)
    trip = round_trip.make(job.play(), settings, job.seed)
    reasons = quality_gate.judge(round_trip.measure(trip), settings.limits)
    print(
      f"{job.asset[:8]} {job.name}: {'; '.join(reasons) or 'good'}", flush=True
    )
    if not reasons:
      count += 1
      yield trip


def main(argv: list[str]) -> int:
  """Runs the program."""
  del argv
  settings = _settings()
  good = _print_answers(settings)
  if not _TRIALS.value:
    return 0
  print("\nClips that are broken on purpose:\n")

  def trips() -> Iterator[round_trip.RoundTrip]:
    yield from good
    yield from _real_trips(settings)

  rows, clips = gate_trials.separate(trips(), settings.limits)
  print(
    f"\n| measure | limit | worst of {len(clips)} good | broken how |"
    " mildest broken | caught |"
  )
  print("|---|---|---|---|---|---|")
  for row in rows:
    print(
      f"| {row.measure} | {row.limit:g} | {row.good:.3g} | {row.trial} |"
      f" {row.broken:.3g} | {row.caught} of {row.num_broken} |"
    )
  bad = [row.trial for row in rows if not row.separates]
  if bad:
    print(f"\nLimits that do not part good from broken: {', '.join(bad)}.")
  return int(bool(bad))


if __name__ == "__main__":
  program.run(main)
