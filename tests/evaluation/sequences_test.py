import json
import pathlib
import struct
import zipfile

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.evaluation import sequence_pairs
from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.meshes import ply_obj
from tests.evaluation import shapes

MESHES = [shapes.sphere(0.3 + 0.1 * t, subdivisions=1) for t in range(3)]


def assert_equal(found, expected=MESHES, atol=1e-6):
  assert found.num_frames == len(expected)
  for mesh, other in zip(found.meshes, expected):
    np.testing.assert_allclose(mesh.vertices, other.vertices, atol=atol)
    np.testing.assert_array_equal(mesh.faces, other.faces)


def write_glbs(folder, meshes, name="mesh_{:02d}.glb"):
  """One GLB a frame, as trimesh writes it: ActionMesh's form."""
  folder.mkdir(parents=True)
  for index, mesh in enumerate(meshes):
    shapes.as_trimesh(mesh).export(folder / name.format(index))
  return folder


def test_reads_a_folder_as_actionmesh_writes_it(tmp_path):
  folder = write_glbs(tmp_path / "clip", MESHES)
  # Their program also leaves one animated file in it.
  glb.write_animated_glb(folder / "animated_mesh.glb", MESHES[:2], 8.0)
  found = sequences.read(folder)
  assert_equal(found)
  assert found.source == "GLB a frame"


def test_reads_glb_files_with_a_moved_node(tmp_path):
  scene = trimesh.Scene()
  transform = trimesh.transformations.translation_matrix([0.0, 0.5, 0.0])
  scene.add_geometry(shapes.as_trimesh(MESHES[0]), transform=transform)
  (tmp_path / "clip").mkdir()
  scene.export(tmp_path / "clip" / "mesh_00.glb")
  [mesh] = sequences.read(tmp_path / "clip").meshes
  np.testing.assert_allclose(
    mesh.vertices, MESHES[0].vertices + [0, 0.5, 0], atol=1e-6
  )


@pytest.mark.parametrize(
  "name", ["frame_{:04d}.ply", "{}.obj", "pred_mesh-{}.ply", "t{:03d}.stl"]
)
def test_reads_numbered_files_in_the_order_of_numbers(tmp_path, name):
  count = 12  # 10 follows 9, not 1.
  meshes = [shapes.sphere(0.3 + 0.01 * t, subdivisions=0) for t in range(count)]
  for index, mesh in enumerate(meshes):
    shapes.as_trimesh(mesh).export(tmp_path / name.format(index))
  found = sequences.read(tmp_path)
  radii = [np.abs(mesh.vertices).max() for mesh in found.meshes]
  np.testing.assert_array_equal(np.argsort(radii), np.arange(count))


def test_reads_a_zip_and_topologies_that_change(tmp_path):
  meshes = [shapes.sphere(subdivisions=s) for s in (0, 1, 2)]
  with zipfile.ZipFile(tmp_path / "clip.zip", "w") as archive:
    for index, mesh in enumerate(meshes):
      ply_obj.write_mesh(tmp_path / "mesh.ply", mesh)
      archive.write(tmp_path / "mesh.ply", f"frame_{index}.ply")
  assert_equal(sequences.read(tmp_path / "clip.zip"), meshes)


def test_reads_clouds_and_leaves_out_normals(tmp_path):
  values = np.random.default_rng(0).normal(size=(4, 10, 6))
  folder = tmp_path / "uid"
  folder.mkdir()
  np.save(folder / "surfaces.npy", values.astype(np.float32))
  np.save(tmp_path / "other.npy", values[..., :3])
  for path in (folder, tmp_path / "other.npy"):
    found = sequences.read(path)
    np.testing.assert_allclose(found.cloud, values[..., :3], atol=1e-6)


def write_morphing_glb(path, offsets, start=None):
  """A box whose vertices move by morph weights at keys of one second.

  Its times are 0, 1, ...; key k shows offset k, [3] or [8, 3], from `start`.
  """
  mesh = shapes.as_trimesh(shapes.box([0.4, 0.4, 0.4]))
  positions = np.asarray(mesh.vertices if start is None else start, "<f4")
  faces = np.asarray(mesh.faces, "<u2")
  targets = [np.broadcast_to(o, positions.shape).astype("<f4") for o in offsets]
  times = np.arange(len(offsets), dtype="<f4")
  weights = np.eye(len(offsets), dtype="<f4")
  arrays = [positions, faces.reshape(-1), *targets, times, weights.reshape(-1)]
  views, accessors, binary = [], [], b""
  for number, array in enumerate(arrays):
    content = array.tobytes()
    views.append(
      {"buffer": 0, "byteOffset": len(binary), "byteLength": len(content)}
    )
    accessors.append(
      {
        "bufferView": number,
        "componentType": 5123 if array.dtype == "<u2" else 5126,
        "count": len(array),
        "type": "VEC3" if array.ndim == 2 else "SCALAR",
      }
    )
    binary += content + b"\0" * (-len(content) % 4)
  count = len(offsets)
  document = {
    "asset": {"version": "2.0"},
    "scene": 0,
    "scenes": [{"nodes": [0]}],
    "nodes": [{"mesh": 0}],
    "meshes": [
      {
        "weights": [0.0] * count,
        "primitives": [
          {
            "attributes": {"POSITION": 0},
            "indices": 1,
            "targets": [{"POSITION": 2 + k} for k in range(count)],
          }
        ],
      }
    ],
    "animations": [
      {
        "samplers": [{"input": 2 + count, "output": 3 + count}],
        "channels": [{"sampler": 0, "target": {"node": 0, "path": "weights"}}],
      }
    ],
    "accessors": accessors,
    "bufferViews": views,
    "buffers": [{"byteLength": len(binary)}],
  }
  text = json.dumps(document).encode()
  text += b" " * (-len(text) % 4)
  path.write_bytes(
    struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(binary))
    + struct.pack("<I4s", len(text), b"JSON")
    + text
    + struct.pack("<I4s", len(binary), b"BIN\0")
    + binary
  )
  return np.asarray(positions)


def test_plays_an_animation_at_the_times_of_the_truth(tmp_path):
  offsets = [[0, 0, 0], [0.2, 0, 0], [0.4, 0, 0]]
  rest = write_morphing_glb(tmp_path / "clip.glb", offsets)
  truth = [shapes.box([0.4, 0.4, 0.4], [0.1 * t, 0.0, 0.0]) for t in range(5)]
  ply_obj.write_mesh_sequence(tmp_path / "truth" / "clip", truth)
  [pair] = sequence_pairs.find_pairs(
    tmp_path / "clip.glb", tmp_path / "truth" / "clip"
  )
  predicted, true = pair.read_shapes()
  assert predicted.num_frames == true.num_frames == 5
  for t, mesh in enumerate(predicted.meshes):
    np.testing.assert_allclose(mesh.vertices, rest + [0.1 * t, 0, 0], atol=1e-6)
  assert "GLB played at 5 times" in predicted.source


def test_own_animated_files_give_back_their_meshes(tmp_path):
  meshes = [MESHES[0], shapes.EMPTY, MESHES[2]]
  glb.write_animated_glb(tmp_path / "a.glb", meshes, 8.0)
  assert not sequences.is_played(tmp_path / "a.glb")
  found = sequences.read(tmp_path / "a.glb", num_frames=7)
  assert_equal(found, meshes, atol=0)


def damaged(tmp_path, kind) -> tuple[pathlib.Path, str]:
  """A sequence with a fault, and what must be said of it."""
  path = tmp_path / "clip"
  if kind == "missing frame":
    write_glbs(path, MESHES)
    (path / "mesh_01.glb").unlink()
    shapes.as_trimesh(MESHES[0]).export(path / "mesh_03.glb")
    return path, "none for frame 1"
  if kind == "truncated GLB":
    write_glbs(path, MESHES)
    content = (path / "mesh_01.glb").read_bytes()
    (path / "mesh_01.glb").write_bytes(content[: len(content) // 2])
    return path, "mesh_01.glb"
  if kind == "NaN vertex":
    ply_obj.write_mesh_sequence(path, MESHES)
    content = (path / "frame_0001.ply").read_bytes()
    place = content.index(b"end_header\n") + len(b"end_header\n")
    nan = struct.pack("<f", np.nan)
    (path / "frame_0001.ply").write_bytes(
      content[:place] + nan + content[place + 4 :]
    )
    return path, "frame_0001.ply' *: *1 of"
  if kind == "broken zip":
    path = path.with_suffix(".zip")
    path.write_bytes(b"PK\x03\x04 and no more")
    return path, "not a zip file"
  if kind == "zip of text":
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("readme.txt", "no mesh")
    return path, "holds no .ply"
  if kind == "flat array":
    path = path.with_suffix(".npy")
    np.save(path, np.zeros((4, 3)))
    return path, r"float64 \[4, 3\]; expected floats"
  if kind == "pickle":
    path = path.with_suffix(".npy")
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    return path, "not a readable .npy array"
  path.mkdir()
  return path, "has no numbered meshes"


@pytest.mark.parametrize(
  "kind",
  [
    "missing frame",
    "truncated GLB",
    "NaN vertex",
    "broken zip",
    "zip of text",
    "flat array",
    "pickle",
    "empty folder",
  ],
)
def test_damaged_input_is_one_sentence_that_names_it(tmp_path, kind):
  path, message = damaged(tmp_path, kind)
  with pytest.raises(sequences.SequenceError, match=message) as caught:
    sequences.read(path)
  assert "\n" not in str(caught.value)


def test_true_clips_without_prediction_are_listed_on_demand(tmp_path):
  for name in ("a", "b"):
    ply_obj.write_mesh_sequence(tmp_path / "truth" / name, MESHES)
  write_glbs(tmp_path / "predicted" / "b", MESHES)
  find = lambda **options: sequence_pairs.find_pairs(
    tmp_path / "predicted", tmp_path / "truth", **options
  )
  assert [pair.name for pair in find()] == ["b"]
  pairs = find(every_truth=True)
  assert [(p.name, p.predicted is None) for p in pairs] == [
    ("a", True),
    ("b", False),
  ]
