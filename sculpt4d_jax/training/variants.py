"""Trains variants of a preset from the same weights, and scores them.

Every variant and seed is trained for the same number of steps from the same
weights on the same clips, and scored on held-out clips by one protocol. Scores
are stored in files and a training resumes at its last checkpoint, so the same
command continues after an interruption.

  WORKDIR/data, vae      clips and their latents, shared by all runs
  WORKDIR/runs/V-S       training of variant V with seed S
  WORKDIR/scores/V-S-F.json
                         scores of a variant with a seed on clips of F frames
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from typing import Any

from absl import logging
import jax
import numpy as np

from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import held_out
from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.evaluation.protocols import evaluate
from sculpt4d_jax.evaluation.protocols import metric_table
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import atomic
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.stages import runner as stages

# Of fewer clips, all have the same sign by chance in more than one of twenty.
MIN_CLIPS = 6
_SHARED = ("data", "vae")


@dataclasses.dataclass(frozen=True)
class Variant:
  """A row of a table.

  Attributes:
    name: Name, also of its folder.
    preset: Preset with which it is trained and sampled.
    trained_as: Variant whose training it shares; itself by default.
    is_trained: Whether the variant is trained; otherwise it has the initial
      weights.
  """

  name: str
  preset: preset_lib.Preset
  trained_as: str = ""
  is_trained: bool = True

  @property
  def training(self) -> str:
    """Name of the variant whose trained weights this one uses."""
    return self.trained_as or self.name


@dataclasses.dataclass(frozen=True)
class Plan:
  """Settings that all rows share.

  Attributes:
    workdir: Folder of everything that is written.
    num_steps: Number of training steps after the start.
    seeds: Seeds of the training and of sampling.
    num_clips: Number of held-out clips.
    protocol: Name of the protocol.
  """

  workdir: pathlib.Path
  num_steps: int
  seeds: tuple[int, ...]
  num_clips: int
  protocol: str = "project"


@dataclasses.dataclass(frozen=True)
class Scores:
  """Scores of a variant on clips of one number of frames.

  Attributes:
    seeds: By seed, a dictionary a clip of its name's scores.
    seconds: Mean wall time a clip by stage: "sample", "mesh" and "score".
    device: Device that sampled.
  """

  seeds: Mapping[int, list[dict[str, float]]]
  seconds: Mapping[str, float]
  device: str

  def clips(self, metric: str) -> np.ndarray:
    """Scores of the clips [N], each the mean over seeds."""
    rows = [[clip[metric] for clip in clips] for clips in self.seeds.values()]
    return np.mean(rows, axis=0)

  def seed_means(self, metric: str) -> dict[int, float]:
    """Means over clips by seed."""
    return {
      seed: float(np.mean([clip[metric] for clip in clips]))
      for seed, clips in self.seeds.items()
    }


Table = list[list[str]]
Found = Mapping[tuple[str, int], Scores]


def run(
  plan: Plan, variants: Sequence[Variant], frames: Sequence[int]
) -> dict[tuple[str, int], Scores]:
  """Trains and scores what is missing.

  Args:
    plan: See `Plan`.
    variants: The rows.
    frames: Numbers of frames of the clips that are sampled.

  Returns:
    Scores by variant and number of frames.

  Raises:
    ValueError: A preset cannot be trained, or the folder holds a training with
      other settings.
  """
  by_name = {variant.name: variant for variant in variants}
  found = {}
  for variant in variants:
    for number in frames:
      documents = {
        seed: _score(plan, variant, by_name, seed, number)
        for seed in plan.seeds
      }
      timed = [document["seconds"] for document in documents.values()]
      found[variant.name, number] = Scores(
        {seed: document["clips"] for seed, document in documents.items()},
        {key: float(np.mean([t[key] for t in timed])) for key in timed[0]},
        ", ".join(sorted({d["device"] for d in documents.values()})),
      )
  return found


def estimates(
  found: Found, protocol: str
) -> dict[str, dict[str, evaluator.Estimate]]:
  """Means over clips and seeds with 95 % intervals over clips.

  Returns:
    By the metric's title and the row's name.
  """
  names = protocol_table.find(protocol).metrics
  several = len({frames for _, frames in found}) > 1
  return {
    title: {
      f"{variant}, {frames} frames" if several else variant: (
        evaluator.estimate_mean(scores.clips(name))
      )
      for (variant, frames), scores in found.items()
    }
    for name, title in zip(names, _titles(names))
  }


def table(found: Found, protocol: str) -> Table:
  """The estimates as cells."""
  columns = estimates(found, protocol)
  rows = [["variant", "frames", *columns]]
  for number, (variant, frames) in enumerate(found):
    cells = [
      evaluator.format_estimate(list(column.values())[number], 4)
      for column in columns.values()
    ]
    rows.append([variant, str(frames), *cells])
  return rows


def differences(
  found: Found, protocol: str, reference: tuple[str, int]
) -> Table:
  """Differences to a row, clip by clip; a star if the interval leaves out 0."""
  names = protocol_table.find(protocol).metrics
  rows = [["variant", *_titles(names)]]
  for (variant, frames), scores in found.items():
    if (variant, frames) == reference or frames != reference[1]:
      continue
    cells = []
    for name in names:
      gap = evaluator.estimate_mean(
        scores.clips(name) - found[reference].clips(name)
      )
      is_sure = gap.low * gap.high > 0 and gap.num_sequences >= MIN_CLIPS
      star = " *" if is_sure else ""
      cells.append(evaluator.format_estimate(gap, 4) + star)
    rows.append([variant, *cells])
  return rows


def by_seed(found: Found, protocol: str) -> Table:
  """Means over clips of every seed: how much a training's chance matters."""
  names = protocol_table.find(protocol).metrics
  rows = [["variant", "frames", "seed", *_titles(names)]]
  for (variant, frames), scores in found.items():
    for seed in scores.seeds:
      means = [scores.seed_means(name)[seed] for name in names]
      cells = [evaluator.format_number(mean, 4) for mean in means]
      rows.append([variant, str(frames), str(seed), *cells])
  return rows


def seconds(found: Found) -> Table:
  """Mean seconds a clip by stage."""
  stages_of = list(next(iter(found.values())).seconds)
  rows = [["variant", "frames", *stages_of, "device"]]
  for (variant, frames), scores in found.items():
    cells = [f"{scores.seconds[stage]:.2f}" for stage in stages_of]
    rows.append([variant, str(frames), *cells, scores.device])
  return rows


def _titles(names: Sequence[str]) -> list[str]:
  metrics = (metric_table.METRICS[name] for name in names)
  arrows = {"lower": "↓", "higher": "↑"}
  return [f"{metric.title} {arrows[metric.better]}" for metric in metrics]


def _score(
  plan: Plan,
  variant: Variant,
  by_name: Mapping[str, Variant],
  seed: int,
  num_frames: int,
) -> dict[str, Any]:
  """Scores of one seed; read if they were computed before."""
  name = f"{variant.name}-{seed}-{num_frames}.json"
  path = plan.workdir / "scores" / name
  key = {
    "steps": plan.num_steps,
    "clips": plan.num_clips,
    "protocol": plan.protocol,
    "preset": _digest(variant.preset),
  }
  if path.is_file():
    document = json.loads(path.read_text())
    if document["key"] == key:
      return document
  folder = pathlib.Path(variant.preset.weights)
  if variant.is_trained:
    trained = by_name.get(variant.training, variant)
    folder = _train(plan, trained, seed)
  logging.info(
    "Scoring %s, seed %d, %d frames.", variant.name, seed, num_frames
  )
  document = {
    "key": key,
    **_sample_and_score(plan, variant.preset, folder, seed, num_frames),
  }
  text = json.dumps(document, indent=1) + "\n"
  atomic.write_bytes(path, text.encode())
  return document


def _digest(preset: preset_lib.Preset) -> str:
  """A short name of all settings, so that scores of others are not taken."""
  text = json.dumps(dataclasses.asdict(preset), sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _train(plan: Plan, variant: Variant, seed: int) -> pathlib.Path:
  """The weights of a variant and a seed."""
  workdir = plan.workdir / "runs" / f"{variant.name}-{seed}"
  workdir.mkdir(parents=True, exist_ok=True)
  for name in _SHARED:
    target = plan.workdir / name
    target.mkdir(exist_ok=True)
    link = workdir / name
    if not link.is_symlink():
      link.symlink_to(target.resolve(), target_is_directory=True)
  training = variant.preset.dit_training
  training = dataclasses.replace(
    training,
    init_from=variant.preset.weights,
    task=dataclasses.replace(training.task, seed=seed),
    optimizer=dataclasses.replace(training.optimizer, num_steps=plan.num_steps),
  )
  preset = dataclasses.replace(variant.preset, dit_training=training)
  _claim(workdir, _digest(preset))
  logging.info("Training %s, seed %d.", variant.name, seed)
  stages.run(preset, workdir, ["data", "dit"])
  return workdir / "weights"


def _claim(workdir: pathlib.Path, digest: str) -> None:
  """Keeps a training from resuming with other settings.

  Raises:
    UserError: The folder belongs to other settings.
  """
  path = workdir / "settings.txt"
  if path.is_file() and path.read_text().strip() != digest:
    raise UserError(
      f"{workdir} holds a training with other settings; give another"
      " --workdir, or remove this folder."
    )
  atomic.write_bytes(path, f"{digest}\n".encode())


@functools.lru_cache(maxsize=2)
def _held_out_clips(
  seeds: range, num_frames: int, sizes: clip_records.RecordSizes
) -> list[held_out.HeldOutClip]:
  """The clips, made once for all variants and seeds."""
  return held_out.make_clips(seeds, num_frames, sizes, run_log.RunLog())


def _sample_and_score(
  plan: Plan,
  preset: preset_lib.Preset,
  folder: pathlib.Path,
  seed: int,
  num_frames: int,
) -> dict[str, Any]:
  """Scores of all clips, mean seconds by stage and the device."""
  protocol = protocol_table.find(plan.protocol)
  log = run_log.RunLog()
  model = model_lib.Sculpt4D.load(
    preset.model, folder, sampling=preset.sampling
  )
  first = preset.data.held_out_seed
  clips = _held_out_clips(
    range(first, first + plan.num_clips), num_frames, preset.data.sizes
  )
  sampling = dataclasses.replace(
    preset.sampling, num_frames=num_frames, seed=seed
  )
  rows, spent = [], {"sample": 0.0, "mesh": 0.0, "score": 0.0}
  for clip in log.each("sample and score", clips):
    times = [time.monotonic()]
    latents = jax.block_until_ready(
      model.sample(clip.images, sampling, masks=clip.masks)
    )
    times.append(time.monotonic())
    meshes, _ = pipeline.extract_meshes(
      model,
      latents,
      preset.surface,
      placed=pipeline.placement(model, clip.images),
    )
    times.append(time.monotonic())
    scores = evaluate.score_clip(
      sequences.ShapeSequence(tuple(meshes)),
      sequences.ShapeSequence(tuple(clip.truth)),
      protocol,
      name=clip.name,
      workers=-1,
    )
    times.append(time.monotonic())
    rows.append({name: scores.mean(name) for name in protocol.metrics})
    for stage, begin, end in zip(spent, times, times[1:]):
      spent[stage] += (end - begin) / len(clips)
  device = jax.devices()[0].device_kind
  return {"clips": rows, "seconds": spent, "device": device}
