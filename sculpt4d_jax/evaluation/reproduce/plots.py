"""Plots of a report by matplotlib, which the extra `figures` installs."""

from collections.abc import Mapping, Sequence
import io
import pathlib
import re
from typing import Any

from sculpt4d_jax.evaluation import cost
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.io import atomic

Figure = Any
Estimates = Mapping[str, evaluator.Estimate]

NEEDS = "Plots need matplotlib: pip install 'sculpt4d-jax[figures]'."
_NETWORK, _ATTENTION = "#b5482a", "#2a5db5"
_TICKS = (2, 8, 16, 32, 64)
_STYLE = {
  "font.size": 9,
  "axes.spines.top": False,
  "axes.spines.right": False,
  # Text stays text, and equal figures are equal files.
  "svg.fonttype": "none",
  "svg.hashsalt": "sculpt4d",
}


def figure_a1(sizes: cost.Sizes, max_frames: int = 64) -> Figure:
  """Operations of sparse over full attention by frames, and the paper's points.

  Args:
    sizes: Sizes of the networks.
    max_frames: Largest number of frames.

  Raises:
    ImportError: matplotlib is not installed.

  Source: Sculpt4D, Figure A1.
  """
  figure, [axes] = _figure(1, (6.2, 3.8))
  network, attention = cost.ratios(sizes, range(2, max_frames + 1))
  frames = range(2, max_frames + 1)
  percent = lambda ratios: [100 * ratio for ratio in ratios]
  axes.plot(frames, percent(network), color=_NETWORK, label="network")
  axes.plot(
    frames, percent(attention), color=_ATTENTION, label="temporal attention"
  )
  paper = {
    number: figures[2]
    for number, figures in cost.PAPER_TABLE_A2.items()
    if number <= max_frames
  }
  axes.plot(
    list(paper),
    list(paper.values()),
    "o",
    fillstyle="none",
    color=_NETWORK,
    label="network, the paper's counts",
  )
  axes.set(
    xlabel="frames",
    ylabel="operations, % of full attention",
    ylim=(0, 100),
    xticks=[tick for tick in _TICKS if tick <= max_frames],
  )
  axes.grid(axis="y", color="#ddd")
  axes.legend(frameon=False)
  return figure


def intervals(columns: Mapping[str, Estimates]) -> Figure:
  """Means with their intervals, a panel a metric and a line a variant.

  Args:
    columns: Metric's title -> variant -> estimate.

  Raises:
    ImportError: matplotlib is not installed.
  """
  variants = list(next(iter(columns.values())))
  size = (2.4 * len(columns) + 1.0, 0.3 * len(variants) + 0.9)
  figure, panels = _figure(len(columns), size)
  places = list(range(len(variants)))[::-1]
  for number, (title, estimates) in enumerate(columns.items()):
    axes = panels[number]
    for place, estimate in zip(places, estimates.values()):
      axes.plot(
        [estimate.low, estimate.high], [place] * 2, color=_ATTENTION, lw=1.5
      )
      axes.plot(estimate.mean, place, "o", color=_ATTENTION, ms=4)
    axes.set_title(title, fontsize=9)
    axes.set_yticks(places, variants if not number else [""] * len(variants))
    axes.set_ylim(-0.6, len(variants) - 0.4)
    axes.locator_params(axis="x", nbins=4)
    axes.grid(axis="x", color="#ddd")
  return figure


def svg(figure: Figure) -> str:
  """The figure as an element of a page."""
  content = io.StringIO()
  figure.savefig(content, format="svg", metadata={"Date": None})
  text = content.getvalue()
  return re.sub(r"^.*?(?=<svg)", "", text, flags=re.DOTALL).strip()


def write(
  figure: Figure, folder: pathlib.Path, name: str
) -> Sequence[pathlib.Path]:
  """Writes NAME.png and NAME.svg; returns their paths."""
  content = io.BytesIO()
  figure.savefig(content, format="png", dpi=160, metadata={"Software": None})
  paths = [folder / f"{name}.png", folder / f"{name}.svg"]
  atomic.write_bytes(paths[0], content.getvalue())
  atomic.write_bytes(paths[1], f"{svg(figure)}\n".encode())
  return paths


def _figure(num_panels: int, size: tuple[float, float]) -> tuple[Figure, list]:
  """A figure without a window, with panels side by side."""
  try:
    import matplotlib
    from matplotlib.backends import backend_agg
    from matplotlib.figure import Figure as NewFigure
  except ImportError as error:
    raise ImportError(NEEDS) from error
  matplotlib.rcParams.update(_STYLE)
  figure = NewFigure(figsize=size, layout="constrained")
  backend_agg.FigureCanvasAgg(figure)
  panels = figure.subplots(1, num_panels, squeeze=False)[0]
  return figure, list(panels)
