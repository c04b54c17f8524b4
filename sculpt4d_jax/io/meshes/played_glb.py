"""Reads the frames of a GLB of one moving mesh that this project wrote.

`textured_glb` and `given_glb` state rate and number of frames in the extras of
their animation; the key times of its channels are the starts of the frames, and
the end of the last one. Played at these times, the meshes are those of the
frames; at times of one's own choice they would lie between them.
"""

import os
import pathlib
from typing import Any

import numpy as np

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import gltf_container


def frame_starts(path: str | os.PathLike) -> tuple[float, np.ndarray] | None:
  """Rate and start of each frame, seconds, [F]; None for any other file."""
  try:
    asset = gltf_container.GltfFile(pathlib.Path(path))
    animation = asset.item("animations", 0)
    rate = float(animation["extras"]["fps"])
    count = int(animation["extras"]["frames"])
    edges = _key_times(asset, animation)
  except (asset_files.AssetError, LookupError, TypeError, ValueError):
    return None
  if len(edges) != count + 1 or not (np.isfinite(rate) and rate > 0):
    return None
  return rate, edges[:-1]


def play(
  path: str | os.PathLike, times: np.ndarray
) -> list[mesh_lib.TriangleMesh]:
  """The meshes of an animated GLB at given times.

  Raises:
    AssetError: The file is damaged.
  """
  asset = animated_assets.AnimatedAsset(pathlib.Path(path))
  return list(asset.play(asset.clips[0], times.tolist()).frames())


def read_meshes(path: str | os.PathLike) -> list[mesh_lib.TriangleMesh] | None:
  """The mesh of each frame; None for any other file.

  Raises:
    AssetError: The file is damaged.
  """
  found = frame_starts(path)
  return None if found is None else play(path, found[1])


def _key_times(
  asset: gltf_container.GltfFile, animation: dict[str, Any]
) -> np.ndarray:
  """All key times of an animation, in order, float64."""
  inputs = {sampler["input"] for sampler in animation["samplers"]}
  times = [asset.accessor(index, "SCALAR").ravel() for index in sorted(inputs)]
  return np.unique(np.concatenate(times)).astype(np.float64)
