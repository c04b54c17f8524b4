r"""Follows a training's configuration from the program to its uses.

  python -m benchmarks.config_walk --config=tests/integration/micro.py \
    --workdir=/tmp/walk

Trains the preset, and notes for each field of its typed preset the functions on
the stack when it is read for the first time after it was built. These functions
are the field's stays; their files are its rooms; a call into a package that may
import the caller's (docs/architecture.md) is a climb. Functions of libraries do
not count. Printed are the longest walk and one line
for each section of the preset.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from benchmarks import walks
from launch import program
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.stages import runner

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/tiny.py", "Preset that is trained; a small one will do."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "New folder of the training.", required=True
)


def main(argv: Sequence[str]):
  """Runs the program."""
  del argv
  preset = preset_lib.from_config(_CONFIG.value)
  with walks.followed(preset) as found:
    runner.run(preset, _WORKDIR.value, runner.STAGES)
  name, longest = max(found.items(), key=lambda item: len(item[1].stays))
  print(f"\nThe longest walk is that of {name}:\n")
  for file, function in longest.stays:
    print(f"  {file}  {function}")
  print(f"\n{walks.table(found)}")


if __name__ == "__main__":
  program.run(main)
