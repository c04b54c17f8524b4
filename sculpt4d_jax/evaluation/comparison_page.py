"""A page of pictures that shows how good and how bad a model's clips are.

It begins with the best, the median and the worst clip by IoU, so that nobody
has to trust a choice of examples; all others follow in the same order. The
pictures lie next to it.
"""

from collections.abc import Sequence
import dataclasses
import html
import re

import numpy as np

from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.inference import preview
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 76rem; padding: 0 1rem; color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
img { width: 100%; border-radius: 6px; }
p { margin: .3rem 0; font-variant-numeric: tabular-nums; }
"""
_ROWS = (
  "Rows: input; from the front, truth and model; from the side, truth and"
  " model. Meshes stand where they are, in the frame of the true ones."
)


@dataclasses.dataclass(frozen=True)
class Shown:
  """A clip of the page.

  Attributes:
    scores: Its metrics, with its name.
    picture: File of its contact sheet, in the page's folder.
  """

  scores: evaluator.SequenceMetrics
  picture: str


class ComparisonPage:
  """Collects clips; every call of `add` writes the page anew."""

  def __init__(self, folder: paths.PathLike, title: str):
    """Makes the folder.

    Args:
      folder: The page's folder.
      title: Heading.

    Raises:
      OutputError: It cannot be made.
    """
    self._folder = paths.of(folder)
    self._title = title
    self._clips: list[Shown] = []
    with atomic.output_errors(self._folder):
      self._folder.mkdir(parents=True, exist_ok=True)

  @property
  def path(self) -> paths.PathLike:
    """The page."""
    return self._folder / "index.html"

  def add(
    self,
    scores: evaluator.SequenceMetrics,
    meshes: Sequence[mesh_lib.TriangleMesh],
    truth: Sequence[mesh_lib.TriangleMesh],
    video_frames: np.ndarray,
  ) -> None:
    """Adds a clip.

    Args:
      scores: Its metrics.
      meshes: The model's mesh of each frame.
      truth: The true ones.
      video_frames: The input, uint8 [F, h, w, 3].
    """
    name = picture_name(scores.name)
    sheet = preview.comparison_sheet(meshes, truth, video_frames)
    preview.save_sheet(self._folder / name, sheet)
    self._clips.append(Shown(scores, name))
    atomic.write_bytes(self.path, self._html().encode())

  def _html(self) -> str:
    ordered = sorted(
      self._clips, key=lambda clip: np.mean(clip.scores.iou), reverse=True
    )
    middle = len(ordered) // 2
    chosen = {"Best": 0, "Median": middle, "Worst": len(ordered) - 1}
    parts = [
      "<!doctype html><html lang=en><meta charset=utf-8>",
      "<meta name=viewport content='width=device-width'>",
      f"<title>{html.escape(self._title)}</title><style>{_STYLE}</style>",
      f"<h1>{html.escape(self._title)}</h1><p>{_ROWS}</p>",
    ]
    for label, place in chosen.items():
      parts.append(_section(f"{label} of {len(ordered)}: ", ordered[place]))
    for place, clip in enumerate(ordered):
      if place not in chosen.values():
        parts.append(_section(f"{place + 1}. ", clip))
    return "\n".join(parts) + "\n"


def picture_name(clip: str) -> str:
  """File name of a clip's picture."""
  return re.sub(r"[^A-Za-z0-9.-]+", "_", clip) + ".png"


def _section(label: str, clip: Shown) -> str:
  scores = clip.scores
  name = html.escape(scores.name)
  figures = ", ".join(
    f"{title} {np.mean(values):.3f}"
    for title, values in (
      ("IoU", scores.iou),
      ("F-Score", scores.f_score),
      ("Chamfer", scores.chamfer),
    )
  )
  return (
    f"<h2>{label}{name}</h2><p>{figures}</p>"
    f"<img src='{html.escape(clip.picture)}' alt='{name}' loading=lazy>"
  )
