"""The GLB files for a user's mesh: their asset with the motion of the clip.

registered.glb       their asset with one morph target per frame; exact
registered_skin.glb  the same with its skeleton animated, if it has one
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sculpt4d_jax.geometry import bone_tree
from sculpt4d_jax.geometry.registration import result
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.assets import given_asset
from sculpt4d_jax.io.meshes import given_glb

GLB, SKIN_GLB = "registered.glb", "registered_skin.glb"


def write(
  folder: paths.PathLike,
  asset: given_asset.GivenAsset,
  registered: result.Registered,
  fps: float,
  *,
  times: Sequence[float] | None = None,
  name: str = "sculpt4d",
) -> dict[str, Any]:
  """Writes the files.

  Args:
    folder: Output folder.
    asset: The user's asset.
    registered: Its mesh, registered to a clip.
    fps: Frames a second.
    times: Start of each frame, seconds, if frames are of unequal length.
    name: The animation's name.

  Returns:
    What registration.json says about the skeleton; empty without one.

  Raises:
    OutputError: A file cannot be written.
  """
  folder = paths.of(folder)
  placement = find_placement(asset, registered)
  inverse = np.linalg.inv(placement)
  frames = registered.mesh.vertices.astype(np.float64)
  frames = frames @ inverse[:3, :3].T + inverse[:3, 3]
  given_glb.write_morph(
    folder / GLB, asset, frames, placement, fps, times=times, name=name
  )
  skeleton = asset.skeleton
  if skeleton is None:
    return {}
  rig = bone_tree.pose_given(
    asset.mesh.vertices,
    skeleton.weights,
    skeleton.parents,
    skeleton.worlds[:, :3, 3],
    frames,
  )
  motions = np.tile(np.eye(4), (*rig.skin.rotations.shape[:2], 1, 1))
  motions[..., :3, :3] = rig.skin.rotations
  motions[..., :3, 3] = rig.skin.translations
  given_glb.write_skin(
    folder / SKIN_GLB,
    asset,
    motions @ skeleton.worlds,
    placement,
    fps,
    times=times,
    name=name,
  )
  return {
    "skeleton": {
      "source": "the given mesh",
      "bones": rig.num_bones,
      "rms": rig.skin.rms,
    }
  }


def find_placement(
  asset: given_asset.GivenAsset, registered: result.Registered
) -> np.ndarray:
  """The similarity from the asset's units to the clip's, float64 [4, 4].

  The scale is estimated from surface areas. A least-squares fit of positions
  underestimates it, and more so the more the poses differ.
  """
  mesh = registered.mesh
  areas = [
    np.linalg.norm(frame.face_cross_products(), axis=1).sum()
    for frame in (asset.mesh, *mesh.frames())
  ]
  scale = float(np.sqrt(np.median(areas[1:]) / areas[0]))
  placement = result.fit_trajectory(
    mesh.rest[None], scale * asset.mesh.vertices
  )
  placement[0, :3, :3] *= scale
  return placement[0]
