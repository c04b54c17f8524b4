r"""Scores mesh sequences against true ones, or a model on held-out clips.

Usage:

  # The shipped model on 20 held-out procedural clips, compared with the same
  # weights without temporal attention and two answers that need no model.
  python -m launch.evaluate --num_sequences=20

  # The same with a page of pictures.
  python -m launch.evaluate --pictures=out/pictures

  # Two models on the test split of records that launch.prepare_data made.
  python -m launch.evaluate --config=configs/tiny_records.py --data=data/mine \
    --checkpoint=runs/mine/weights --other_checkpoint=weights/tiny

  # One sequence: two folders with frame_0000.ply, frame_0001.ply, ...
  python -m launch.evaluate --predicted=out/demo --truth=truth/demo

  # The same from animated GLB or USD files.
  python -m launch.evaluate --predicted=out/demo.glb --truth=truth/demo.usdc

  # Many sequences: two folders of such folders or files, paired by name.
  python -m launch.evaluate --predicted=out --truth=truth --output=scores.json

  # Published protocols, on results of any system; two processes share the
  # clips.
  python -m launch.evaluate --protocol=actionbench --processes=2 \
    --predicted=results --truth=actionbench/data
  python -m launch.evaluate --protocol=sculpt4d --num_sequences=20
  python -m launch.evaluate --describe

Prints Chamfer distance, IoU, F-Score and jitter, averaged over the frames of a
sequence and then over sequences, with a 95 % bootstrap interval over sequences,
and the conventions that the numbers depend on. Meshes are expected in [-1, 1]^3
with y up. Both sides need the same number of frames. A predicted frame without
faces counts with the worst values; see sculpt4d_jax/evaluation/
geometry_metrics.py for the definitions.

With --protocol the columns and conventions are those of a published evaluation;
docs/evaluation.md describes them and what a sequence may be: folders of PLY,
OBJ or GLB files, animated GLB, USD and Alembic files, .npy clouds of tracked
points.

Exits with 2 and one message if the input cannot be compared.
"""

from collections.abc import Sequence
import dataclasses
import json
from typing import Any

from absl import flags
from absl import logging
from ml_collections import config_flags
import tqdm

from launch import program
from sculpt4d_jax.data.loading import batches as record_batches
from sculpt4d_jax.data.loading import loader as record_loader
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import comparison_page
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation import held_out as held_out_lib
from sculpt4d_jax.evaluation import held_out_records
from sculpt4d_jax.evaluation import sequence_pairs
from sculpt4d_jax.evaluation.protocols import conventions as conventions_lib
from sculpt4d_jax.evaluation.protocols import evaluate as evaluate_lib
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.evaluation.protocols import scores as scores_lib
from sculpt4d_jax.evaluation.views import weight_downloads
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import preview
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import output_checks
from sculpt4d_jax.io import paths
from sculpt4d_jax.training import preset as preset_lib

_DEFAULTS = geometry_metrics.Conventions()

_PREDICTED = flags.DEFINE_string(
  "predicted",
  None,
  "A predicted sequence (a folder of PLY files, a GLB or USD file), or a"
  " folder of them.",
)
_TRUTH = flags.DEFINE_string(
  "truth", None, "The true sequence or sequences, likewise."
)
_CONFIG = config_flags.DEFINE_config_file(
  "config",
  "configs/small.py",
  "Preset whose model is evaluated on held-out clips if --predicted is not"
  " given.",
)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "Folder of weights; by default the preset's.",
)
_DATA = flags.DEFINE_list(
  "data",
  [],
  "Data sets of launch.prepare_data; their test split replaces procedural"
  " clips.",
)
_ASSETS = flags.DEFINE_string(
  "assets", "", "With --data: only assets whose name contains this."
)
_OTHER = flags.DEFINE_string(
  "other_checkpoint",
  None,
  "With --data: other weights of the same preset, on the same clips.",
)
_PICTURES = flags.DEFINE_string(
  "pictures",
  None,
  "For a model: folder for a picture of each clip; without --data also a page"
  " that begins with the best, the median and the worst.",
)
_NUM_SEQUENCES = flags.DEFINE_integer(
  "num_sequences", 20, "Number of held-out clips.", lower_bound=1
)
_NUM_TRIVIAL = flags.DEFINE_integer(
  "num_training_clips",
  128,
  "Number of training clips from which the trivial answers are made.",
  lower_bound=1,
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "JSON file for every number, frame by frame; optional."
)
_PROTOCOL = flags.DEFINE_string(
  "protocol",
  None,
  "Name of a protocol; --describe lists them. Without it scores are those of"
  " --protocol=project with the flags below.",
)
_DESCRIBE = flags.DEFINE_bool(
  "describe",
  False,
  "Print the conventions of --protocol, or of every protocol, and stop.",
)
_PROCESSES = flags.DEFINE_integer(
  "processes",
  1,
  "With --protocol: number of processes that share the clips.",
  lower_bound=1,
)
_WEIGHTS = flags.DEFINE_string(
  "weights",
  None,
  "With --protocol=views: folder of the networks' weights. Nothing is"
  " downloaded without --download; a row whose file is missing says so.",
)
_DOWNLOAD = flags.DEFINE_bool(
  "download",
  False,
  "With --weights: download VGG16 and CLIP ViT-B/32 into the folder, if they"
  " are missing, by torchvision and huggingface_hub.",
)
_PICTURE_SIZE = flags.DEFINE_integer(
  "picture_size",
  512,
  "With --protocol=views: side of the pictures in pixels.",
  lower_bound=32,
)
_NAME = flags.DEFINE_string(
  "name", "prediction", "Name of the predictions in the table."
)
_MARKDOWN = flags.DEFINE_bool(
  "markdown", False, "Print tables in Markdown instead of plain text."
)
_ALIGNMENT = flags.DEFINE_enum(
  "alignment",
  _DEFAULTS.alignment,
  geometry_metrics.ALIGNMENTS,
  "Transform that is removed from the prediction, found once for a whole"
  " sequence: none, scale and translation, or these and a rigid pose found by"
  " ICP.",
)
_NUM_POINTS = flags.DEFINE_integer(
  "num_points",
  _DEFAULTS.num_points,
  "Number of points sampled on each surface for Chamfer and F-Score.",
  lower_bound=1,
)
_F_SCORE_THRESHOLD = flags.DEFINE_float(
  "f_score_threshold",
  _DEFAULTS.f_score_threshold,
  "Distance in [-1, 1]^3 below which points count as matched.",
  lower_bound=0.0,
)
_IOU_RESOLUTION = flags.DEFINE_integer(
  "iou_resolution",
  _DEFAULTS.iou_resolution,
  "Number of cells along an axis of the occupancy grid.",
  lower_bound=1,
)
_SEED = flags.DEFINE_integer(
  "seed", _DEFAULTS.seed, "Seed of the sampled points.", lower_bound=0
)


# Flags that a protocol fixes.
_FIXED_BY_PROTOCOL = (
  "alignment",
  "num_points",
  "f_score_threshold",
  "iou_resolution",
)


def main(unused_argv: Sequence[str]) -> None:
  """Runs the program."""
  if _DESCRIBE.value:
    chosen = [_PROTOCOL.value] if _PROTOCOL.value else protocol_table.PROTOCOLS
    print("\n\n".join(protocol_table.find(name).describe() for name in chosen))
    return
  if _PICTURES.value and (_PROTOCOL.value or _has_paths()):
    raise UserError(
      "--pictures shows a model's clips: give it without --protocol,"
      " --predicted and --truth."
    )
  if _OUTPUT.value:
    output_checks.check_file(_OUTPUT.value)
  if _PICTURES.value:
    output_checks.check_folder(_PICTURES.value)
  if _PROTOCOL.value:
    score_by_protocol(chosen_protocol())
    return
  conventions = geometry_metrics.Conventions(
    num_points=_NUM_POINTS.value,
    f_score_threshold=_F_SCORE_THRESHOLD.value,
    iou_resolution=_IOU_RESOLUTION.value,
    alignment=_ALIGNMENT.value,
    seed=_SEED.value,
  )
  description = conventions.describe()
  if _has_paths():
    pairs = sequence_pairs.find_pairs(_PREDICTED.value, _TRUTH.value)
    scores = score_pairs(pairs, conventions)
    rows = {_NAME.value: evaluator.summarise(scores)}
  elif _DATA.value:
    rows, description = score_on_records(
      preset_lib.from_config(_CONFIG.value), conventions
    )
  else:
    rows = score_model(preset_lib.from_config(_CONFIG.value), conventions)
  print_report(rows, description, markdown=_MARKDOWN.value)
  if _OUTPUT.value:
    report = evaluator.to_json(rows, conventions)
    report["description"] = description
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    atomic.write_bytes(_OUTPUT.value, text.encode())


def chosen_protocol() -> conventions_lib.Protocol:
  """The protocol named by the flags, with --seed if given.

  Raises:
    ValueError: There is no such protocol, or a flag contradicts it.
  """
  protocol = protocol_table.find(_PROTOCOL.value)
  for name in _FIXED_BY_PROTOCOL:
    if flags.FLAGS[name].present:
      raise UserError(
        f"--protocol={protocol.name} fixes --{name}; leave out one of the two."
      )
  if _DOWNLOAD.value:
    if not _WEIGHTS.value:
      raise UserError("--download needs a folder: give --weights too.")
    weight_downloads.download(_WEIGHTS.value)
  changes = {
    "views": conventions_lib.ViewSettings(
      size=_PICTURE_SIZE.value, weights=_WEIGHTS.value
    )
  }
  if flags.FLAGS["seed"].present:
    changes["seed"] = _SEED.value
  return protocol.with_conventions(**changes)


def score_by_protocol(protocol: conventions_lib.Protocol) -> None:
  """Scores files, or a model on held-out clips, and prints a report."""
  if _DATA.value:
    raise UserError(
      "Records hold points and distances instead of meshes, which no protocol"
      " reads; use --data without --protocol."
    )
  if _has_paths():
    report = evaluate_lib.evaluate(
      _PREDICTED.value,
      _TRUTH.value,
      protocol,
      processes=_PROCESSES.value,
    )
    rows = {_NAME.value: report}
  else:
    rows = held_out_lib.compare_by_protocol(
      **held_out_arguments(preset_lib.from_config(_CONFIG.value)),
      protocol=protocol,
    )
  print(scores_lib.format_report(rows, markdown=_MARKDOWN.value))
  if _OUTPUT.value:
    text = json.dumps(scores_lib.to_json(rows), indent=2, allow_nan=False)
    atomic.write_bytes(_OUTPUT.value, f"{text}\n".encode())


def _has_paths() -> bool:
  if bool(_PREDICTED.value) != bool(_TRUTH.value):
    raise UserError(
      "--predicted and --truth belong together; give both, or neither to"
      " evaluate the model of --config on held-out clips."
    )
  return bool(_PREDICTED.value)


def score_model(
  preset: preset_lib.Preset,
  conventions: geometry_metrics.Conventions,
) -> dict[str, evaluator.Summary]:
  """Scores a preset's model, and trivial answers, on held-out clips."""
  page = None
  if _PICTURES.value:
    page = comparison_page.ComparisonPage(
      _PICTURES.value, f"Held-out clips, preset {preset.name}"
    )
  rows = held_out_lib.compare(
    **held_out_arguments(preset), conventions=conventions, page=page
  )
  if page:
    logging.info("Open %s.", page.path)
  return rows


def held_out_arguments(preset: preset_lib.Preset) -> dict[str, Any]:
  """Arguments of `held_out.compare` except the conventions."""
  program.log_platform()
  data = preset.data
  if _NUM_SEQUENCES.value > data.num_held_out:
    raise UserError(
      f"--num_sequences={_NUM_SEQUENCES.value} exceeds the preset's"
      f" {data.num_held_out} held-out clips (data.num_held_out)."
    )
  log = run_log.RunLog()
  folder = model_lib.weights_folder(preset.weights, _CHECKPOINT.value)
  with log.stage("load weights"):
    model = model_lib.Sculpt4D.load(
      preset.model, folder, sampling=preset.sampling
    )
  clips = held_out_lib.make_clips(
    range(data.held_out_seed, data.held_out_seed + _NUM_SEQUENCES.value),
    data.num_frames,
    data.sizes,
    log,
  )
  count = min(data.num_clips, _NUM_TRIVIAL.value)
  return {
    "model": model,
    "clips": clips,
    "training_clips": [
      solids.make_clip(data.first_seed + i, data.num_frames)
      for i in range(count)
    ],
    "sampling": preset.sampling,
    "surface": preset.surface,
    "log": log,
  }


def score_on_records(
  preset: preset_lib.Preset,
  conventions: geometry_metrics.Conventions,
) -> tuple[dict[str, evaluator.Summary], str]:
  """Scores one or two models on a test split; also returns the conventions."""
  program.log_platform()
  folders = {
    "model": model_lib.weights_folder(preset.weights, _CHECKPOINT.value)
  }
  if _OTHER.value:
    folders["other model"] = paths.of(_OTHER.value)
  example = record_batches.whole_clips(
    # Meshes are set upright, whatever frame the model was trained in.
    dataclasses.replace(preset.records.example, picture_frame=False),
    preset.data.num_frames,
  )
  reader = record_loader.open_split(_DATA.value, "test", example)
  log = run_log.RunLog()
  rows = held_out_records.choose(reader, _NUM_SEQUENCES.value, _ASSETS.value)
  records = [
    held_out_records.read(reader, row, _SEED.value)
    for row in log.each("read held-out clips", rows)
  ]
  sampling, surface = preset.sampling, preset.surface
  alone = dataclasses.replace(sampling, temporal_mode="none")
  summaries = {}
  for title, folder in folders.items():
    with log.stage(f"load weights of {title}"):
      model = model_lib.Sculpt4D.load(preset.model, folder, sampling=sampling)
    for name, how in ((title, sampling), (f"{title}, per frame", alone)):
      scores = []
      for record in log.each(f"sample and score {name}", records):
        meshes = held_out_records.sample_meshes(model, record, how, surface)
        scores.append(held_out_records.score(meshes, record, conventions))
        if _PICTURES.value and how is sampling:
          file = comparison_page.picture_name(f"{record.name} {title}")
          path = paths.of(_PICTURES.value) / file
          with atomic.output_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
          preview.write_preview(path, meshes, record.images)
      summaries[name] = evaluator.summarise(scores)
  if _OTHER.value and len(records) > 1:
    print_differences(*(summaries[title] for title in folders))
  return summaries, held_out_records.describe(records, conventions)


def score_pairs(
  pairs: Sequence[sequence_pairs.SequencePair],
  conventions: geometry_metrics.Conventions,
) -> list[evaluator.SequenceMetrics]:
  """Reads and scores sequence by sequence, with a progress bar."""
  scores = []
  with tqdm.tqdm(unit="frame", dynamic_ncols=True) as bar:
    for index, pair in enumerate(pairs):
      bar.set_description(f"{pair.name} ({index + 1} of {len(pairs)})")
      prediction, truth = pair.read()
      scores.append(
        evaluator.evaluate_sequence(
          prediction,
          truth,
          conventions,
          name=pair.name,
          on_frame=bar.update,
        )
      )
  return scores


def print_report(
  rows: dict[str, evaluator.Summary],
  description: str,
  *,
  markdown: bool,
) -> None:
  """Prints the sequences if there are several, the means, and conventions."""
  for title, summary in rows.items():
    if len(summary.sequences) > 1:
      print(f"{title}, by sequence:\n")
      print(evaluator.format_sequences(summary, markdown=markdown), "\n")
  print(evaluator.format_table(rows, markdown=markdown))
  print(f"\nConventions: {description}.")


def print_differences(
  model: evaluator.Summary, other: evaluator.Summary
) -> None:
  """Prints the differences between the models, clip by clip."""
  print("\nmodel - other model, means over clips with 95 % intervals:")
  for metric, better in evaluator.METRICS.items():
    found = evaluator.paired_difference(model, other, metric)
    if found.num_sequences:
      print(
        f"  {metric:8s} {found.mean:+.4f} [{found.low:+.4f},"
        f" {found.high:+.4f}]  ({better} is better)"
      )
  print()


if __name__ == "__main__":
  program.run(main)
