"""Alembic archives, written by the library and read back."""

import numpy as np
import pytest

from sculpt4d_jax.io.assets import alembic as alembic_assets
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import asset_files

_SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)


def _archive(path, num_frames=3, hidden=False, bad_index=False, corners=4):
  """A square that grows by its own size and turns by 90 degrees a frame."""
  alembic3d = pytest.importorskip(
    "alembic3d", reason="needs the extra `alembic`"
  )
  import imath

  Abc, AbcGeom = alembic3d.Abc, alembic3d.AbcGeom
  archive = Abc.OArchive(str(path))
  rate = archive.addTimeSampling(
    alembic3d.AbcCoreAbstract.TimeSampling(0.5, 2.0)
  )
  turning = AbcGeom.OXform(archive.getTop(), "turning", rate)
  if hidden:
    AbcGeom.CreateVisibilityProperty(turning, rate).setValue(0)
  mesh = AbcGeom.OPolyMesh(turning, "square", rate)
  indices, counts = imath.IntArray(4), imath.IntArray(1)
  counts[0] = corners
  for number in range(4):
    indices[number] = 9 if bad_index else number
  for frame in range(num_frames):
    points = imath.V3fArray(4)
    for number, point in enumerate(_SQUARE * (1 + frame)):
      points[number] = imath.V3f(*point)
    mesh.getSchema().set(AbcGeom.OPolyMeshSchemaSample(points, indices, counts))
    place = AbcGeom.XformSample()
    place.setTranslation(imath.V3d(10, 0, 0))
    place.setRotation(imath.V3d(0, 0, 1), 90.0 * frame)
    turning.getSchema().set(place)
  return path


def test_points_and_transforms_are_played(tmp_path):
  asset = animated_assets.AnimatedAsset(_archive(tmp_path / "a.abc"))
  [clip] = asset.clips
  assert (clip.start, clip.end) == (0.0, 1.0)
  mesh = asset.play(clip, [0.0, 0.25, 1.0, 5.0])
  assert (asset.num_meshes, asset.left_out) == (1, ())
  # Counter-clockwise seen from +z in the file means: its outside looks to -z.
  np.testing.assert_array_equal(mesh.faces, [[2, 1, 0], [3, 2, 0]])
  np.testing.assert_allclose(mesh.vertices[0], _SQUARE + [10, 0, 0], atol=1e-6)
  # Half way to the second sample: 1.5 times the size, turned by 45 degrees.
  half = 1.5 * 0.5**0.5
  np.testing.assert_allclose(
    mesh.vertices[1],
    [[10, 0, 0], [10 + half, half, 0], [10, 2 * half, 0], [10 - half, half, 0]],
    atol=1e-5,
  )
  np.testing.assert_allclose(
    mesh.vertices[2], [10, 0, 0] - 3 * _SQUARE, atol=1e-5
  )
  np.testing.assert_array_equal(mesh.vertices[3], mesh.vertices[2])


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(num_frames=1), "no animation"),
    (dict(hidden=True), "no polygon mesh"),
    (dict(bad_index=True), "does not exist"),
    (dict(corners=3), "do not match"),
  ],
)
def test_unusable_archives_say_why(changes, message, tmp_path):
  path = _archive(tmp_path / "a.abc", **changes)
  with pytest.raises(asset_files.AssetError, match=message):
    asset = animated_assets.AnimatedAsset(path)
    asset.play(asset.clips[0], [0.0, 1.0])


def test_damaged_archives_are_refused(tmp_path):
  content = _archive(tmp_path / "a.abc").read_bytes()
  path = tmp_path / "b.abc"
  for damaged in (b"", b"\x89HDF\r\n", content[:200], content[:5] + b"\0" * 99):
    path.write_bytes(damaged)
    with pytest.raises(asset_files.AssetError):
      animated_assets.AnimatedAsset(path)


def test_archives_are_found_and_need_a_package(tmp_path, monkeypatch):
  (tmp_path / "a.abc").write_bytes(b"Ogawa")
  assert [p.name for p in animated_assets.find_assets(tmp_path)] == ["a.abc"]
  monkeypatch.setitem(__import__("sys").modules, "alembic3d", None)
  with pytest.raises(ImportError, match="alembic3d.*Blender"):
    alembic_assets.AlembicAsset(tmp_path / "a.abc")
