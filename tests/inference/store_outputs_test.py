"""What programs write goes into a bucket, not into a folder called "gs:"."""

import numpy as np
import pytest

from sculpt4d_jax.cli import options
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.inference import preview
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.io.meshes import sequence_input
from sculpt4d_jax.io.video import reader
from sculpt4d_jax.io.video import writer
from tests.io import emulated


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request):
  with emulated.store(request.param) as bucket:
    yield bucket


def _triangle():
  return mesh_lib.TriangleMesh(
    np.eye(3, dtype=np.float32), np.array([[0, 1, 2]], np.int32)
  )


@pytest.mark.parametrize("is_text", [True, False])
def test_writers_take_urls_and_readers_find_them(
  bucket, is_text, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  place = bucket / f"written as {'text' if is_text else 'paths'}"
  given = lambda name: str(place / name) if is_text else place / name
  frames = np.full((2, 32, 32, 3), 200, np.uint8)
  writer.write_video(given("clip.mp4"), frames, 8.0)
  writer.write_video(given("pictures"), frames, 8.0)
  ply_obj.write_mesh_sequence(given("truth"), [_triangle()] * 2)
  preview.write_preview(given("preview.png"), [_triangle()], frames[:1])
  assert not list(tmp_path.iterdir())
  assert {path.name for path in place.iterdir()} == {
    "clip.mp4",
    "pictures",
    "truth",
    "preview.png",
  }
  assert len(reader.read_frames(given("clip.mp4")).frames) == 2
  assert len(reader.read_frames(given("pictures")).frames) == 2
  assert len(sequence_input.read(given("truth")).meshes) == 2
  with pytest.raises(ValueError, match=f"^{place}/none: there is no such"):
    reader.read_frames(given("none"))


def test_the_last_line_of_a_run_names_the_page():
  page = paths.of("gs://bucket/out/viewer.html")
  assert options.opened_with(page).startswith(f"Copy {page} to this machine")
  assert options.opened_with("out/viewer.html").startswith("Open out/viewer")
