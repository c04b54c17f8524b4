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

from collections.abc import Sequence
import sys

from absl import flags
from ml_collections import config_flags

from launch import program
from sculpt4d_jax.io import paths
from sculpt4d_jax.training import paper_tables

_TABLE = flags.DEFINE_enum(
  "table", None, paper_tables.TABLES, "Table of the paper.", required=True
)
_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/sculpt4d.py", "Preset; the released size by default."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder for runs, scores and the report.", required=True
)
_SEEDS = flags.DEFINE_string("seeds", "0,1,2", "Seeds of the training.")
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


def main(unused_argv: Sequence[str]) -> None:
  """Runs the program."""
  request = paper_tables.Request(
    _TABLE.value,
    _CONFIG.value,
    paths.on_disk(_WORKDIR.value, "--workdir"),
    " ".join(["python -m launch.reproduce", *sys.argv[1:]]),
    seeds=paper_tables.parse_seeds(_SEEDS.value),
    num_steps=_NUM_STEPS.value,
    num_clips=_NUM_CLIPS.value,
    protocol=_PROTOCOL.value,
    variants=tuple(_VARIANTS.value),
  )
  print(paper_tables.reproduce(request))


if __name__ == "__main__":
  program.run(main)
