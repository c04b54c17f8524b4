import json

import numpy as np
import pytest

from sculpt4d_jax.evaluation import forms
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.inference import register_run
from sculpt4d_jax.inference import registering
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.meshes import sequence_input
from tests.geometry.registration import shapes

TriangleMesh = mesh_lib.TriangleMesh
FPS = 8.0


@pytest.fixture(scope="module", name="made")
def _made():
  meshes = [
    TriangleMesh(0.5 * bar.vertices @ shapes.turn(0.1 * i).T, bar.faces)
    for i, bar in enumerate(
      shapes.box((1, 0.5, 0.3), (10, 5, 4), shift) for shift in (0.0, 0.5, -0.5)
    )
  ]
  settings = settings_lib.Settings(
    graph=settings_lib.GraphSettings(num_nodes=20, num_samples=200)
  )
  found = registering.register(meshes, key=0, settings=settings)
  source = sequence_input.MeshSequence("bar", meshes, FPS)
  parts = registering.plain_parts(found)
  return register_run.Made(source, found, parts, None, ())


def test_the_graph_alone_carries_the_mesh(made):
  per_frame, one, graph = forms.forms_of(made)
  assert per_frame.num_topologies == 3
  assert one.num_topologies == graph.num_topologies == 1
  np.testing.assert_allclose(
    graph.tracked.vertices[0], made.source.meshes[0].vertices, atol=1e-6
  )
  # A bar that turns is moved exactly by rigid nodes.
  truth = made.source.meshes[0].vertices @ shapes.turn(0.2).T
  error = np.linalg.norm(graph.tracked.vertices[2] - truth, axis=1)
  assert error.mean() < 0.01


def test_scores_tell_what_a_form_costs(made):
  truth = made.source.meshes
  rows = {
    form.name: forms.score(form, made.source.meshes, 0, truth)
    for form in forms.forms_of(made)
  }
  assert "chamfer_to_sample" not in rows[forms.PER_FRAME]
  assert rows[forms.PER_FRAME]["iou"] == 1
  for name in (forms.ONE_TOPOLOGY, forms.GRAPH):
    assert rows[name]["chamfer_to_sample"] < 0.005
    assert rows[name]["iou"] > 0.9
  text = forms.table(rows)
  assert "deformation graph" in text and "%" in text


def test_all_files_are_written(tmp_path, made):
  scores = forms.write(made, tmp_path)
  names = sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".")
  assert names == [
    forms.GRAPH_GLB,
    forms.GRAPH_ARRAYS,
    forms.TABLE,
    forms.SHEET,
  ]
  asset = animated_assets.AnimatedAsset(tmp_path / forms.GRAPH_GLB)
  played = asset.play(asset.clips[0], np.arange(3) / FPS)
  wanted = made.registered.graph.positions()
  np.testing.assert_allclose(played.vertices, wanted, atol=1e-6)
  with np.load(tmp_path / forms.GRAPH_ARRAYS) as file:
    assert file["turns"].shape == (3, 20, 3, 3)
    np.testing.assert_allclose(file["weights"].sum(1), 1)
  record = json.loads((tmp_path / forms.TABLE).read_text())
  assert set(record["forms"]) == set(scores)
  assert record["nodes"] == 20


def test_the_sheet_has_the_video_above_two_rows_of_each_form(made):
  pictures = np.full((3, 32, 32, 3), [255, 0, 0], np.uint8)
  sheet = forms.sheet(forms.forms_of(made), pictures)
  is_red = (sheet == [255, 0, 0]).all(-1)
  assert is_red.sum() == 3 * 256 * 256
  bottom = np.flatnonzero(is_red.any(1))[-1]
  # Three forms of two rows each are six times as high as the video's row.
  assert 5.5 < (len(sheet) - bottom) / bottom < 6.1
