"""Registration of sampled clips, which have no known correspondences.

The shipped model samples held-out procedural clips. Distances are between the
registered mesh and the sampled meshes themselves, so that errors of the sample's
shape do not count.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import resource
import time

import numpy as np

from benchmarks.registration import sequences
from sculpt4d_jax import preset_files
from sculpt4d_jax.evaluation import held_out
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry.registration import result
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import registering
from sculpt4d_jax.training import preset as preset_lib

MAX_FACES = 10_000
_PRESET = "small"
_BAR = 0.04  # Share of the box.
QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
HEADER = (
  f"{'sampled clip':<16}{'key':>4}{'mean':>7}{'worst':>7}  "
  f"{'one topology':<17}{'mean':>7}{'worst':>7}  {'as shown':<17}"
  f"{'meshes':>7}{'s':>6}{'MiB':>6}"
)

Keep = Callable[
  [str, Callable[[], sequences.TrackedSequence]], sequences.TrackedSequence
]


@dataclasses.dataclass(frozen=True)
class ClipRow:
  """What is measured for a clip.

  Attributes:
    name: Family and seed.
    key: Number of the key frame.
    alone: Reports of the mesh that shows all frames.
    shown: Reports of the meshes that the segments show.
    num_topologies: Different meshes among the segments.
    seconds: CPU seconds a frame, simplification to the face budget included.
    memory: Largest memory of the process so far, MiB.
  """

  name: str
  key: int
  alone: tuple[result.FrameReport, ...]
  shown: tuple[result.FrameReport, ...]
  num_topologies: int
  seconds: float
  memory: float

  def line(self) -> str:
    """The row of the table, under `HEADER`."""
    text = f"{self.name:<16}{self.key:>4}"
    for reports in (self.alone, self.shown):
      mean, worst = distances(reports)
      text += f"{100 * mean:>7.2f}{100 * worst:>7.2f}  {verdicts(reports):<17}"
    return (
      text
      + f"{self.num_topologies:>7}{self.seconds:>6.2f}"
      + (f"{self.memory:>6.0f}")
    )


def distances(reports: Sequence[result.FrameReport]) -> tuple[float, float]:
  """Mean and largest HD99 of all frames, shares of the box."""
  values = [min(report.hausdorff99, 1.0) for report in reports]
  return float(np.mean(values)), float(np.max(values))


def verdicts(reports: Sequence[result.FrameReport]) -> str:
  """A letter a frame: registered, doubtful, failed."""
  return "".join(str(report.verdict)[0] for report in reports)


def counts(letters: str) -> str:
  """How many frames have each verdict."""
  return (
    f"{letters.count('r')} registered, {letters.count('d')} doubtful,"
    f" {letters.count('f')} failed"
  )


def clips(count: int, keep: Keep) -> Iterator[sequences.TrackedSequence]:
  """The first held-out clips, sampled by the shipped model.

  Args:
    count: Number of clips.
    keep: Takes a clip's name and the function that samples it; may return an
      earlier result in place of a call.
  """
  preset = preset_lib.from_config(preset_files.read(_PRESET))
  model = None
  for seed in range(
    preset.data.held_out_seed, preset.data.held_out_seed + count
  ):

    def sample(seed: int = seed) -> sequences.TrackedSequence:
      nonlocal model
      if model is None:
        folder = model_lib.weights_folder(preset.weights, None)
        model = model_lib.Sculpt4D.load(
          preset.model, folder, sampling=preset.sampling
        )
      return _sampled(model, preset, seed)

    yield keep(f"sampled_{_PRESET}_{seed}_{preset.data.num_frames}", sample)


def measure(name: str, meshes: Sequence[mesh_lib.TriangleMesh]) -> ClipRow:
  """Registers a sampled clip, with segments."""
  start = time.process_time()
  found = registering.register(meshes, max_faces=MAX_FACES)
  seconds = (time.process_time() - start) / max(len(meshes) - 1, 1)
  memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  return ClipRow(
    name,
    found.key,
    found.reports,
    found.segment_reports,
    found.num_topologies,
    seconds,
    memory,
  )


def summary(rows: Sequence[ClipRow]) -> str:
  """The distribution over the clips, for one topology and as shown."""
  lines = []
  for title, reports in (
    ("one topology", [row.alone for row in rows]),
    ("as shown", [row.shown for row in rows]),
  ):
    found = np.array([distances(clip) for clip in reports])
    for kind, values in zip(("mean", "worst"), found.T):
      shares = " ".join(
        f"{100 * quantile:.2f}" for quantile in np.quantile(values, QUANTILES)
      )
      within = int((values <= _BAR).sum())
      lines.append(
        f"{title}, {kind} HD99: {within} of {len(rows)} clips within"
        f" {100 * _BAR:g} %; quantiles"
        f" {' '.join(f'{q:g}' for q in QUANTILES)}: {shares}"
      )
    letters = "".join(verdicts(clip) for clip in reports)
    lines.append(f"{title}, frames: {counts(letters)}")
  seconds = [row.seconds for row in rows]
  lines.append(
    f"seconds a frame: mean {np.mean(seconds):.2f}, largest"
    f" {np.max(seconds):.2f}; topologies: mean"
    f" {np.mean([row.num_topologies for row in rows]):.2f}, largest"
    f" {max(row.num_topologies for row in rows)}"
  )
  return "\n".join(lines)


def _sampled(
  model: model_lib.Sculpt4D, preset: preset_lib.Preset, seed: int
) -> sequences.TrackedSequence:
  clip = held_out.make_clip(
    seed, preset.data.num_frames, preset.data.sizes, has_truth=False
  )
  meshes = held_out.sample_meshes(model, clip, preset.sampling, preset.surface)
  return sequences.TrackedSequence(
    clip.name.replace("-", " "),
    meshes,
    np.zeros((len(meshes), 0, 3), np.float32),
  )
