r"""Registers one mesh to a sequence of meshes: one topology in motion.

  python -m launch.register --input=out --output=out/registered

--input is the folder of a sample, any folder of meshes (PLY, OBJ, STL, GLB; one
a frame), an animated GLB or a USD file. OUTPUT gets registered.glb (morph
targets), registered.usdc, vertices.npz and registration.json, with the quality
of every frame; failed frames are named.

Your own mesh moves instead:       --mesh=my.glb
A given key frame:                 --key=5
Fewer faces:                       --max_faces=10000
One mesh even where it fails:      --one_topology
Colours from its video:            --video=my.mp4 [--texture=first|all]
                                   [--shading=unlit|lit]
A skeleton:                        --bones=auto, or a number

Of your own GLB or glTF file, vertices, faces, texture coordinates, materials
and skeleton are kept: registered.glb is that file with a morph target a frame,
registered_skin.glb the same with its skeleton in motion. Of PLY, OBJ and STL
files the order of vertices and faces is kept.

With a video or bones OUTPUT also gets a figure, a viewer page and a turntable;
with a video the mesh over it (overlay.mp4); with bones registered_skin.glb,
registered_skeleton.usdc and registered.bvh. The video is cropped as by
launch.sample, so use the same video, --start and --end as for sampling.
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
  "output", None, "Output folder; made if missing.", required=True
)
_KEY = flags.DEFINE_string(
  "key", "auto", "Index of the frame whose topology is used, or auto."
)
_MESH = flags.DEFINE_string(
  "mesh",
  None,
  "Your own mesh (GLB, glTF, PLY, OBJ, STL) to move instead; a GLB's materials"
  " and skeleton are kept.",
)
_MAX_FACES = flags.DEFINE_integer(
  "max_faces", None, "Largest number of faces of a frame.", lower_bound=4
)
_ONE_TOPOLOGY = flags.DEFINE_bool(
  "one_topology",
  False,
  "Show all frames by one mesh, also those that it cannot show well.",
)
_VIDEO = flags.DEFINE_string(
  "video", None, "Video, folder of pictures or picture that was sampled."
)
_MATTE = flags.DEFINE_string(
  "matte",
  "auto",
  "Method that finds the video's background; see launch.sample.",
)
_START = flags.DEFINE_float("start", None, "Start in the video, seconds.")
_END = flags.DEFINE_float("end", None, "End in the video, seconds.")
_TEXTURE = flags.DEFINE_enum(
  "texture",
  "all",
  ["first", "all", "none"],
  "Frames from which colours are taken.",
)
_SHADING = flags.DEFINE_enum(
  "shading",
  "unlit",
  ["unlit", "lit"],
  "Whether to keep the filmed light or divide it out.",
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
    one_topology=_ONE_TOPOLOGY.value,
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
