"""The paper's tables with a preset: operations, and scores of its variants."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib

import ml_collections

from sculpt4d_jax.configs import ablations
from sculpt4d_jax.configs import baselines
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import cost
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.evaluation.reproduce import paper_account
from sculpt4d_jax.evaluation.reproduce import plots
from sculpt4d_jax.evaluation.reproduce import report_page
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import variants as variants_lib

TABLES = ("A1", "A2", "A3", "A4")

_RELEASED_WIDTH = 2048
_FRAMES_A4 = (8, 16, 32, 64)
_A1 = tuple(name for name, *_ in cost.PAPER_TABLE_A1.values())
_NEEDS_WEIGHTS = (
  "The scores need weights of this size, which were not found at {}; convert"
  " released ones with `sculpt4d convert` and name their folder in the preset's"
  " field `weights`."
)


@dataclasses.dataclass(frozen=True)
class Request:
  """A table that is wanted.

  Attributes:
    table: Name out of `TABLES`.
    config: Preset.
    folder: Folder for trainings, scores and the report.
    command: Command line that the report states.
    seeds: Seeds of the training.
    num_steps: Training steps of each variant.
    num_clips: Number of held-out clips.
    protocol: Protocol of the scores; None takes the table's.
    variants: Rows to compute; none takes all.
  """

  table: str
  config: ml_collections.ConfigDict
  folder: pathlib.Path
  command: str
  seeds: tuple[int, ...] = (0, 1, 2)
  num_steps: int = 2000
  num_clips: int = 20
  protocol: str | None = None
  variants: tuple[str, ...] = ()

  def __post_init__(self):
    if self.table not in TABLES:
      raise UserError(f"table {self.table!r}: choose {', '.join(TABLES)}.")
    for name in ("num_steps", "num_clips"):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
    if not self.seeds:
      raise UserError("A table needs at least one seed.")
    if self.protocol:
      protocol_table.find(self.protocol)  # Refused before hours of work.

  @functools.cached_property
  def preset(self) -> preset_lib.Preset:
    """The preset with its types."""
    return preset_lib.from_config(self.config)


def parse_seeds(text: str) -> tuple[int, ...]:
  """Seeds from a text such as "0,1,2".

  Raises:
    UserError: They are not whole numbers.
  """
  try:
    return tuple(int(seed) for seed in text.split(","))
  except ValueError as error:
    raise UserError(f"--seeds={text} must be whole numbers.") from error


def reproduce(request: Request) -> str:
  """Computes a table and writes report.html and report.md into its folder.

  The same request resumes: finished trainings and scores are files.

  Returns:
    The report in Markdown, with the names of both files.

  Raises:
    UserError: A row is unknown, or the folder is of other settings.
  """
  sections = []
  if request.table in ("A1", "A2"):
    sections.append(_operations(request))
  if request.table != "A2":
    sections += _scores(request)
  title = f"Table {request.table} with the preset {request.preset.name}"
  files = report_page.write(request.folder, title, sections)
  text = report_page.markdown(title, sections)
  return f"{text}\nWritten to {files[0]} and {files[1]}."


def _operations(request: Request) -> report_page.Section:
  """Counted operations and the paper's."""
  preset = request.preset
  sizes = cost.Sizes(
    preset.model.dit, preset.model.image_encoder, preset.model.vae
  )
  text, rows, notes = [], [], []
  if preset.model.dit.width == _RELEASED_WIDTH:
    table = cost.table_a1 if request.table == "A1" else cost.table_a2
    text = [table(sizes), paper_account.report(sizes)]
  else:
    frames = preset.sampling.num_frames
    rows = cost.relative_rows(sizes, request.table, frames)
    at = f" at {frames} frames" if request.table == "A1" else ""
    notes.append(
      f"Operations of this preset{at}; the paper's are those of a larger model."
    )
  figure, pictures = "", ()
  if request.table == "A2":
    drawn = _draw(request, "figure_a1", lambda: plots.figure_a1(sizes), notes)
    figure, pictures = drawn or (cost.figure_a1(sizes), ())
  return report_page.Section(
    f"Operations of Table {request.table}",
    request.command,
    table=rows,
    text="\n\n".join(text),
    notes=notes,
    figure=figure,
    pictures=pictures,
  )


def _draw(
  request: Request,
  name: str,
  make: Callable[[], plots.Figure],
  notes: list[str],
) -> tuple[str, Sequence[str]] | None:
  """Writes a figure next to the report; SVG and names of its PNG.

  Without matplotlib it adds a note and gives None.
  """
  try:
    figure = make()
  except ImportError as error:
    notes.append(str(error))
    return None
  png, _ = plots.write(figure, request.folder, name)
  return plots.svg(figure), (png.name,)


def _scores(request: Request) -> list[report_page.Section]:
  """Scores of the variants, or the reason why there are none."""
  preset = request.preset
  title = f"Scores of Table {request.table}"
  if not pathlib.Path(preset.weights).is_dir():
    note = _NEEDS_WEIGHTS.format(preset.weights or "`weights`")
    return [report_page.Section(title, request.command, notes=[note])]
  rows, frames = _rows(request)
  if request.variants:
    unknown = set(request.variants) - {row.name for row in rows}
    if unknown:
      raise UserError(
        f"--variants={','.join(request.variants)}: Table {request.table} has"
        f" {', '.join(row.name for row in rows)}."
      )
    rows = [row for row in rows if row.name in request.variants]
  default = "views" if request.table == "A3" else "project"
  plan = variants_lib.Plan(
    request.folder,
    request.num_steps,
    request.seeds,
    request.num_clips,
    request.protocol or default,
  )
  found = variants_lib.run(plan, rows, frames)
  is_trained = rows[0].is_trained
  training = (
    f"{plan.num_steps} steps of training from {preset.weights}"
    if is_trained
    else "no training"
  )
  notes = [
    f"{plan.num_clips} held-out clips, number of seeds {len(plan.seeds)},"
    f" {training}."
    " Means over clips and seeds; 95 % intervals over clips, each clip the mean"
    " over seeds.",
    protocol_table.find(plan.protocol).describe() + ".",
  ]
  drawn = _draw(
    request,
    f"scores_{request.table.lower()}",
    lambda: plots.intervals(variants_lib.estimates(found, plan.protocol)),
    notes,
  )
  figure, pictures = drawn or ("", ())
  sections = [
    report_page.Section(
      title,
      request.command,
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


def _per_frame(
  config: ml_collections.ConfigDict, baseline: str
) -> ml_collections.ConfigDict:
  """A baseline by the preset's weights, whose temporal layers are not used."""
  temporal_mode = config.model.dit.temporal_mode
  config = baselines.apply(config, baseline)
  config.model.dit.temporal_mode = temporal_mode
  return config


def _rows(
  request: Request,
) -> tuple[list[variants_lib.Variant], Sequence[int]]:
  config = request.config
  frames = (request.preset.sampling.num_frames,)
  variant = lambda apply, name, **options: variants_lib.Variant(
    name,
    preset_lib.from_config(apply(config.copy_and_resolve_references(), name)),
    **options,
  )
  if request.table == "A1":
    rows = [variant(ablations.apply, name) for name in _A1]
    full = variant(ablations.apply, "ours_full", trained_as="ours")
    return [*rows, full], frames
  ours = variant(ablations.apply, "ours", is_trained=False)
  if request.table == "A4":
    return [ours], _FRAMES_A4
  return [
    variant(_per_frame, "hunyuan3d", is_trained=False),
    variant(_per_frame, "hunyuan3d_shared", is_trained=False),
    ours,
    variant(ablations.apply, "ours_full", is_trained=False),
  ], frames
