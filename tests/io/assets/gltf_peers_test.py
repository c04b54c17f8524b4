"""Animated glTF files of others, against an evaluator that shares no code.

The files are those that this project carries, and those of installed packages:
Fox.gltf of gradio, assimp's models, and all others under Python's packages. The
variable SCULPT4D_GLTF_FOLDERS names further folders; each of their files is
compared too. A refused asset fails the test only if this project carries it.
"""

import os
import pathlib
import sysconfig

import numpy as np
import pytest

from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import asset_files
from tests.io.assets import animated_assets_test as assets
from tests.io.assets import gltf_evaluator

pytestmark = pytest.mark.slow

_OWN = pathlib.Path(__file__).parent / "cases"
_FOLDERS = (
  pathlib.Path(sysconfig.get_path("purelib")),
  pathlib.Path("/usr/share/assimp/models/glTF2"),
  *map(
    pathlib.Path,
    filter(None, os.environ.get("SCULPT4D_GLTF_FOLDERS", "").split(os.pathsep)),
  ),
)
# A matrix on an animated node is against the specification, so that the
# evaluator need not know it; the other files are far or have no trick.
_NOT_SPECIFIED = ("matrix_and_animation.glb",)
_TOLERANCE = 1e-6  # Of the longest side of the first frame's box.
_CLIPS = 3
_SHARES = (0.0, 0.131, 0.5, 0.77, 1.0)


def _files():
  found = sorted(_OWN.glob("*.glb"))
  for folder in _FOLDERS:
    if folder.is_dir():
      found += sorted(folder.rglob("*.glb")) + sorted(folder.rglob("*.gltf"))
  return [p for p in found if p.name not in _NOT_SPECIFIED]


def _compare(path, attachments):
  """Largest error, as a share of the box; None if no clip can be played."""
  try:
    asset = animated_assets.AnimatedAsset(path, attachments=attachments)
  except asset_files.AssetError:
    return None
  truth, errors = gltf_evaluator.File(path), []
  for clip in asset.clips[:_CLIPS]:
    times = [clip.start + s * (clip.end - clip.start) for s in _SHARES]
    try:
      mesh = asset.play(clip, times)
    except asset_files.AssetError:
      continue
    nodes = gltf_evaluator.nodes_with_triangles(truth)
    dropped = {part.name for part in asset.left_out}
    names = [
      str(truth.json["nodes"][n].get("name") or f"nodes[{n}]")[:80]
      for n in nodes
    ]
    kept = [n for n, name in zip(nodes, names) if name not in dropped]
    assert len(nodes) == asset.num_meshes
    assert len(nodes) - len(kept) == len(asset.left_out)
    for time, ours in zip(times, mesh.vertices):
      parts = [
        gltf_evaluator.positions(truth, clip.index, time, n) for n in kept
      ]
      theirs = np.concatenate([part[0] for part in parts])
      defined = np.concatenate([part[1] for part in parts])
      assert ours.shape == theirs.shape
      theirs = np.where(defined[:, None], theirs, 0)
      size = np.ptp(theirs[defined], axis=0).max()
      difference = (ours - theirs)[defined]
      if np.abs(theirs).max() * 2.0**-24 > _TOLERANCE * size:
        # Moved to the origin, by the same for all frames.
        difference -= np.median(difference, axis=0)
      errors.append(float(np.abs(difference).max() / size))
  return max(errors, default=None)


@pytest.mark.parametrize("attachments", ["all", "one"])
def test_files_of_others_play_as_the_specification_says(attachments, tmp_path):
  # A skin, a morph and turning joints, for where no package has a file.
  made = assets.Glb().write(tmp_path)
  errors, refused = {}, []
  for path in [made, *_files()]:
    error = _compare(path, attachments)
    if error is None:
      assert path.parent not in (_OWN, tmp_path), path
      refused.append(path)
    else:
      errors[path] = error
  print(f"\n{len(errors)} files compared, {len(refused)} refused or still")
  for path in sorted(errors, key=errors.get)[-5:]:
    print(f"{errors[path]:.2e} of the box: {path.name}")
  assert made in errors
  assert max(errors.values()) < _TOLERANCE
