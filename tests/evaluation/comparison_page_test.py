"""The page of pictures: order, figures, files."""

import numpy as np
from PIL import Image
import pytest
import trimesh

from sculpt4d_jax.evaluation import comparison_page
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.inference import preview


def _ball(radius=0.5, x=0.0):
  ball = trimesh.creation.icosphere(subdivisions=2, radius=radius)
  return mesh_lib.TriangleMesh(ball.vertices + [x, 0, 0], ball.faces)


def _scores(name, iou):
  frames = np.full(2, iou)
  return evaluator.SequenceMetrics(
    name=name,
    chamfer=1 - frames,
    iou=frames,
    f_score=frames,
    motion=None,
    num_empty=0,
  )


def test_the_best_the_median_and_the_worst_come_first(tmp_path):
  page = comparison_page.ComparisonPage(tmp_path / "page", "Six <clips>")
  video = np.zeros((2, 16, 16, 3), np.uint8)
  for name, iou in (("a b", 0.3), ("c", 0.9), ("d", 0.1), ("e", 0.5)):
    page.add(_scores(name, iou), [_ball()] * 2, [_ball()] * 2, video)
  text = page.path.read_text()
  assert "Six &lt;clips&gt;" in text
  order = ["Best of 4: c", "Median of 4: a b", "Worst of 4: d", "2. e"]
  places = [text.index(heading) for heading in order]
  assert places == sorted(places)
  assert "IoU 0.900, F-Score 0.900, Chamfer 0.100" in text
  assert {p.name for p in page.path.parent.iterdir()} == {
    "index.html",
    "a_b.png",
    "c.png",
    "d.png",
    "e.png",
  }
  assert Image.open(tmp_path / "page" / "a_b.png").size[0] > 2 * 128


def test_a_mesh_in_a_wrong_place_shows():
  truth, video = [_ball()], np.zeros((1, 16, 16, 3), np.uint8)
  size = 64
  sheets = [
    preview.comparison_sheet(
      [mesh], truth, video, tile_size=size, views=[(0.0, 0.0)]
    ).astype(int)
    for mesh in (_ball(), _ball(x=0.4))
  ]
  third = sheets[0].shape[0] // 3
  # Only the row of the made mesh differs.
  assert np.array_equal(sheets[0][: 2 * third], sheets[1][: 2 * third])
  left, right = (sheet[2 * third :].sum(-1) for sheet in sheets)
  dark = lambda rows: np.average(
    np.arange(rows.shape[1]), weights=(rows.max() - rows).sum(0)
  )
  assert dark(right) > dark(left) + 3


def test_counts_must_agree():
  with pytest.raises(ValueError, match="1 meshes, 2 true ones and 1 video"):
    preview.comparison_sheet(
      [_ball()], [_ball()] * 2, np.zeros((1, 8, 8, 3), np.uint8)
    )
