r"""Makes three forms of a sample, scores them and shows them side by side.

  python -m launch.forms --input=out --output=out/forms

--input is what launch.register takes. OUTPUT gets

  registered.glb         one topology whose vertices move (the form of V2M4),
                         with the other files of launch.register
  deformation_graph.glb  the same mesh, carried by a deformation graph alone (the
                         form of DreamMesh4D); deformation_graph.npz has its
                         nodes, edges, weights and motions
  forms.png              both below the meshes per frame, at six times
  forms.json             scores

Textured, and next to the video:  --video=my.mp4
Scored against the true meshes:   --truth=truth/demo

Printed is how far each form is from the meshes per frame, in per cent of the
box, and with --truth Chamfer distance, IoU, F-Score and jitter of all three.
"""

from collections.abc import Sequence

from absl import flags
from absl import logging

from launch import program
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import forms
from sculpt4d_jax.evaluation import sequence_pairs
from sculpt4d_jax.inference import register_run
from sculpt4d_jax.inference import run_log

_INPUT = flags.DEFINE_string(
  "input", None, "Folder of meshes, animated GLB or USD file.", required=True
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Folder for the results; made if missing.", required=True
)
_TRUTH = flags.DEFINE_string(
  "truth", None, "True meshes: a folder of them, an animated GLB or USD file."
)
_VIDEO = flags.DEFINE_string(
  "video", None, "The video, folder of pictures or picture that was sampled."
)
_MAX_FACES = flags.DEFINE_integer(
  "max_faces", None, "Face budget of the frames.", lower_bound=4
)


def main(argv: Sequence[str]) -> None:
  """Registers, writes and scores."""
  del argv
  truth = None
  if _TRUTH.value:
    truth = sequence_pairs.read_sequence(_TRUTH.value)
  log = run_log.RunLog()
  made = register_run.run(
    _INPUT.value,
    _OUTPUT.value,
    log,
    max_faces=_MAX_FACES.value,
    one_topology=True,
    video=register_run.Video(_VIDEO.value) if _VIDEO.value else None,
  )
  if truth is not None and len(truth) != len(made.source.meshes):
    raise UserError(
      f"--truth has {len(truth)} frames, the sample {len(made.source.meshes)}."
    )
  with log.stage("compare the forms"):
    scores = forms.write(made, _OUTPUT.value, truth)
  logging.info("Wrote the forms to %s.", _OUTPUT.value)
  print(made.summary)
  print(forms.table(scores))


if __name__ == "__main__":
  program.run(main)
