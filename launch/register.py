r"""Registers one mesh to a sequence of meshes: one topology that moves.

  python -m launch.register --input=out --output=out/registered

--input is the folder of a sample, any folder of meshes (PLY, OBJ, STL, GLB; one
a frame), an animated GLB or a USD file. OUTPUT gets registered.glb (morph
targets), registered.usdc, vertices.npz and registration.json, which says of
every frame how well it was registered; frames that failed are named.

Your own mesh moves instead:       --mesh=my.glb
A key frame of your choice:        --key=5
Fewer faces:                       --max_faces=10000
Colours from its video:            --video=my.mp4 [--texture=first|all]
                                   [--shading=unlit|lit]
A skeleton:                        --bones=auto, or a number

Of your own GLB or glTF file vertices, faces, texture coordinates, materials and
skeleton stay as they are: registered.glb is that file with a morph target a
frame, registered_skin.glb the same with its skeleton in motion. Of PLY, OBJ and
STL the order of vertices and faces stays.

With a video or bones OUTPUT also gets a figure, a viewer page and a turntable;
with a video the mesh over it (overlay.mp4); with bones registered_skin.glb,
registered_skeleton.usdc and registered.bvh. The video is cut as launch.sample
cuts it, so give the one that was sampled, with the same --start and --end.
"""

from collections.abc import Sequence

from absl import flags
from absl import logging

from launch import program
from sculpt4d_jax.inference import register_run
from sculpt4d_jax.inference import run_log

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
  "mesh",
  None,
  "Your mesh (GLB, glTF, PLY, OBJ, STL), which is moved instead; a GLB's"
  " materials and skeleton are kept.",
)
_MAX_FACES = flags.DEFINE_integer(
  "max_faces", None, "Face budget of the frames.", lower_bound=4
)
_VIDEO = flags.DEFINE_string(
  "video", None, "The video, folder of pictures or picture that was sampled."
)
_MATTE = flags.DEFINE_string(
  "matte", "auto", "How the video's background is found; see launch.sample."
)
_START = flags.DEFINE_float("start", None, "Start in the video, seconds.")
_END = flags.DEFINE_float("end", None, "End in the video, seconds.")
_TEXTURE = flags.DEFINE_enum(
  "texture", "all", ["first", "all", "none"], "Frames that give colours."
)
_SHADING = flags.DEFINE_enum(
  "shading",
  "unlit",
  ["unlit", "lit"],
  "Keep the filmed light, or divide it out.",
)
_BONES = flags.DEFINE_string(
  "bones", "0", "Number of bones, auto, or 0 for no skeleton."
)
_TEXTURE_SIZE = flags.DEFINE_integer(
  "texture_size", 1024, "Side of the texture in texels."
)


def main(argv: Sequence[str]) -> None:
  """Reads, registers and writes."""
  del argv
  video = None
  if _VIDEO.value:
    video = register_run.Video(
      _VIDEO.value, _MATTE.value, _START.value, _END.value
    )
  made = register_run.run(
    _INPUT.value,
    _OUTPUT.value,
    run_log.RunLog(),
    key=_KEY.value,
    mesh=_MESH.value,
    max_faces=_MAX_FACES.value,
    video=video,
    bones=_BONES.value,
    texture=_TEXTURE.value,
    shading=_SHADING.value,
    texture_size=_TEXTURE_SIZE.value,
  )
  logging.info("Wrote %d files to %s.", len(made.files), _OUTPUT.value)
  print(made.summary)


if __name__ == "__main__":
  program.run(main)
