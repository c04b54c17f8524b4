"""Records made by the program, and the programs that measure them."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.meshes import ply_obj

pytest.importorskip("array_record", reason="needs the extra `data`")
pytest.importorskip("grain", reason="needs the extra `data`")

ROOT = pathlib.Path(__file__).resolve().parents[2]


def program(name, *arguments):
  return subprocess.run(
    [
      sys.executable,
      "-m",
      name if "." in name else f"launch.{name}",
      *map(str, arguments),
    ],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A data set of two sources: a folder of assets and procedural clips."""
  root = tmp_path_factory.mktemp("prepared")
  box = trimesh.creation.box([1.0, 0.8, 0.6])
  ply_obj.write_mesh_sequence(
    root / "assets" / "moving",
    [
      mesh_lib.TriangleMesh(box.vertices + [x, 0, 0], box.faces)
      for x in (0.0, 0.2, 0.4)
    ],
  )
  result = program(
    "prepare_data",
    f"--assets={root / 'assets'}",
    "--procedural=1",
    "--first_seed=3",
    "--config=configs/tiny.py",
    "--num_parts=2",
    "--num_frames=2",
    "--num_views=1",
    "--image_size=32",
    "--resolution=24",
    "--test_fraction=0",
    f"--output={root / 'both'}",
  )
  assert result.returncode == 0, result.stderr
  return root / "both"


def test_several_sources_become_one_data_set(prepared):
  index = dataset_index.read_index(prepared)
  names = {clip.details["asset_name"] for clip in index.splits["train"]}
  assert names == {"moving", "procedural 3"}
  card = (prepared / "README.md").read_text()
  assert "Apache-2.0" in card and "not stated" in card
  # A part has the configuration's numbers; what flags say is stronger.
  settings = index.settings
  assert settings["num_uniform"] == 2 * 384 and settings["num_near"] == 2 * 1024
  assert settings["num_queries"] == 32 and settings["downsample_ratio"] == 16
  assert settings["num_frames"] == 2 and settings["image_size"] == 32


def test_consistency_is_measured_in_pairs(prepared):
  result = program(
    "benchmarks.consistency",
    f"--data={prepared}",
    "--config=configs/tiny.py",
    "--num_clips=2",
    "--num_draws=1",
  )
  assert result.returncode == 0, result.stderr
  assert "2 clips of 1 draws" in result.stdout
  rows = [row for row in result.stdout.splitlines() if "below 0 in" in row]
  assert len(rows) == 4 and all("of 2 clips" in row for row in rows)
  gaps = [float(row.split("+-")[0].split()[-1]) for row in rows]
  assert np.isfinite(gaps).all()
  assert gaps[0] < 0  # The same points in all frames: latents change less.


def test_a_folder_without_records_is_one_message(tmp_path):
  (tmp_path / "settings.json").write_text(json.dumps({}))
  result = program("benchmarks.consistency", f"--data={tmp_path}")
  assert result.returncode == 2
  assert "docs/data.md" in result.stderr and "Traceback" not in result.stderr


def test_damaged_assets_alone_are_an_error_that_names_each(tmp_path):
  assets = tmp_path / "assets"
  assets.mkdir()
  (assets / "broken.glb").write_bytes(b"glTF\x02\x00")
  result = program(
    "prepare_data",
    f"--assets={assets}",
    "--config=configs/tiny.py",
    f"--output={tmp_path / 'data'}",
  )
  assert result.returncode == 2
  assert "broken.glb: the GLB ends within its header." in result.stderr
  assert (
    "No clip can be used: of the assets 1 could not be read" in result.stderr
  )
  assert "Traceback" not in result.stderr
