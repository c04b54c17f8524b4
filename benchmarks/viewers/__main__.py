r"""Compares the poses of registered GLB files in other programs with ours.

  npm install --prefix viewers three babylonjs babylonjs-loaders \
    @google/model-viewer
  python -m benchmarks.viewers --packages=viewers/node_modules \
    out/one/registered.glb out/one/registered_skin.glb

Each file is played in three.js, Babylon and model-viewer, in headless Chromium,
and in Blender, in the background, at the starts of some frames. A row is the
largest distance of a vertex from where our reader has it, as a share of the size
of the box around all these frames. Programs that are not installed are named. For
model-viewer, which moves the scene to its middle, the shift of the first pose is
taken off all of them. A program that merges or splits vertices is compared by the
nearest ones, and marked.
"""

from collections.abc import Callable, Sequence
import functools
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

from absl import app
from absl import flags
import numpy as np
from scipy import spatial

from benchmarks.viewers import pages
from sculpt4d_jax.io.meshes import played_glb
from tests.io import chromium

_PACKAGES = flags.DEFINE_string(
  "packages", "node_modules", "Folder of npm's packages."
)
_NUM_POSES = flags.DEFINE_integer("poses", 4, "Frames compared.", lower_bound=1)
_BOUND = flags.DEFINE_float(
  "bound", 1e-5, "A larger share of the size ends the program with 1."
)

# [T, V, 3] of a file at times in seconds.
_Poses = Callable[[pathlib.Path, np.ndarray], np.ndarray]


def in_browser(
  path: pathlib.Path, times: np.ndarray, *, viewer: str, packages: pathlib.Path
) -> np.ndarray:
  """The poses in a viewer that runs in Chromium; see `_Poses`."""
  with tempfile.TemporaryDirectory() as folder:
    html = pathlib.Path(folder) / "page.html"
    html.write_text(pages.page(viewer, path, packages), encoding="utf-8")
    browser = chromium.Page(
      chromium.find_chromium(),
      pathlib.Path(folder) / "profile",
      flags=("--allow-file-access-from-files",),
    )
    with browser as page:
      page.open(html)
      page.wait_for("Boolean(window.pose)")
      return np.stack(
        [_flat(page.evaluate(f"pose({float(at)!r})")) for at in times]
      )


def in_blender(path: pathlib.Path, times: np.ndarray) -> np.ndarray:
  """The poses in Blender; see `_Poses`."""
  script = pathlib.Path(__file__).with_name("blender_poses.py")
  with tempfile.TemporaryDirectory() as folder:
    target = pathlib.Path(folder) / "poses.json"
    command = ["blender", "-b", "--python-exit-code", "1", "-P", str(script)]
    command += ["--", str(path), str(target), *(repr(float(t)) for t in times)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      sys.exit(
        f"Blender cannot import {path}; of its messages, the last:\n"
        f"{(done.stderr or done.stdout)[-1000:]}"
      )
    return np.stack([_flat(pose) for pose in json.loads(target.read_text())])


def largest_distance(
  theirs: np.ndarray, ours: np.ndarray
) -> tuple[float, bool]:
  """How far vertices are from where they belong.

  Args:
    theirs: [T, V, 3] of a program.
    ours: [T, W, 3] of our reader.

  Returns:
    The largest distance, as a share of the longest side of the box around `ours`;
    and whether vertex was compared with vertex, rather than with the nearest one.
  """
  size = np.ptp(ours.reshape(-1, 3), axis=0).max()
  if theirs.shape == ours.shape:
    return float(np.linalg.norm(theirs - ours, axis=-1).max() / size), True
  far = 0.0
  for a, b in zip(theirs, ours, strict=True):
    for points, others in ((a, b), (b, a)):
      far = max(far, spatial.cKDTree(others).query(points)[0].max())
  return float(far / size), False


def _flat(pose: dict[str, list[float]]) -> np.ndarray:
  """The vertices of all meshes in the order of their names, [V, 3]."""
  parts = [np.reshape(pose[name], (-1, 3)) for name in sorted(pose)]
  return np.concatenate(parts)


def _programs(packages: pathlib.Path) -> dict[str, _Poses | str]:
  """Each program's poses, or what it lacks."""
  found: dict[str, _Poses | str] = {}
  for viewer in pages.PACKAGES:
    lacks = pages.missing(viewer, packages)
    if lacks:
      found[viewer] = f"not run: no {', '.join(lacks)} in {packages}"
    elif not chromium.find_chromium():
      found[viewer] = "not run: no Chromium; $CHROMIUM may name one"
    else:
      found[viewer] = functools.partial(
        in_browser, viewer=viewer, packages=packages
      )
  has_blender = shutil.which("blender")
  found["Blender"] = in_blender if has_blender else "not run: no blender"
  return found


def _own_poses(path: pathlib.Path, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Times of some frames (s), [T], and where our reader has the vertices."""
  found = played_glb.frame_starts(path)
  if found is None:
    raise app.UsageError(f"{path} is no registered GLB of sculpt4d register.")
  starts = found[1]
  times = starts[np.linspace(0, len(starts) - 1, count).round().astype(int)]
  meshes = played_glb.play(path, times)
  return times, np.stack([mesh.vertices for mesh in meshes])


def _row(
  name: str, path: pathlib.Path, theirs: np.ndarray, ours: np.ndarray
) -> float:
  """Prints a program's row; returns the distance."""
  if name == "model-viewer" and theirs.shape == ours.shape:
    theirs = theirs - (theirs[0] - ours[0]).mean(0)
  far, same = largest_distance(theirs, ours)
  note = "" if same else f", nearest of {theirs.shape[1]} and {ours.shape[1]}"
  print(f"{path.name:24s} {name:14s} {far:.1e}{note}", flush=True)
  return far


def main(arguments: Sequence[str]) -> None:
  """Runs the program."""
  files = [pathlib.Path(name) for name in arguments[1:]]
  if not files or not all(path.is_file() for path in files):
    raise app.UsageError("expected registered GLB files that exist.")
  own = {path: _own_poses(path, _NUM_POSES.value) for path in files}
  far = 0.0
  for name, poses in _programs(pathlib.Path(_PACKAGES.value)).items():
    if isinstance(poses, str):
      print(f"{name:39s} {poses}")
      continue
    for path, (times, ours) in own.items():
      far = max(far, _row(name, path, poses(path, times), ours))
  if far > _BOUND.value:
    print(f"a vertex is further off than {_BOUND.value} of the size.")
    sys.exit(1)


if __name__ == "__main__":
  app.run(main)
