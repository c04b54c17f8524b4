import builtins
import io
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
from PIL import Image
import pytest

from sculpt4d_jax.evaluation import cost
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation.reproduce import plots
from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import image_encoder
from sculpt4d_jax.models import shape_vae

SIZES = cost.Sizes(
  dit_config.DiTConfig(),
  image_encoder.ImageEncoderConfig(),
  shape_vae.ShapeVAEConfig(),
)


def test_figure_a1_is_written_as_png_and_svg(tmp_path):
  pytest.importorskip("matplotlib", reason="needs the extra `figures`")
  figure = plots.figure_a1(SIZES, max_frames=16)
  network, attention, paper = figure.axes[0].get_lines()
  # Table A2 of the paper at 16 frames, and our attention column.
  assert attention.get_ydata()[-1] == pytest.approx(35.23, abs=0.005)
  assert list(paper.get_xdata()) == [8, 16]
  assert list(paper.get_ydata()) == [68.6, 43.8]
  assert (np.diff(network.get_ydata()) < 0).all()
  png, svg = plots.write(figure, tmp_path, "figure_a1")
  picture = np.asarray(Image.open(io.BytesIO(png.read_bytes())).convert("L"))
  assert picture.shape[0] > 300 and 0.005 < (picture < 200).mean() < 0.3
  root = ElementTree.fromstring(svg.read_text())
  words = {element.text for element in root.iter() if element.text}
  assert {"network", "temporal attention", "frames"} <= words
  # The same figure is the same file.
  assert plots.svg(plots.figure_a1(SIZES, max_frames=16)) == plots.svg(figure)


def test_intervals_have_a_panel_a_metric_and_survive_single_clips():
  pytest.importorskip("matplotlib", reason="needs the extra `figures`")
  estimate = evaluator.Estimate
  single = estimate(0.2, math.nan, math.nan, 1)
  figure = plots.intervals(
    {
      "CD ↓": {"ours": estimate(0.1, 0.05, 0.15, 9), "full": single},
      "IoU ↑": {"ours": estimate(0.4, 0.3, 0.5, 9), "full": single},
    }
  )
  assert [axes.get_title() for axes in figure.axes] == ["CD ↓", "IoU ↑"]
  names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
  assert names == ["ours", "full"]
  assert "<svg" in plots.svg(figure)


def test_without_matplotlib_the_extra_is_named(monkeypatch):
  real = builtins.__import__

  def refuse(name, *arguments, **options):
    if name.partition(".")[0] == "matplotlib":
      raise ImportError(name)
    return real(name, *arguments, **options)

  monkeypatch.setattr(builtins, "__import__", refuse)
  with pytest.raises(ImportError, match=r"sculpt4d-jax\[figures\]"):
    plots.figure_a1(SIZES, max_frames=4)
