r"""Reproduces the paper's tables, as far as weights and hardware allow.

Usage:

  # At the released size: operations and ratios next to the paper's, and what
  # the fixed part of the paper's PFLOPs may be.
  python -m launch.reproduce --table=A2 --workdir=runs/reproduce

  # The ablation at the small size: variants A to F and Ours-full, trained from
  # the same start, three seeds. Hours on two cores; the same command resumes.
  python -m launch.reproduce --table=A1 --config=configs/tiny.py \
    --workdir=runs/reproduce_a1

  # 8, 16, 32 and 64 frames with the preset's weights, without training.
  python -m launch.reproduce --table=A4 --config=configs/tiny.py \
    --workdir=runs/reproduce_a4

WORKDIR/report.html and report.md hold every figure with its interval and its
command. Tables: A1 ablation, A2 operations, A3 per-frame baselines and ours by
pictures (needs --weights for its networks), A4 longer clips. For presets
without weights it prints everything that is known without them.
"""

from collections.abc import Callable, Sequence
import pathlib
import sys

from absl import flags
import ml_collections
from ml_collections import config_flags

from configs import ablations
from configs import baselines
from launch import program
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import cost
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.evaluation.reproduce import paper_account
from sculpt4d_jax.evaluation.reproduce import plots
from sculpt4d_jax.evaluation.reproduce import report_page
from sculpt4d_jax.io import paths
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import variants as variants_lib

_TABLE = flags.DEFINE_enum(
  "table", None, ("A1", "A2", "A3", "A4"), "Table of the paper.", required=True
)
_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/sculpt4d.py", "Preset; the released size by default."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder for runs, scores and the report.", required=True
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the training.")
_NUM_STEPS = flags.DEFINE_integer(
  "num_steps", 2000, "Number of training steps of each variant.", lower_bound=1
)
_NUM_CLIPS = flags.DEFINE_integer(
  "num_sequences", 20, "Number of held-out clips.", lower_bound=1
)
_PROTOCOL = flags.DEFINE_string(
  "protocol", None, "Protocol of the scores; by default the table's."
)
_VARIANTS = flags.DEFINE_list(
  "variants", [], "Rows of the table to compute; all by default."
)

_RELEASED_WIDTH = 2048
_FRAMES_A4 = (8, 16, 32, 64)
_A1 = tuple(name for name, *_ in cost.PAPER_TABLE_A1.values())
_NEEDS_WEIGHTS = (
  "The scores need weights of this size, which were not found at {}; convert"
  " released ones with launch.convert_weights and give their folder as"
  " --config.weights."
)


def main(unused_argv: Sequence[str]) -> None:
  """Runs the program."""
  config = _CONFIG.value
  folder = paths.on_disk(_WORKDIR.value, "--workdir")
  preset = preset_lib.from_config(config)
  if _PROTOCOL.value:
    protocol_table.find(_PROTOCOL.value)  # Refused before hours of work.
  sections = [_operations(preset)] if _TABLE.value in ("A1", "A2") else []
  if _TABLE.value != "A2":
    sections += _scores(config, preset)
  title = f"Table {_TABLE.value} with the preset {preset.name}"
  files = report_page.write(folder, title, sections)
  print(report_page.markdown(title, sections))
  print(f"Written to {files[0]} and {files[1]}.")


def _operations(preset: preset_lib.Preset) -> report_page.Section:
  """Counted operations and the paper's."""
  sizes = cost.Sizes(
    preset.model.dit, preset.model.image_encoder, preset.model.vae
  )
  text, rows, notes = [], [], []
  if preset.model.dit.width == _RELEASED_WIDTH:
    table = cost.table_a1 if _TABLE.value == "A1" else cost.table_a2
    text = [table(sizes), paper_account.report(sizes)]
  else:
    frames = preset.sampling.num_frames
    rows = cost.relative_rows(sizes, _TABLE.value, frames)
    at = f" at {frames} frames" if _TABLE.value == "A1" else ""
    notes.append(
      f"Operations of this preset{at}; the paper's are those of a larger model."
    )
  figure, pictures = "", ()
  if _TABLE.value == "A2":
    drawn = _draw("figure_a1", lambda: plots.figure_a1(sizes), notes)
    figure, pictures = drawn or (cost.figure_a1(sizes), ())
  return report_page.Section(
    f"Operations of Table {_TABLE.value}",
    _command(),
    table=rows,
    text="\n\n".join(text),
    notes=notes,
    figure=figure,
    pictures=pictures,
  )


def _draw(
  name: str, make: Callable[[], plots.Figure], notes: list[str]
) -> tuple[str, Sequence[str]] | None:
  """Writes a figure next to the report; SVG and names of its PNG.

  Without matplotlib it adds a note and gives None.
  """
  try:
    figure = make()
  except ImportError as error:
    notes.append(str(error))
    return None
  png, _ = plots.write(figure, pathlib.Path(_WORKDIR.value), name)
  return plots.svg(figure), (png.name,)


def _scores(
  config: ml_collections.ConfigDict, preset: preset_lib.Preset
) -> list[report_page.Section]:
  """Scores of the variants, or the reason why there are none."""
  title = f"Scores of Table {_TABLE.value}"
  if not pathlib.Path(preset.weights).is_dir():
    note = _NEEDS_WEIGHTS.format(preset.weights or "config.weights")
    return [report_page.Section(title, _command(), notes=[note])]
  rows, frames = _rows(config, preset)
  if _VARIANTS.value:
    unknown = set(_VARIANTS.value) - {row.name for row in rows}
    if unknown:
      raise UserError(
        f"--variants={','.join(_VARIANTS.value)}: Table {_TABLE.value} has"
        f" {', '.join(row.name for row in rows)}."
      )
    rows = [row for row in rows if row.name in _VARIANTS.value]
  default = "views" if _TABLE.value == "A3" else "project"
  plan = variants_lib.Plan(
    pathlib.Path(_WORKDIR.value),
    _NUM_STEPS.value,
    _seeds(),
    _NUM_CLIPS.value,
    _PROTOCOL.value or default,
  )
  found = variants_lib.run(plan, rows, frames)
  is_trained = rows[0].is_trained
  training = (
    f"{plan.num_steps} steps of training from {preset.weights}"
    if is_trained
    else "no training"
  )
  notes = [
    f"{plan.num_clips} held-out clips, {len(plan.seeds)} seeds, {training}."
    " Means over clips and seeds; 95 % intervals over clips, each clip the mean"
    " over seeds.",
    protocol_table.find(plan.protocol).describe() + ".",
  ]
  drawn = _draw(
    f"scores_{_TABLE.value.lower()}",
    lambda: plots.intervals(variants_lib.estimates(found, plan.protocol)),
    notes,
  )
  figure, pictures = drawn or ("", ())
  sections = [
    report_page.Section(
      title,
      _command(),
      table=variants_lib.table(found, plan.protocol),
      notes=notes,
      figure=figure,
      pictures=pictures,
    )
  ]
  reference = ("ours", frames[0])
  if len(rows) > 1 and reference in found:
    sections.append(
      report_page.Section(
        f"Differences to {reference[0]}",
        "",
        table=variants_lib.differences(found, plan.protocol, reference),
        notes=[
          "Variant minus ours, clip by clip. A star marks an interval that"
          " leaves out 0; without one, these clips do not tell the two apart."
          f" Below {variants_lib.MIN_CLIPS} clips there are no stars: clips that"
          " all agree in sign do so by chance too often."
        ],
      )
    )
  if len(plan.seeds) > 1:
    sections.append(
      report_page.Section(
        "Means by seed", "", table=variants_lib.by_seed(found, plan.protocol)
      )
    )
  sections.append(
    report_page.Section(
      "Seconds a clip",
      "",
      table=variants_lib.seconds(found),
      notes=[
        "Wall time by stage, means over clips and seeds. It includes the"
        " compilation in the first clip, and other work on the machine."
      ],
    )
  )
  return sections


def _rows(
  config: ml_collections.ConfigDict, preset: preset_lib.Preset
) -> tuple[list[variants_lib.Variant], Sequence[int]]:
  frames = (preset.sampling.num_frames,)
  variant = lambda apply, name, **options: variants_lib.Variant(
    name,
    preset_lib.from_config(apply(config.copy_and_resolve_references(), name)),
    **options,
  )
  if _TABLE.value == "A1":
    rows = [variant(ablations.apply, name) for name in _A1]
    full = variant(ablations.apply, "ours_full", trained_as="ours")
    return [*rows, full], frames
  ours = variant(ablations.apply, "ours", is_trained=False)
  if _TABLE.value == "A4":
    return [ours], _FRAMES_A4
  return [
    variant(baselines.apply, "hunyuan3d", is_trained=False),
    variant(baselines.apply, "hunyuan3d_shared", is_trained=False),
    ours,
    variant(ablations.apply, "ours_full", is_trained=False),
  ], frames


def _seeds() -> tuple[int, ...]:
  try:
    return tuple(int(seed) for seed in _SEEDS.value)
  except ValueError as error:
    raise UserError(
      f"--seeds={','.join(_SEEDS.value)} must be whole numbers."
    ) from error


def _command() -> str:
  return " ".join(["python -m launch.reproduce", *sys.argv[1:]])


if __name__ == "__main__":
  program.run(main)
