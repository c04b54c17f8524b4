import os
import sys

import numpy as np
import pytest

from sculpt4d_jax.io import atomic
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.io.meshes import usd as animated_usd
from tests.io import clips

USD_MISSING = "usd-core is not installed (the extra 'usd')."


def _findings(stage):
  """What OpenUSD's validators say about a stage."""
  validation = pytest.importorskip("pxr.UsdValidation", reason=USD_MISSING)
  validators = validation.ValidationRegistry().GetOrLoadAllValidators()
  assert len(validators) > 10
  context = validation.ValidationContext(validators)
  return [
    f"{error.GetName()}: {error.GetMessage()}"
    for error in context.Validate(stage)
  ]


@pytest.mark.parametrize("suffix", animated_usd.SUFFIXES)
def test_sequences_come_back_bit_for_bit(tmp_path, suffix):
  pytest.importorskip("pxr", reason=USD_MISSING)
  path = tmp_path / f"clip{suffix}"
  meshes = clips.changing_clip(5)
  animated_usd.write_animated_usd(path, meshes, 23.976)
  read, fps = animated_usd.read_animated_usd(path)
  clips.assert_same_meshes(read, meshes)
  assert fps == 23.976
  assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", animated_usd.SUFFIXES)
@pytest.mark.parametrize(
  "meshes",
  [clips.changing_clip(4), [clips.TRIANGLE], [ply_obj.empty_mesh()]],
  ids=["changing", "one_frame", "empty"],
)
def test_every_usd_validator_passes(tmp_path, suffix, meshes):
  usd = pytest.importorskip("pxr.Usd", reason=USD_MISSING)
  path = tmp_path / f"clip{suffix}"
  animated_usd.write_animated_usd(path, meshes, 12)
  assert not _findings(usd.Stage.Open(str(path)))


def test_the_usd_validators_are_awake(tmp_path):
  usd = pytest.importorskip("pxr.Usd", reason=USD_MISSING)
  path = tmp_path / "clip.usda"
  animated_usd.write_animated_usd(path, [clips.TRIANGLE], 12)
  stage = usd.Stage.Open(str(path))
  stage.ClearDefaultPrim()
  stage.ClearMetadata("upAxis")
  assert _findings(stage)


def test_time_samples_by_hand(tmp_path):
  usd = pytest.importorskip("pxr.Usd", reason=USD_MISSING)
  path = tmp_path / "clip.usda"
  animated_usd.write_animated_usd(
    path, [clips.TRIANGLE, ply_obj.empty_mesh()], 2
  )
  stage = usd.Stage.Open(str(path))
  mesh = stage.GetPrimAtPath("/Sculpt4D/Mesh")
  assert stage.GetMetadata("upAxis") == "Y"
  assert (stage.GetStartTimeCode(), stage.GetEndTimeCode()) == (0, 1)
  assert stage.GetFramesPerSecond() == stage.GetTimeCodesPerSecond() == 2
  read = lambda name, time: np.array(mesh.GetAttribute(name).Get(time)).tolist()
  assert read("points", 0) == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
  assert read("faceVertexIndices", 0) == [0, 1, 2]
  assert read("faceVertexCounts", 0) == [3]
  assert read("normals", 0) == [[0, 0, 1]] * 3
  assert read("extent", 0) == [[0, 0, 0], [1, 1, 0]]
  assert [read(name, 1) for name in ("points", "faceVertexCounts")] == [[], []]


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pxr", None)
  with pytest.raises(ImportError, match=r"usd-core: pip install .*\[usd\]"):
    animated_usd.write_animated_usd(tmp_path / "a.usdc", [clips.TRIANGLE], 8)
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize("suffix", animated_usd.SUFFIXES)
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, suffix):
  pytest.importorskip("pxr", reason=USD_MISSING)

  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(atomic.OutputError, match="No space left"):
    animated_usd.write_animated_usd(
      tmp_path / f"clip{suffix}", [clips.TRIANGLE], 8
    )
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize("suffix", animated_usd.SUFFIXES)
def test_a_disk_that_is_really_full_leaves_nothing(tiny_disk, suffix):
  pytest.importorskip("pxr", reason=USD_MISSING)
  path = tiny_disk / f"clip{suffix}"
  meshes = [clips.bumpy_sphere(0.0, 5)] * 2
  with pytest.raises(atomic.OutputError) as caught:
    animated_usd.write_animated_usd(path, meshes, 8)
  assert "clip" in str(caught.value) and "No space left" in str(caught.value)
  assert len(str(caught.value).splitlines()) == 1
  assert not os.listdir(tiny_disk)


def test_bad_files_are_refused(tmp_path):
  pytest.importorskip("pxr", reason=USD_MISSING)
  with pytest.raises(ValueError, match="there is no USD file"):
    animated_usd.read_animated_usd(tmp_path / "none.usda")
  (tmp_path / "bad.usda").write_text("not usd")
  with pytest.raises(ValueError, match="not a readable USD file"):
    animated_usd.read_animated_usd(tmp_path / "bad.usda")
  (tmp_path / "bare.usda").write_text("#usda 1.0\n")
  with pytest.raises(ValueError, match="holds no mesh"):
    animated_usd.read_animated_usd(tmp_path / "bare.usda")
  with pytest.raises(ValueError, match="ending in .usdc or .usda or .usdz"):
    animated_usd.write_animated_usd(tmp_path / "a.abc", [clips.TRIANGLE], 8)
