r"""Draws the curves of a run as one picture, for a model card.

  python -m benchmarks.training.curves runs/small weights/small/curves.png

One column a stage (`vae`, `pictures`, `dit`), one row each for the training
loss, what is measured on held-out clips, and what is measured on samples.
Stages are read from `WORKDIR/STAGE/metrics.jsonl`; several folders are drawn one
after the other as parts of one training. The last argument is the picture. Wants
matplotlib.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

from absl import app

from launch import program
from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.errors import UserError

_STAGES = ("vae", "pictures", "dit")
# Rows of the picture: what a metric's name begins with.
_ROWS = {
  "training": ("train/loss", "train/flow_loss", "train/field_error"),
  "held-out clips": ("eval/",),
  "sampled clips": ("sample/",),
}
_SMOOTHING = 20  # Lines of metrics that a training curve is averaged over.


def read(workdirs: Sequence[pathlib.Path], stage: str) -> list[dict[str, Any]]:
  """Lines of metrics of a stage, steps counted through all runs."""
  lines, before = [], 0
  for workdir in workdirs:
    path = workdir / stage / "metrics.jsonl"
    if not path.is_file():
      continue
    # A run that was resumed may have written a step twice: the last counts.
    own = {}
    for text in path.read_text().splitlines():
      line = json.loads(text)
      own.setdefault(line["step"], {}).update(line)
    lines += [line | {"step": before + step} for step, line in own.items()]
    before += max(own, default=0)
  return sorted(lines, key=lambda line: line["step"])


def curves(
  lines: Sequence[Mapping[str, Any]], prefixes: Sequence[str]
) -> dict[str, tuple[list[int], list[float]]]:
  """Steps and values by name, of metrics whose names begin so."""
  result: dict[str, tuple[list[int], list[float]]] = {}
  for line in lines:
    for name, value in line.items():
      if isinstance(value, (int, float)) and name.startswith(tuple(prefixes)):
        steps, values = result.setdefault(name, ([], []))
        steps.append(line["step"])
        values.append(float(value))
  return result


def draw(workdirs: Sequence[pathlib.Path], output: pathlib.Path) -> None:
  """Writes the picture.

  Raises:
    UserError: No folder holds metrics.
    MissingPackageError: matplotlib is not installed.
  """
  try:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
  except ImportError as error:
    raise MissingPackageError(
      "Curves are drawn by matplotlib: pip install matplotlib."
    ) from error
  found = {stage: read(workdirs, stage) for stage in _STAGES}
  found = {stage: lines for stage, lines in found.items() if lines}
  if not found:
    raise UserError(
      f"No metrics.jsonl in {', '.join(map(str, workdirs))}: give the"
      " --workdir of launch.train."
    )
  rows = {
    title: prefixes
    for title, prefixes in _ROWS.items()
    if any(curves(lines, prefixes) for lines in found.values())
  }
  figure, axes = pyplot.subplots(
    len(rows),
    len(found),
    figsize=(5 * len(found), 3 * len(rows)),
    squeeze=False,
    constrained_layout=True,
  )
  for column, (stage, lines) in enumerate(found.items()):
    for row, (title, prefixes) in enumerate(rows.items()):
      axis = axes[row][column]
      shown = curves(lines, prefixes)
      for name, (steps, values) in shown.items():
        if title == "training":
          values = _smooth(values)
        axis.plot(steps, values, label=name, linewidth=1, marker=".", ms=2)
      axis.set_title(f"{stage}: {title}", fontsize=9)
      axis.set_xlabel("step", fontsize=8)
      axis.tick_params(labelsize=7)
      axis.grid(alpha=0.3)
      if shown:
        axis.legend(fontsize=6)
      else:
        axis.set_axis_off()
  output.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(output, dpi=90)
  pyplot.close(figure)


def _smooth(values: Sequence[float]) -> list[float]:
  """Means over the last lines."""
  return [
    sum(part) / len(part)
    for part in (
      values[max(0, i + 1 - _SMOOTHING) : i + 1] for i in range(len(values))
    )
  ]


def main(argv: Sequence[str]) -> None:
  """Draws the curves."""
  if len(argv) < 3:
    raise app.UsageError("Expected folders of trainings, then a picture.")
  *workdirs, output = map(pathlib.Path, argv[1:])
  draw(workdirs, output)
  print(f"Wrote {output}.")


if __name__ == "__main__":
  program.run(main, positional=True)
