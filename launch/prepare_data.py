r"""Makes training records from animated assets.

  python -m launch.prepare_data --assets=my_assets --output=data/mine
  python -m launch.prepare_data --procedural=200 --output=data/made --preset=tiny

Assets are .glb and .gltf files (skins, morph targets, node animation), USD and
Alembic files, and folders or zips of per-frame meshes, found in all folders
below. Each animation becomes one or more records, if it passes the round-trip
gate; OUTPUT/summary.html shows accepted and rejected clips with reasons. State
the sources and licences of the assets in a `sources.json` next to them:

  [{"files": "kaykit/*.glb", "licence": "CC0-1.0", "source": "...",
    "authors": "...", "object": "assets of one object share its name"}]

All sources of one command, several folders and the procedural one, form one
data set, split by asset, with one card:

  python -m launch.prepare_data --assets=my_assets,more --procedural=200 \
    --config=configs/tiny.py --output=data/both

You can stop it at any time: the same command resumes, and adds new assets.
Sizes are those of the paper; --preset=small and --preset=tiny are for tests and
small models, --config takes the sizes of a configuration, and every size has a
flag. --beam runs the work through Apache Beam, with runner options in
--beam_options.
"""

from collections.abc import Sequence
import dataclasses
import os
import shlex
import sys
from typing import Any

from absl import flags
from absl import logging
from ml_collections import config_flags

from launch import program
from sculpt4d_jax.data.preparation import beam
from sculpt4d_jax.data.preparation import prepare
from sculpt4d_jax.data.preparation import run as preparation_run
from sculpt4d_jax.data.preparation import units as asset_units
from sculpt4d_jax.data.records import card
from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.data.records import summary_page
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import watertight
from sculpt4d_jax.training import preset as preset_lib

_PRESETS = {
  "full": {},
  "small": dict(
    num_uniform=16_384,
    num_sharp=16_384,
    num_queries=512,
    num_near=8192,
    num_volume=4096,
    num_views=8,
    image_size=256,
    resolution=128,
  ),
  "tiny": dict(
    num_frames=8,
    num_uniform=2048,
    num_sharp=2048,
    num_parts=2,
    num_queries=64,
    num_near=2048,
    num_volume=1024,
    num_views=4,
    image_size=128,
    resolution=64,
  ),
}

_ASSETS = flags.DEFINE_list("assets", [], "Folders of assets.")
_PROCEDURAL = flags.DEFINE_integer(
  "procedural", 0, "Number of procedural clips.", lower_bound=0
)
_FIRST_SEED = flags.DEFINE_integer(
  "first_seed", 200_000, "First seed of the procedural clips.", lower_bound=0
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Folder of the data set.", required=True
)
_PRESET = flags.DEFINE_enum(
  "preset", "full", list(_PRESETS), "Sizes of a record."
)
_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Configuration that will be trained: each part of a record has its numbers"
  " of points and samples, there are --num_parts parts (4 by default), and"
  " pictures are twice as large, because the reader crops the object.",
)
_TEST_FRACTION = flags.DEFINE_float(
  "test_fraction", 0.1, "Fraction of the assets for the test split.", 0.0, 0.99
)
_HELD_OUT = flags.DEFINE_string(
  "held_out",
  None,
  'JSON file of objects that are put into the test split: {"held_out":'
  ' ["name of an object", ...]}.',
)
_MAX_UNITS = flags.DEFINE_integer(
  "max_units",
  0,
  "Largest number of units that this call prepares; objects alternate, so that"
  " any part of the work is balanced. 0 prepares all.",
  lower_bound=0,
)
_WORKERS = flags.DEFINE_integer(
  "workers",
  os.cpu_count() or 1,
  "Number of units prepared at a time.",
  lower_bound=1,
)
_CLIPS_PER_UNIT = flags.DEFINE_integer(
  "clips_per_unit", 8, "Number of animations in a unit of work.", lower_bound=1
)
_MEMORY = flags.DEFINE_float(
  "memory_gb", 16.0, "Address space of a unit's process, GB.", lower_bound=1.0
)
_TIME = flags.DEFINE_float(
  "time_limit",
  7200.0,
  "Time after which a unit is killed, seconds.",
  lower_bound=1.0,
)
_BEAM = flags.DEFINE_bool("beam", False, "Run through Apache Beam.")
_BEAM_OPTIONS = flags.DEFINE_string(
  "beam_options", "", "Options of Beam's runner, in command-line syntax."
)


def _define_sizes() -> dict[str, flags.FlagHolder]:
  """Defines a flag for every size of a record; unset ones are the preset's."""
  holders = {}
  for field in dataclasses.fields(prepare.PreparationSettings):
    text = f"{field.name.replace('_', ' ')} of a record; default by preset."
    if field.type == "int" or field.type is int:
      holders[field.name] = flags.DEFINE_integer(field.name, None, text)
    elif field.type == "float" or field.type is float:
      holders[field.name] = flags.DEFINE_float(field.name, None, text)
  holders["attachments"] = flags.DEFINE_enum(
    "attachments",
    None,
    ["one", "all", "none"],
    "Unskinned meshes kept on a skinned character: one for each joint, all or"
    " none.",
  )
  holders["resolution"] = flags.DEFINE_integer(
    "resolution",
    None,
    "Number of cells along a side of the watertight surface's grid.",
  )
  return holders


_SIZES = _define_sizes()


_CONFIG_PARTS = 4


def _config_sizes(preset: preset_lib.Preset, num_parts: int) -> dict[str, int]:
  """Sizes of records for the training of a configuration."""
  data, vae = preset.data, preset.model.vae
  points = ("num_uniform", "num_sharp", "num_near", "num_volume")
  return dict(
    {name: num_parts * getattr(data.sizes, name) for name in points},
    num_parts=num_parts,
    num_frames=data.num_frames,
    num_queries=vae.num_latents,
    downsample_ratio=vae.downsample_ratio,
    image_size=2 * data.sizes.image_size,
  )


def _settings() -> prepare.PreparationSettings:
  sizes = dict(_PRESETS[_PRESET.value])
  if _CONFIG.value is not None:
    num_parts = _SIZES["num_parts"].value or _CONFIG_PARTS
    sizes |= _config_sizes(preset_lib.from_config(_CONFIG.value), num_parts)
  sizes |= {
    name: holder.value
    for name, holder in _SIZES.items()
    if holder.value is not None
  }
  surface = {}
  if "resolution" in sizes:
    surface["resolution"] = sizes.pop("resolution")
  return prepare.PreparationSettings(
    **sizes, surface=watertight.WatertightSettings(**surface)
  )


# Assets that are named in the log; the summary has all.
_NUM_NAMED = 10


def main(argv: Sequence[str]):
  """Runs the program."""
  del argv
  settings = _settings()
  folder = preparation_run.open_output(_OUTPUT.value, settings)
  run = preparation_run.RunSettings(
    num_workers=_WORKERS.value,
    clips_per_unit=_CLIPS_PER_UNIT.value,
    memory_bytes=int(_MEMORY.value * 2**30),
    seconds=_TIME.value,
    threads=max(1, (os.cpu_count() or 1) // _WORKERS.value),
    max_units=_MAX_UNITS.value,
  )
  held_out = ()
  if _HELD_OUT.value:
    held_out = dataset_index.read_held_out(_HELD_OUT.value)
  assets = asset_units.find_assets(_ASSETS.value)
  assets += asset_units.procedural_units(
    _FIRST_SEED.value, _PROCEDURAL.value, _CLIPS_PER_UNIT.value
  )
  if not assets:
    raise UserError(
      "There is nothing to prepare: give folders of assets with --assets or"
      " a number of procedural clips with --procedural."
    )
  logging.info("%d assets, into %s.", len(assets), folder)
  if _BEAM.value:
    beam.run(
      assets, settings, run, str(folder), shlex.split(_BEAM_OPTIONS.value)
    )
  else:
    preparation_run.run_locally(assets, settings, run, str(folder))
  verdicts = dataset_index.read_verdicts(folder)
  index = dataset_index.write_index(
    folder, verdicts, _TEST_FRACTION.value, held_out
  )
  page = summary_page.write_summary(folder, verdicts)
  card.write_card(index, verdicts, _command())
  for name, clips in index.splits.items():
    logging.info(
      "%s: %d clips of %d assets.",
      name,
      len(clips),
      len({clip.asset for clip in clips}),
    )
  if index.splits["train"] and not index.splits["test"]:
    logging.warning(
      "The test split has no assets: no score can be had on them. With only a"
      " few assets, raise --test_fraction (now %g).",
      _TEST_FRACTION.value,
    )
  _report_refusals(verdicts, page)
  logging.info("Open %s.", page)


def _report_refusals(verdicts: Sequence[dict[str, Any]], page: Any) -> None:
  """Names assets that could not be used.

  Raises:
    UserError: No clip could be used.
  """
  refused = [v for v in verdicts if v["error"]]
  rejected = [c for v in verdicts for c in v["clips"] if not c["accepted"]]
  is_empty = not any(c["accepted"] for v in verdicts for c in v["clips"])
  for verdict in refused[:_NUM_NAMED]:
    logging.warning("%s: %s", verdict["asset_name"], verdict["error"])
  if len(refused) > _NUM_NAMED:
    logging.warning("and %d more assets.", len(refused) - _NUM_NAMED)
  if verdicts and is_empty:
    raise UserError(
      f"No clip can be used: of the assets {len(refused)} could not be read,"
      f" and of the clips {len(rejected)} did not pass the checks. {page} gives"
      " the reasons."
    )


def _command() -> str:
  return shlex.join(["python", "-m", "launch.prepare_data", *sys.argv[1:]])


if __name__ == "__main__":
  program.run(main)
