"""Scores against a record: the true shape is near the best, others are not."""

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.data.loading import examples as record_examples
from sculpt4d_jax.data.loading import loader as record_loader
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation import held_out_records
from sculpt4d_jax.geometry import mesh as mesh_lib
from tests.data import small_records

pytest.importorskip("array_record", reason="needs the extra `data`")
pytest.importorskip("grain", reason="needs the extra `data`")

_CONVENTIONS = geometry_metrics.Conventions()


@pytest.fixture(scope="module", name="reader")
def _reader(tmp_path_factory):
  folder = small_records.make(tmp_path_factory.mktemp("data") / "spheres")
  config = record_examples.ExampleConfig(
    contents=("geometry", "images", "masks"),
    num_frames=4,
    num_parts=0,
    image_size=16,
    mirror=False,
    reverse_time=False,
  )
  return record_loader.open_split(folder, "test", config)


def _spheres(number, grown=1.0, moved=0.0):
  centres, radius = small_records.sphere(number)
  ball = trimesh.creation.icosphere(subdivisions=3, radius=radius * grown)
  return [
    mesh_lib.TriangleMesh(ball.vertices + centre + [0, moved, 0], ball.faces)
    for centre in centres
  ]


def test_the_true_shape_scores_best(reader):
  record = held_out_records.read(reader, 0)
  assert record.images.shape == (4, 16, 16, 3)
  assert record.masks.shape == (4, 16, 16)
  # White where nothing is.
  assert (record.images[record.masks == 0] == 255).all()
  # The uniform points and the places in the cube of two parts.
  assert record.points.shape == (4, 48, 3)
  assert record.samples.shape == (4, 32, 4)
  number = 4  # The first clip of the test split.
  best, grown, moved = (
    held_out_records.score(meshes, record, _CONVENTIONS).means()
    for meshes in (
      _spheres(number),
      _spheres(number, grown=1.5),
      _spheres(number, moved=0.2),
    )
  )
  assert best["chamfer"] < 0.04 and best["f_score"] > 0.7
  assert best["iou"] == 1.0 and np.isnan(best["jitter"])
  for worse in (grown, moved):
    assert worse["chamfer"] > best["chamfer"] + 0.01
    assert worse["f_score"] < best["f_score"]


def test_nothing_scores_the_worst(reader):
  record = held_out_records.read(reader, 1)
  nothing = mesh_lib.TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3), int))
  scores = held_out_records.score([nothing] * 4, record, _CONVENTIONS)
  assert scores.num_empty == 4 and scores.means()["f_score"] == 0
  assert scores.means()["chamfer"] == geometry_metrics.WORST_CHAMFER


def test_what_cannot_be_compared_says_so(reader):
  record = held_out_records.read(reader, 0)
  with pytest.raises(ValueError, match="3 predicted frames against 4"):
    held_out_records.score(_spheres(4)[:3], record, _CONVENTIONS)
  aligned = geometry_metrics.Conventions(alignment="icp")
  with pytest.raises(ValueError, match="alignment"):
    held_out_records.score(_spheres(4), record, aligned)
  with pytest.raises(ValueError, match="the split has 2"):
    held_out_records.choose(reader, 3)
  assert held_out_records.choose(reader, 1, "sphere 5") == [1]
  assert "48 points" in held_out_records.describe([record], _CONVENTIONS)
