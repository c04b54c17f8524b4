import dataclasses

import numpy as np
from PIL import Image
import pytest

from benchmarks.bench_v1 import make
from benchmarks.bench_v1 import rows
from configs import tiny
from sculpt4d_jax.evaluation import held_out
from sculpt4d_jax.evaluation.protocols import evaluate
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.training import preset as preset_lib
from tests.evaluation import shapes

PROTOCOL = protocol_table.find("motion324").with_conventions(num_points=300)


@pytest.fixture(name="preset")
def _preset():
  return preset_lib.from_config(tiny.get_config())


def score(folder, names, row, preset, protocol=PROTOCOL):
  return rows.score(
    folder, names, [row], preset, protocol, run_log.RunLog(False)
  )[row]


def test_scores_are_kept_and_only_missing_ones_are_made(
  tmp_path, monkeypatch, preset
):
  for name in ("a", "b"):
    ply_obj.write_mesh_sequence(
      tmp_path / "truth" / name, [shapes.sphere(0.6)] * 2
    )
  monkeypatch.setattr(make, "NUM_FRAMES", 2)
  ball = [shapes.sphere(0.5)]
  monkeypatch.setattr(held_out, "mean_shape", lambda clips: ball)
  monkeypatch.setattr(rows, "_MAX_TRAINING", 1)
  first = score(tmp_path, ["a"], "mean shape", preset)
  counted = []
  real = evaluate.score_clip

  def count(*arguments, **options):
    counted.append(options["name"])
    return real(*arguments, **options)

  monkeypatch.setattr(evaluate, "score_clip", count)
  whole = score(tmp_path, ["a", "b"], "mean shape", preset)
  assert counted == ["b"]
  assert whole.clips[0].mean("cd_sum") == first.clips[0].mean("cd_sum")
  assert whole.clips[0].sources[0] == "mean shape"
  # Other conventions are other scores.
  other = PROTOCOL.with_conventions(num_points=200)
  score(tmp_path, ["a"], "mean shape", preset, other)
  assert counted == ["b", "a"]


def test_scores_of_other_weights_are_not_taken(tmp_path, monkeypatch, preset):
  ply_obj.write_mesh_sequence(
    tmp_path / "truth" / "a", [shapes.sphere(0.6)] * 2
  )
  weights = tmp_path / "weights"
  weights.mkdir()
  preset = dataclasses.replace(preset, weights=str(weights))
  radius = {b"earlier": 0.5, b"later": 0.4}

  def sample(self, name, count, temporal_mode=None):
    file = weights / "dit.safetensors"
    return [shapes.sphere(radius[file.read_bytes()])] * count

  monkeypatch.setattr(rows._Answers, "_sample", sample)
  found = []
  for content in (b"earlier", b"later", b"earlier"):
    (weights / "dit.safetensors").write_bytes(content)
    report = score(tmp_path, ["a"], "model", preset)
    found.append(report.clips[0].mean("cd_sum"))
  assert found[0] < found[1]
  assert found[2] == found[0]


def test_impossible_rows_are_refused(tmp_path, preset):
  with pytest.raises(ValueError, match="no row 'best'; choose of mean shape"):
    score(tmp_path, [], "best", preset)
  views = protocol_table.find("views")
  with pytest.raises(ValueError, match="compares sets"):
    score(tmp_path, [], "model", preset, views)


def test_pictures_are_put_on_white(tmp_path):
  rgba = np.zeros((8, 8, 4), np.uint8)
  rgba[:4] = [200, 0, 0, 255]
  for index in range(3):
    Image.fromarray(rgba).save(tmp_path / f"{index:04d}.png")
  found, masks = rows.read_pictures(tmp_path, 4)
  assert found.shape == (3, 4, 4, 3)
  np.testing.assert_array_equal(
    found[:, :2], np.full((3, 2, 4, 3), [200, 0, 0])
  )
  np.testing.assert_array_equal(found[:, 2:], 255)
  np.testing.assert_array_equal(masks[:, :2], 255)
  np.testing.assert_array_equal(masks[:, 2:], 0)


@pytest.mark.slow  # Samples the model.
def test_the_model_answers_from_the_pictures(tmp_path, monkeypatch, preset):
  monkeypatch.setattr(make, "NUM_FRAMES", 2)
  monkeypatch.setattr(make, "NUM_POINTS", 300)
  make.make(tmp_path, num_clips=1)
  sampling = dataclasses.replace(preset.sampling, num_steps=4)
  preset = dataclasses.replace(preset, sampling=sampling)
  found = score(tmp_path, ["procedural-000"], "model", preset)
  # Seed 0's object fills a good part of the cube: better than the worst.
  assert found.clips[0].num_empty == 0
  assert found.estimates["cd_sum"].mean < 0.6
