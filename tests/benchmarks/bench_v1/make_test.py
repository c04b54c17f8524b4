import json

import numpy as np
from PIL import Image
import pytest

from benchmarks.bench_v1 import make
from sculpt4d_jax.evaluation import sequence_pairs
from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.evaluation.protocols.metrics import point_to_surface
from tests.evaluation import sequences_test


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(make, "NUM_FRAMES", 2)
  monkeypatch.setattr(make, "NUM_POINTS", 300)
  monkeypatch.setattr(make, "PICTURE_SIZE", 32)


def test_clips_have_pictures_meshes_and_points_on_them(tmp_path, small):
  asset = tmp_path / "Cube.glb"
  sequences_test.write_morphing_glb(asset, [[0, 0, 0], [0.4, 0, 0]])
  made = make.make(tmp_path / "bench", num_clips=1, assets=[asset])
  assert sorted(made) == ["character-cube", "procedural-000"]
  for name in made:
    truth = sequences.read(tmp_path / "bench" / "truth" / name)
    tracked = sequences.read(tmp_path / "bench" / "tracked" / name)
    assert truth.num_frames == tracked.num_frames == 2
    for mesh, points in zip(truth.meshes, tracked.cloud):
      assert point_to_surface.distances(points, mesh).mean() < 0.01
      assert np.abs(mesh.vertices).max() <= 1.0
    path = tmp_path / "bench" / "frames" / name / "0001.png"
    picture = np.asarray(Image.open(path))
    assert picture.shape == (32, 32, 4)
    assert 0.05 < (picture[..., 3] > 127).mean() < 0.95
  pairs = sequence_pairs.find_pairs(
    tmp_path / "bench" / "truth", tmp_path / "bench" / "tracked"
  )
  assert [pair.name for pair in pairs] == sorted(made)


def test_making_resumes_and_refuses_other_versions(tmp_path, small):
  make.make(tmp_path, num_clips=1)
  frame = tmp_path / "truth" / "procedural-000" / "frame_0000.ply"
  before = frame.stat().st_mtime_ns
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  assert make.make(tmp_path, num_clips=1) == manifest["clips"]
  assert frame.stat().st_mtime_ns == before
  manifest["version"] = "bench-v0"
  (tmp_path / "manifest.json").write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match="holds 'bench-v0'"):
    make.make(tmp_path, num_clips=1)
