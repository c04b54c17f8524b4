"""Frames of a registered GLB come back, wherever a sequence is read."""

import numpy as np
import pytest

from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.inference import known
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.meshes import played_glb
from sculpt4d_jax.io.meshes import sequence_input
from sculpt4d_jax.io.meshes import textured_glb
from tests.io import clips
from tests.io.meshes import textured_assets


@pytest.fixture(params=["one topology", "two, the second of one frame", "skin"])
def asset(request, tmp_path):
  """A file, and its true vertices frame by frame."""
  path = tmp_path / "registered.glb"
  first = textured_assets.asset("textured", 5)
  if request.param == "skin":
    _, _, rig = textured_assets.bending_bar(5)
    textured_glb.write_skin(path, first, rig, textured_assets.FPS)
    return path, list(rig.skin.posed())
  parts = [first]
  if request.param != "one topology":
    parts.append(textured_assets.asset("coloured", 1, first_frame=5))
  times = np.cumsum([0, 0.1, 0.2, 0.1, 0.3, 0.1])[: 4 + len(parts)]
  textured_glb.write_morph(path, parts, textured_assets.FPS, times=times)
  return path, [frame for part in parts for frame in part.mesh.vertices]


def _assert_frames(meshes, frames):
  """Same points: a file splits vertices and changes their order."""
  assert len(meshes) == len(frames)
  for mesh, frame in zip(meshes, frames):
    made, true = (
      np.unique(np.round(x.astype(float), 3), axis=0)
      for x in (mesh.vertices, frame)
    )
    np.testing.assert_allclose(made.min(0), true.min(0), atol=2e-3)
    np.testing.assert_allclose(made.max(0), true.max(0), atol=2e-3)
    np.testing.assert_allclose(made.mean(0), true.mean(0), atol=2e-2)


def test_every_reader_gives_the_frames(asset):
  path, frames = asset
  found = sequence_input.read(path)
  assert found.fps == textured_assets.FPS
  assert len(found.times) == len(frames)
  _assert_frames(found.meshes, frames)
  _assert_frames(sequences.read(path).meshes, frames)


def test_a_known_frame_is_the_one_that_is_named(asset):
  path, frames = asset
  (file,) = known.parse([f"0:{path}@3"], 5)
  _assert_frames([known._any_mesh(file)], frames[3:4])


def test_files_of_other_kinds_have_no_starts(tmp_path):
  glb.write_animated_glb(tmp_path / "a.glb", clips.changing_clip(3), 8)
  assert played_glb.frame_starts(tmp_path / "a.glb") is None
  (tmp_path / "b.glb").write_bytes(b"x")
  assert played_glb.frame_starts(tmp_path / "b.glb") is None
