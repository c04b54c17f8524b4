r"""Registers one mesh to a sequence of meshes: one topology that moves.

  python -m launch.register --input=out --output=out/registered

--input is the folder of a sample, any folder of meshes (PLY, OBJ, STL, GLB; one
a frame), an animated GLB or a USD file. OUTPUT gets registered.glb (morph
targets), registered.usdc, vertices.npz and registration.json, which says of
every frame how well it was registered; frames that failed are named.

Your own mesh, its topology kept:  --mesh=my.glb
A key frame of your choice:        --key=5
Fewer faces:                       --max_faces=10000
"""

from collections.abc import Sequence

from absl import flags
from absl import logging

from launch import program
from sculpt4d_jax.inference import outputs
from sculpt4d_jax.inference import registering
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io.meshes import sequence_input

_INPUT = flags.DEFINE_string(
  "input", None, "Folder of meshes, animated GLB or USD file.", required=True
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Folder for the results; made if missing.", required=True
)
_KEY = flags.DEFINE_string(
  "key", "auto", "Number of the frame whose topology is taken, or auto."
)
_MESH = flags.DEFINE_string(
  "mesh", None, "Mesh (PLY, OBJ, STL, GLB) whose topology is kept instead."
)
_MAX_FACES = flags.DEFINE_integer(
  "max_faces", None, "Face budget of the frames.", lower_bound=4
)


def main(argv: Sequence[str]) -> None:
  """Reads, registers and writes."""
  del argv
  key = _key()
  outputs.check_writable(_OUTPUT.value)
  log = run_log.RunLog()
  with log.stage("read meshes"):
    source = sequence_input.read(_INPUT.value)
    mesh = _MESH.value and sequence_input.read_mesh(_MESH.value)
  registered = registering.register(
    source.meshes, key=key, mesh=mesh, max_faces=_MAX_FACES.value, log=log
  )
  paths = registering.write(_OUTPUT.value, registered, source, log)
  logging.info("Wrote %d files to %s.", len(paths), _OUTPUT.value)
  print(registering.summary(registered))


def _key() -> int | None:
  if _KEY.value == "auto":
    return None
  if not _KEY.value.isdigit():
    raise ValueError(f"--key={_KEY.value}: expected auto or a frame's number.")
  return int(_KEY.value)


if __name__ == "__main__":
  program.run(main)
