"""Run inside Blender: writes the posed vertices of a GLB's meshes.

  blender -b --python-exit-code 1 -P blender_poses.py -- IN.glb OUT.json T [T ...]

OUT.json holds, for each time T (s), `{object name: [x, y, z, ...]}` in glTF's axes.
"""

import json
import sys

import bpy  # Only Blender has it.


def _vertices(seconds: float) -> dict[str, list[float]]:
  """World positions of every mesh's vertices at a time."""
  scene = bpy.context.scene
  frame = seconds * scene.render.fps / scene.render.fps_base
  scene.frame_set(int(frame), subframe=frame - int(frame))
  graph = bpy.context.evaluated_depsgraph_get()
  found = {}
  for thing in scene.objects:
    # Shapes that the importer draws bones with are in a collection apart.
    helper = any("not_exported" in c.name for c in thing.users_collection)
    if thing.type != "MESH" or helper:
      continue
    posed = thing.evaluated_get(graph)
    if abs(posed.matrix_world.determinant()) < 1e-12:
      continue
    flat = []
    for vertex in posed.to_mesh().vertices:
      x, y, z = posed.matrix_world @ vertex.co
      flat += [x, z, -y]
    posed.to_mesh_clear()
    found[thing.name] = flat
  return found


def main() -> None:
  """Imports, poses and writes."""
  source, target, *times = sys.argv[sys.argv.index("--") + 1 :]
  bpy.ops.wm.read_factory_settings(use_empty=True)
  bpy.ops.import_scene.gltf(filepath=source)
  with open(target, "w", encoding="utf-8") as file:
    json.dump([_vertices(float(seconds)) for seconds in times], file)


main()
