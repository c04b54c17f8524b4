"""Fields on grids and their surfaces against Hunyuan3D 2.1 (see README.md)."""

import json
import pathlib

import numpy as np
from safetensors import numpy as safetensors_numpy

from sculpt4d_jax.geometry import isosurface

_FOLDER = pathlib.Path(__file__).parent
_CONFIG = json.loads((_FOLDER / "config.json").read_text())


def _load(name: str) -> dict[str, np.ndarray]:
  return safetensors_numpy.load_file(_FOLDER / f"{name}.safetensors")


def _ball(config):
  """The analytic field of the fixtures."""
  centre = np.asarray(config["centre"], np.float32)

  def field(points):
    distance = np.linalg.norm(points - centre, axis=-1)
    return np.clip(config["slope"] * (config["radius"] - distance), -1, 1)

  return field


def test_dense_grid_and_surface():
  golden = _load("surface_extraction")
  config = _CONFIG["surface_extraction"]["config"]
  resolution, bounds = config["octree_resolution"], config["bounds"]
  field = isosurface.dense_field(
    _ball(config), resolution, bounds=bounds, chunk_size=1000
  )
  np.testing.assert_allclose(field.values, golden["in/grid_field"], atol=2e-5)
  mesh = isosurface.extract_surface(
    golden["in/grid_field"],
    bounds=bounds,
    level=config["mc_level"],
    vertex_scale="hunyuan3d",
  )
  np.testing.assert_allclose(mesh.vertices, golden["out/vertices"], atol=2e-6)
  np.testing.assert_array_equal(mesh.faces, golden["out/faces_exported"])
  np.testing.assert_array_equal(mesh.faces[:, ::-1], golden["out/faces_raw"])


def test_coarse_to_fine():
  golden = _load("volume_coarse_to_fine")
  config = _CONFIG["volume_coarse_to_fine"]["config"]
  field = isosurface.coarse_to_fine_field(
    _ball(config),
    config["octree_resolution_requested"],
    bounds=config["bounds"],
    level=config["mc_level"],
    min_resolution=config["min_resolution"],
    chunk_size=1000,
    mode="flashvdm",
  )
  assert field.resolution == config["resolutions_used"][-1]
  mask = golden["out/evaluated_mask"].astype(bool)
  np.testing.assert_array_equal(field.evaluated, mask)
  np.testing.assert_array_equal(np.isnan(field.values), ~mask)
  np.testing.assert_allclose(
    np.nan_to_num(field.values),
    golden["out/grid_values_zero_filled"],
    atol=2e-5,
  )
