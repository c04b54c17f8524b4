import json

import numpy as np
import pytest

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.inference import registering
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import given_asset
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.io.meshes import sequence_input
from sculpt4d_jax.io.meshes import usd
from tests.geometry.registration import shapes
from tests.io.meshes import given_assets

TriangleMesh = mesh_lib.TriangleMesh
SMALL = settings_lib.Settings(
  graph=settings_lib.GraphSettings(num_nodes=20, num_samples=200)
)


@pytest.fixture(scope="module")
def cubes():
  cube = shapes.box(cells=(4, 4, 4))
  return [
    TriangleMesh(cube.vertices @ shapes.turn(0.1 * i).T, cube.faces)
    for i in range(3)
  ]


@pytest.fixture(scope="module")
def registered(cubes):
  return registering.register(cubes, settings=SMALL)


def _source(cubes):
  return sequence_input.MeshSequence("cubes", cubes, 8.0)


def test_all_files_are_written_and_say_the_same(tmp_path, cubes, registered):
  pytest.importorskip("pxr", reason="usd-core is not installed.")
  paths = registering.write(tmp_path / "out", registered, _source(cubes))
  assert [path.name for path in paths] == [
    "registered.glb",
    "registered.usdc",
    "registration.json",
    "vertices.npz",
  ]
  assert sorted(
    p.name for p in (tmp_path / "out").iterdir() if p.name[0] != "."
  ) == [path.name for path in paths]
  with np.load(tmp_path / "out/vertices.npz") as file:
    np.testing.assert_array_equal(file["vertices"], registered.mesh.vertices)
    assert file["trajectory"].shape == (3, 4, 4)
  meshes, fps = usd.read_animated_usd(tmp_path / "out/registered.usdc")
  assert fps == 8
  for mesh, vertices in zip(meshes, registered.mesh.vertices):
    np.testing.assert_array_equal(mesh.vertices, vertices)
  record = json.loads((tmp_path / "out/registration.json").read_text())
  assert record["verdicts"] == {"registered": 3, "doubtful": 0, "failed": 0}
  assert [frame["frame"] for frame in record["frames"]] == [0, 1, 2]


def test_usd_stores_faces_that_stay_once(tmp_path, cubes, registered):
  pxr = pytest.importorskip("pxr.Usd", reason="usd-core is not installed.")
  registering.write(tmp_path, registered, _source(cubes))
  stage = pxr.Stage.Open(str(tmp_path / "registered.usdc"))
  prim = next(p for p in stage.Traverse() if p.GetTypeName() == "Mesh")
  assert prim.GetAttribute("points").GetNumTimeSamples() == 3
  assert prim.GetAttribute("faceVertexIndices").GetNumTimeSamples() == 0


def test_a_folder_that_cannot_be_made_leaves_nothing(
  tmp_path, cubes, registered
):
  (tmp_path / "file").write_text("mine")
  with pytest.raises(atomic.OutputError):
    registering.write(tmp_path / "file" / "out", registered, _source(cubes))
  assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_other_files_of_the_folder_stay(tmp_path, cubes, registered):
  for name in ("mine.txt", "registered.glb"):
    (tmp_path / name).write_text("mine")
  registering.write(tmp_path, registered, _source(cubes))
  assert (tmp_path / "mine.txt").read_text() == "mine"
  assert (tmp_path / "registered.kept1.glb").read_text() == "mine"
  assert (tmp_path / "registered.glb").read_bytes()[:4] == b"glTF"


def test_failed_frames_are_named(cubes):
  empty = ply_obj.empty_mesh()
  found = registering.register([cubes[0], empty], settings=SMALL)
  assert "failed: 1" in registering.summary(found)
  record = registering.record(
    found, _source(cubes), run_log.RunLog(progress=False)
  )
  assert record["frames"][1]["verdict"] == "failed"
  json.dumps(record, allow_nan=False)


def test_a_given_asset_comes_back_with_its_skeleton_moved(tmp_path):
  given_assets.write(tmp_path / "mine.glb")
  given = given_asset.read(tmp_path / "mine.glb")
  asset = animated_assets.AnimatedAsset(
    tmp_path / "mine.glb", attachments="all"
  )
  played = asset.play(asset.clips[0], [0.0, 0.2, 0.4])
  frames = list(played.frames())
  registered = registering.register(
    frames, key=0, mesh=given.mesh, settings=SMALL
  )
  paths = registering.write(
    tmp_path / "out", registered, _source(frames), given=given
  )
  assert "registered_skin.glb" in [path.name for path in paths]
  record = json.loads((tmp_path / "out/registration.json").read_text())
  assert record["skeleton"]["source"] == "the given mesh"
  assert record["skeleton"]["rms"] < 0.02
  for name in ("registered.glb", "registered_skin.glb"):
    written = animated_assets.AnimatedAsset(
      tmp_path / "out" / name, attachments="all"
    )
    moved = written.play(written.clips[0], np.arange(3) / 8)
    np.testing.assert_array_equal(moved.faces, played.faces)
    error = np.linalg.norm(moved.vertices - played.vertices, axis=-1)
    assert error.mean() < 0.02
