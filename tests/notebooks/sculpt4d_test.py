"""The notebook: as committed, and run from its first cell to its last."""

import ast
import os
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebooks" / "sculpt4d.ipynb"

nbformat = pytest.importorskip(
  "nbformat", reason="The notebook's tests need nbclient and ipykernel."
)


@pytest.fixture
def notebook():
  """As nbformat reads it."""
  return nbformat.read(NOTEBOOK, as_version=4)


def test_is_kept_without_outputs_and_parses(notebook):
  nbformat.validate(notebook)
  for cell in notebook.cells:
    if cell.cell_type == "code":
      assert not cell.outputs and cell.execution_count is None
      lines = [
        re.sub(r"^(\s*)[!%].*", r"\1pass", line)
        for line in cell.source.splitlines()
      ]
      ast.parse("\n".join(lines))


@pytest.mark.slow  # Samples five clips and trains a little: minutes.
def test_runs_from_the_first_cell_to_the_last(notebook, tmp_path, monkeypatch):
  nbclient = pytest.importorskip(
    "nbclient", reason="Running the notebook needs nbclient."
  )
  pytest.importorskip(
    "ipykernel", reason="Running the notebook needs ipykernel."
  )
  # As in a checkout, but what is written stays apart from it.
  for name in os.listdir(ROOT):
    if name not in ("out", "runs", ".git"):
      (tmp_path / name).symlink_to(ROOT / name)
  for cell in notebook.cells:
    cell.source = cell.source.replace("STEPS = 20 ", "STEPS = 5 ")
    cell.source = cell.source.replace("NUM_CLIPS = 6 ", "NUM_CLIPS = 2 ")
  monkeypatch.setenv("TQDM_DISABLE", "1")
  client = nbclient.NotebookClient(
    notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}
  )
  client.execute()
  outputs = [
    output
    for cell in notebook.cells
    if cell.cell_type == "code"
    for output in cell.outputs
  ]
  printed = "".join(output.get("text", "") for output in outputs)
  assert "%|" not in printed  # No bar of progress.
  assert "35.23% of full attention" in printed
  assert "model - per frame, mean over the clips" in printed
  assert re.search(r"step +5  loss \d", printed)
  shown = [output.data for output in outputs if "data" in output]
  text = "".join(data.get("text/markdown", "") for data in shown)
  assert "### Running on: " in text and "80 GB GPU | fits" in text
  viewer = next(data["text/html"] for data in shown if "text/html" in data)
  assert "<iframe" in viewer and "Sampling steps" in viewer
  made = {path.name for path in (tmp_path / "out/notebook/made").iterdir()}
  assert {"viewer.html", "animation.glb", "preview.png"} <= made
  assert (tmp_path / "runs/notebook/weights/dit.safetensors").exists()
