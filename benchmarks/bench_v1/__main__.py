r"""A benchmark of 64 held-out clips with tracked truth, which takes minutes.

  # Make it once; --assets adds your own character files.
  python -m benchmarks.bench_v1 --folder=bench-v1 --make \
    --assets=Fox.glb,character.glb

  # Score the meshes of another system, with one folder per clip.
  python -m benchmarks.bench_v1 --folder=bench-v1 --predicted=mine --name=mine

  # Score two trivial baselines, the built-in model, and the same without
  # temporal attention. A stopped run continues.
  python -m benchmarks.bench_v1 --folder=bench-v1 --baselines

Every call prints the table of all rows so far; FOLDER/scores/ROW.json has a
row's clips. `--protocol` chooses the columns (launch.evaluate --describe);
`actionbench` scores against the tracked points, the others against the meshes.
"""

from collections.abc import Sequence
import json
import pathlib

from absl import flags
from ml_collections import config_flags

from benchmarks.bench_v1 import make
from benchmarks.bench_v1 import rows as rows_lib
from benchmarks.bench_v1 import table
from launch import program
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation.protocols import evaluate
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.evaluation.protocols import scores as scores_lib
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import atomic
from sculpt4d_jax.training import preset as preset_lib

_FOLDER = flags.DEFINE_string("folder", "bench-v1", "Folder of the benchmark.")
_MAKE = flags.DEFINE_bool("make", False, "Make what is missing of it.")
_ASSETS = flags.DEFINE_list("assets", [], "With --make: animated files.")
_NUM_CLIPS = flags.DEFINE_integer(
  "num_clips",
  make.NUM_CLIPS,
  "Procedural clips; fewer than all is no score of the benchmark.",
  lower_bound=1,
)
_PREDICTED = flags.DEFINE_string(
  "predicted", None, "Folder with a sequence of meshes a clip."
)
_NAME = flags.DEFINE_string("name", "prediction", "Name of the row.")
_BASELINES = flags.DEFINE_bool(
  "baselines", False, "Score the built-in rows; the same command resumes."
)
_ROWS = flags.DEFINE_list(
  "rows", list(rows_lib.ROWS), "With --baselines: rows to score."
)
_PROTOCOL = flags.DEFINE_string("protocol", "sculpt4d", "Columns.")
_PROCESSES = flags.DEFINE_integer("processes", 1, "Processes.", lower_bound=1)
_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/tiny.py", "Preset of the baselines' model."
)


def main(unused_argv: Sequence[str]) -> None:
  """Runs the program."""
  folder = pathlib.Path(_FOLDER.value)
  protocol = protocol_table.find(_PROTOCOL.value)
  if _MAKE.value:
    assets = [pathlib.Path(path) for path in _ASSETS.value]
    made = make.make(folder, num_clips=_NUM_CLIPS.value, assets=assets)
    print(f"{folder} holds {len(made)} clips of {make.VERSION}.")
  truth = folder / rows_lib.truth_kind(protocol)
  if (_PREDICTED.value or _BASELINES.value) and not truth.is_dir():
    raise UserError(f"{folder} holds no benchmark yet; add --make.")
  if _PREDICTED.value:
    report = evaluate.evaluate(
      _PREDICTED.value,
      truth,
      protocol,
      processes=_PROCESSES.value,
    )
    _keep(folder, {_NAME.value: report})
  if _BASELINES.value:
    # Each row is kept as soon as it is complete.
    for row in _ROWS.value:
      preset = preset_lib.from_config(_CONFIG.value)
      report = rows_lib.score(
        folder, _names(folder), [row], preset, protocol, run_log.RunLog()
      )
      title = row if row in rows_lib.TRIVIAL else f"{row} ({preset.name})"
      _keep(folder, {title: report[row]})
  print(table.of_scores(folder / "scores" / protocol.name.replace(":", "-")))
  print(f"\n{make.VERSION}. Conventions: {protocol.describe()}.")


def _names(folder: pathlib.Path) -> list[str]:
  """The first --num_clips procedural clips, and all characters."""
  clips = json.loads((folder / "manifest.json").read_text())["clips"]
  return sorted(
    name
    for name, origin in clips.items()
    if origin["kind"] != "procedural" or origin["seed"] < _NUM_CLIPS.value
  )


def _keep(folder: pathlib.Path, rows: dict[str, scores_lib.Report]) -> None:
  for name, report in rows.items():
    place = folder / "scores" / report.protocol.name.replace(":", "-")
    text = json.dumps(scores_lib.to_json({name: report}), indent=1)
    atomic.write_bytes(place / f"{name}.json", f"{text}\n".encode())


if __name__ == "__main__":
  program.run(main)
