"""Characters of Panda3D's packages as assets."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.io.assets import animated_assets

pytest.importorskip("panda3d", reason="needs the extra `panda3d`")

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_every_clip_moves_and_stands_upright(tmp_path):
  result = subprocess.run(
    [sys.executable, "-m", "benchmarks.export_panda3d", f"--output={tmp_path}"],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  credits = json.loads((tmp_path / "sources.json").read_text())
  assert credits and all(row["licence"] and row["object"] for row in credits)
  clips = animated_assets.find_assets(tmp_path)
  assert clips
  for path in clips:
    asset = animated_assets.AnimatedAsset(path)
    [clip] = asset.clips
    mesh = asset.play(clip, np.linspace(clip.start, clip.end, 4))
    motion = deforming_mesh.measure_motion(mesh)
    assert motion.travel > 0.005 and motion.stretch < 12, path
    if {"sofia", "rebecca"} & set(path.parts):  # Others have capes, or crawl.
      width, height, depth = np.ptp(mesh.vertices[0], axis=0)
      assert height > max(width, depth), path
