r"""Prints the acceptance table of registration, one line per sequence.

  OMP_NUM_THREADS=1 python -m benchmarks.registration --rows=quadruped,families
  OMP_NUM_THREADS=1 python -m benchmarks.registration --rows=fox,assets \
      --assets=FOLDER

Lengths are per cent of the longest side of the box around all frames; seconds
are CPU seconds a frame. FOLDER holds khronos/Fox.glb and kaykit/*.glb; see the
README for where anyone gets them. With --sequences=FOLDER meshed sequences are
kept there, and a row that was interrupted only registers again. Rows:

  quadruped  procedural seed 1012, 10,000 faces
  large      the same with 40,000 faces
  long       the same with 64 frames
  largest    the same with 64 frames and 40,000 faces
  keys       choice of the key against frame 0, for both of these clips' kinds
  limb       a sequence that loses a leg: its verdicts
  splitter   procedural seed 1002, whose parts split: segments
  families   one clip of every procedural family
  procedural consecutive procedural clips, all families among the first twelve, and
             their distribution; --clips gives their number
  fox        Fox Run
  assets     Fox Walk, and two motions of each KayKit character
  sampled    held-out clips sampled by the shipped model, and the distribution
             of HD99 over them; --clips gives their number
  own        Fox.glb as the user's own mesh, registered to its Run; the
             errors are those of its vertices
"""

from collections.abc import Callable, Iterator, Sequence
import pathlib
import resource
import tempfile
import time

from absl import flags
import numpy as np

from benchmarks.registration import sampled
from benchmarks.registration import sequences
from launch import program
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import tracking_metrics
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry.registration import own_mesh
from sculpt4d_jax.geometry.registration import result
from sculpt4d_jax.geometry.registration import sequence
from sculpt4d_jax.inference import given_files
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import given_asset

_ROWS = flags.DEFINE_list("rows", ["quadruped"], "Rows of the table.")
_ASSETS = flags.DEFINE_string("assets", None, "Folder of animated assets.")
_SEQUENCES = flags.DEFINE_string(
  "sequences",
  None,
  "Folder in which meshed sequences are kept, so that another run need not mesh"
  " them again.",
)

_CLIPS = flags.DEFINE_integer(
  "clips",
  20,
  "Number of clips of the rows `sampled` and `procedural`.",
  lower_bound=1,
)

_FAMILY_SEEDS = (2000, 2001, 2004, 2005, 2008, 2010, 2011)
_FIRST_SEED = 2000
_KAYKIT = ("Barbarian", "Knight", "Rogue", "Rogue_Hooded")
_KAYKIT_CLIPS = ("Running_A", "1H_Melee_Attack_Chop")
_HEADER = (
  f"{'sequence':<28}{'key':>4}{'CD':>7}{'HD99':>7}{'worst':>7}{'corr':>7}"
  f"{'p95':>7}{'motion':>7}{'turned':>7}{'stretch':>8}{'jitter':>7}{'s':>6}"
  f"{'MiB':>7}  verdicts"
)


def main(argv: Sequence[str]) -> None:
  """Prints the requested rows."""
  del argv
  unknown = set(_ROWS.value) - set(_PRINTERS)
  if unknown:
    raise UserError(
      f"--rows={','.join(sorted(unknown))}: choose some of"
      f" {','.join(_PRINTERS)}."
    )
  print(_HEADER, flush=True)
  for row in _ROWS.value:
    _PRINTERS[row]()


def measure(
  tracked: sequences.TrackedSequence, key: int | None = None
) -> tuple[np.ndarray, str]:
  """Registers a sequence and prints its line.

  Returns:
    HD99, worst HD99, mean error of correspondence, all in per cent, and CPU seconds
    a frame, [4]; and the verdict of every frame, a letter each.
  """
  start = time.process_time()
  found = sequence.register(tracked.meshes, key=key)
  seconds = (time.process_time() - start) / max(len(tracked.meshes) - 1, 1)
  surface = tracking_metrics.surface(found.mesh, tracked.meshes, found.key)
  points = tracking_metrics.correspondence(found.mesh, tracked.truth, found.key)
  shares = (
    surface.chamfer,
    surface.hausdorff99,
    surface.worst_hausdorff99,
    points.mean,
    points.p95,
    points.motion,
    surface.turned,
  )
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(
    f"{tracked.name:<28}{found.key:>4}"
    + "".join(f"{100 * share:>7.2f}" for share in shares)
    + f"{100 * surface.stretched:>8.2f}{100 * points.jitter:>7.2f}"
    + f"{seconds:>6.2f}{memory:>7.0f}  {_verdicts(found)}",
    flush=True,
  )
  lengths = surface.hausdorff99, surface.worst_hausdorff99, points.mean
  verdicts = sampled.verdicts(found.reports)
  return np.array([*(100 * x for x in lengths), seconds]), verdicts


def _verdicts(found: result.Registered) -> str:
  text = sampled.verdicts(found.reports)
  if len(found.segments) == 1:
    return text
  spans = ",".join(f"{s.first_frame}-{s.last_frame}" for s in found.segments)
  inner = sampled.verdicts(found.segment_reports)
  return f"{text}; segments {spans}: {inner}"


def _keys() -> None:
  tracked = _procedural(1012)
  measure(tracked, key=0)
  measure(tracked)
  if _ASSETS.value:
    tracked = _asset("khronos/Fox.glb", "Run")
    measure(tracked, key=0)
    measure(tracked)


def _limb() -> None:
  """Removes everything below a height on one side, from frame 3 on."""
  tracked = _procedural(1012, num_frames=6)
  meshes = [
    _maimed(mesh) if index >= 3 else mesh
    for index, mesh in enumerate(tracked.meshes)
  ]
  found = sequence.register(meshes, key=0)
  print(f"{'quadruped that loses a leg':<28}{_verdicts(found)}", flush=True)


def _maimed(mesh: mesh_lib.TriangleMesh) -> mesh_lib.TriangleMesh:
  corners = mesh.vertices[mesh.faces].mean(1)
  low = np.quantile(mesh.vertices[:, 1], 0.25)
  front = corners[:, 0] > np.median(mesh.vertices[:, 0])
  kept = ~((corners[:, 1] < low) & front)
  return mesh_lib.TriangleMesh(mesh.vertices, mesh.faces[kept])


def _families() -> None:
  for seed in _FAMILY_SEEDS:
    measure(_procedural(seed))


def _consecutive() -> None:
  """Clips in the order of their seeds, and quantiles over them."""
  seeds = range(_FIRST_SEED, _FIRST_SEED + _CLIPS.value)
  figures, verdicts = zip(*(measure(_procedural(seed)) for seed in seeds))
  print(f"quantiles {' '.join(f'{q:g}' for q in sampled.QUANTILES)}")
  names = "HD99", "worst HD99", "correspondence", "seconds"
  for name, values in zip(names, np.transpose(figures), strict=True):
    shares = " ".join(
      f"{x:.2f}" for x in np.quantile(values, sampled.QUANTILES)
    )
    print(f"{name}: {shares}")
  counts = sampled.counts("".join(verdicts))
  print(f"one topology, frames: {counts}", flush=True)


def _assets() -> None:
  for name, clip in _asset_clips():
    measure(_asset(name, clip))


def _asset_clips() -> Iterator[tuple[str, str]]:
  yield "khronos/Fox.glb", "Walk"
  for character in _KAYKIT:
    for clip in _KAYKIT_CLIPS:
      yield f"kaykit/{character}.glb", clip


def _asset(name: str, clip: str) -> sequences.TrackedSequence:
  path = _asset_path(name)
  return _kept(
    f"{path.stem}_{clip}", lambda: sequences.asset(path, clip, 10_000)
  )


def _procedural(
  seed: int, num_faces: int = 10_000, num_frames: int = 16
) -> sequences.TrackedSequence:
  return _kept(
    f"procedural_{seed}_{num_faces}_{num_frames}",
    lambda: sequences.procedural(seed, num_faces, num_frames=num_frames),
  )


def _kept(
  name: str, make: Callable[[], sequences.TrackedSequence]
) -> sequences.TrackedSequence:
  """A sequence from the folder of --sequences, or made and kept there."""
  if not _SEQUENCES.value:
    return make()
  path = pathlib.Path(_SEQUENCES.value) / f"{name}.npz"
  if not path.is_file():
    tracked = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.atomic_write(path) as file:
      tracked.save(file)
  return sequences.load(path)


def _asset_path(name: str) -> pathlib.Path:
  if not _ASSETS.value:
    raise UserError("--assets is missing: the folder of animated assets.")
  return pathlib.Path(_ASSETS.value) / name


def _own() -> None:
  """Errors of a user's vertices and of their skeleton's."""
  path = _asset_path("khronos/Fox.glb")
  tracked = _asset("khronos/Fox.glb", "Run")
  truth = sequences.played(path, "Run", len(tracked.meshes)).vertices
  given = given_asset.read(path)
  start = time.process_time()
  found = own_mesh.register_mesh(given.mesh, tracked.meshes)
  seconds = (time.process_time() - start) / (len(truth) - 1)
  size = float((truth.max((0, 1)) - truth.min((0, 1))).max())
  with tempfile.TemporaryDirectory() as folder:
    given_files.write(folder, given, found, fps=1.0)
    for name in (given_files.GLB, given_files.SKIN_GLB):
      written = animated_assets.AnimatedAsset(
        pathlib.Path(folder) / name, attachments="all"
      )
      moved = written.play(written.clips[0], range(len(truth))).vertices
      errors = np.linalg.norm(moved - truth, axis=-1) / size
      print(
        f"{tracked.name + ', ' + name:<40} mean {100 * errors.mean():.2f}"
        f" p95 {100 * np.quantile(errors, 0.95):.2f} s {seconds:.2f}"
        f" {_verdicts(found)}",
        flush=True,
      )


def _sampled() -> None:
  print(sampled.HEADER, flush=True)
  rows = []
  for clip in sampled.clips(_CLIPS.value, _kept):
    rows.append(sampled.measure(clip.name, clip.meshes))
    print(rows[-1].line(), flush=True)
  print(sampled.summary(rows), flush=True)


_PRINTERS: dict[str, Callable[[], None]] = {
  "quadruped": lambda: measure(_procedural(1012)),
  "large": lambda: measure(_procedural(1012, 40_000)),
  "long": lambda: measure(_procedural(1012, num_frames=64)),
  "largest": lambda: measure(_procedural(1012, 40_000, 64)),
  "keys": _keys,
  "limb": _limb,
  "splitter": lambda: measure(_procedural(1002)),
  "families": _families,
  "procedural": _consecutive,
  "fox": lambda: measure(_asset("khronos/Fox.glb", "Run")),
  "assets": _assets,
  "own": _own,
  "sampled": _sampled,
}


if __name__ == "__main__":
  program.run(main)
