r"""Exports the animated characters of Panda3D's packages as assets.

  pip install panda3d panda3d-assetcoop
  python -m benchmarks.export_panda3d --output=assets/panda3d

Every animation of a character becomes a folder of meshes, one a frame, with y
up, which `launch.prepare_data` reads. `OUTPUT/sources.json` has their sources
and licences, and groups all clips of a character as one object. Static poses
and textures are ignored.
"""

from collections.abc import Iterator
import importlib.metadata
import json
import os
import pathlib
import types
from typing import Any

from absl import flags
from absl import logging
import numpy as np

from launch import program
from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.meshes import ply_obj

_OUTPUT = flags.DEFINE_string(
  "output", None, "Folder for the assets.", required=True
)
_MIN_FRAMES = 8

# Package, folder in it, model, files with animations, licence, authors.
_CHARACTERS = (
  (
    "panda3d",
    "panda3d/models",
    "panda-model.egg.pz",
    ("panda-walk4.egg.pz",),
    "BSD-3-Clause",
    "the Panda3D project",
  ),
  *(
    (
      "panda3d-assetcoop",
      "assetcoop/bam/models/character",
      f"{name}.bam",
      (),
      "Panda3D License (modified BSD)",
      "Entikan, thecheapestpixels",
    )
    for name in ("peter_panda", "sofia", "rebecca", "polyimpairedperson")
  ),
)


def _panda3d() -> types.ModuleType:
  try:
    from panda3d import core
  except ImportError as error:
    raise MissingPackageError(
      "Exporting the characters needs them: pip install panda3d"
      " panda3d-assetcoop."
    ) from error
  core.load_prc_file_data(
    "", "window-type none\nnotify-level-char error\nnotify-level-loader error"
  )
  return core


def _load(core: types.ModuleType, path: pathlib.Path) -> Any:
  node = core.Loader.get_global_ptr().load_sync(
    core.Filename.from_os_specific(os.fspath(path))
  )
  if node is None:
    raise UserError(f"Panda3D cannot read {path}.")
  return core.NodePath(node)


def _vertices(core: types.ModuleType, top: Any) -> np.ndarray:
  """All vertices in the current pose, y up, [V, 3]."""
  parts = []
  thread = core.Thread.get_current_thread()
  for path in top.find_all_matches("**/+GeomNode"):
    matrix = np.array(path.get_mat(top)).reshape(4, 4)
    for geom in path.node().get_geoms():
      data = geom.get_vertex_data().animate_vertices(True, thread)
      layout = data.get_format()
      array = layout.get_array_with("vertex")
      stride = layout.get_array(array).get_stride()
      start = layout.get_column("vertex").get_start()
      rows = np.frombuffer(data.get_array(array).get_handle().get_data(), "u1")
      rows = rows.reshape(-1, stride)[:, start : start + 12].copy()
      points = rows.view("<f4").astype(np.float64)
      parts.append(points @ matrix[:3, :3] + matrix[3, :3])
  x, y, z = np.concatenate(parts).T
  return np.stack([x, z, -y], axis=1)


def _faces(top: Any) -> np.ndarray:
  faces, count = [], 0
  for path in top.find_all_matches("**/+GeomNode"):
    for geom in path.node().get_geoms():
      triangles = geom.decompose()
      for number in range(triangles.get_num_primitives()):
        primitive = triangles.get_primitive(number)
        corners = [
          primitive.get_vertex(i) for i in range(primitive.get_num_vertices())
        ]
        faces.append(np.reshape(corners, (-1, 3)) + count)
      count += geom.get_vertex_data().get_num_rows()
  return np.concatenate(faces)


def _clips(
  core: types.ModuleType,
  folder: pathlib.Path,
  model: str,
  animations: tuple[str, ...],
) -> Iterator[tuple[str, list[mesh_lib.TriangleMesh]]]:
  """Names and meshes of a character's animations."""
  top = _load(core, folder / model)
  for name in animations:
    _load(core, folder / name).reparent_to(top)
  controls = core.AnimControlCollection()
  core.auto_bind(top.node(), controls, ~0)
  bundles = [
    path.node().get_bundle(i)
    for path in top.find_all_matches("**/+Character")
    for i in range(path.node().get_num_bundles())
  ]
  faces = _faces(top)
  for number in range(controls.get_num_anims()):
    control = controls.get_anim(number)
    frames = control.get_num_frames()
    if frames < _MIN_FRAMES:
      continue
    seconds = (frames - 1) / control.get_frame_rate()
    times = np.arange(round(seconds * animated_assets.SEQUENCE_RATE) + 1)
    times = times / animated_assets.SEQUENCE_RATE
    meshes = []
    for time in times:
      frame = min(round(time * control.get_frame_rate()), frames - 1)
      control.pose(int(frame))
      for bundle in bundles:
        bundle.force_update()
      meshes.append(mesh_lib.TriangleMesh(_vertices(core, top), faces))
    yield controls.get_anim_name(number), meshes


def main(argv: list[str]) -> None:
  """Runs the program."""
  del argv
  core = _panda3d()
  output, credits = pathlib.Path(_OUTPUT.value), []
  for package, place, model, animations, licence, authors in _CHARACTERS:
    try:
      files = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
      logging.warning("%s is not installed; %s is left out.", package, model)
      continue
    character = model.partition(".")[0]
    folder = pathlib.Path(files.locate_file(place))
    for name, meshes in _clips(core, folder, model, animations):
      ply_obj.write_mesh_sequence(output / character / name, meshes)
      logging.info("%s %s: %d frames.", character, name, len(meshes))
    credits.append(
      {
        "files": f"{character}/*",
        "licence": licence,
        "authors": authors,
        "source": f"PyPI {package} {files.version}",
        "object": character,
      }
    )
  atomic.write_bytes(
    output / "sources.json", json.dumps(credits, indent=1).encode()
  )


if __name__ == "__main__":
  program.run(main)
