"""Made blender_cube.glb in Blender 3.4: a cube that moves and grows.

Object and shape key have an action each, which become two animations.

  blender -b --factory-startup --python blender_cube.py -- OUTPUT.glb
"""

import sys

import bpy

FRAMES = range(1, 6)

bpy.ops.wm.read_factory_settings(use_empty=True)
scene = bpy.context.scene
scene.frame_start, scene.frame_end, scene.render.fps = 1, 5, 24
bpy.ops.mesh.primitive_cube_add(size=0.5)
cube = bpy.context.object
cube.shape_key_add(name="Basis")
grown = cube.shape_key_add(name="Grown")
for point in grown.data:
  point.co = 2 * point.co
for frame in FRAMES:
  cube.location = (0.1 * (frame - 1), 0, 0)
  cube.keyframe_insert("location", frame=frame)
  grown.value = (frame - 1) / 4
  grown.keyframe_insert("value", frame=frame)
for animation in (cube.animation_data, cube.data.shape_keys.animation_data):
  for curve in animation.action.fcurves:
    for point in curve.keyframe_points:
      point.interpolation = "LINEAR"
bpy.ops.export_scene.gltf(filepath=sys.argv[-1], export_format="GLB")
