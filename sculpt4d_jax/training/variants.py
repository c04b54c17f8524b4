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
import json
import pathlib

from absl import logging
import numpy as np

from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import held_out
from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.evaluation.protocols import evaluate
from sculpt4d_jax.evaluation.protocols import metric_table
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import atomic
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import stages

_SHARED = ("data", "vae")


@dataclasses.dataclass(frozen=True)
class Variant:
  """A row of a table.

  Attributes:
    name: Name, also of its folder.
    preset: Preset with which it is trained and sampled.
    trained_as: Variant whose training it shares; itself by default.
    is_trained: Whether it is trained; otherwise it is the start itself.
  """

  name: str
  preset: preset_lib.Preset
  trained_as: str = ""
  is_trained: bool = True

  @property
  def training(self) -> str:
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


def run(
  plan: Plan, variants: Sequence[Variant], frames: Sequence[int]
) -> dict[tuple[str, int], list[dict[str, float]]]:
  """Trains and scores what is not done yet.

  Args:
    plan: See `Plan`.
    variants: The rows.
    frames: Numbers of frames of the clips that are sampled.

  Returns:
    (variant, number of frames) -> for each clip a dictionary metric -> score,
    the mean over seeds.

  Raises:
    ValueError: A preset cannot be trained.
  """
  by_name = {variant.name: variant for variant in variants}
  found = {}
  for variant in variants:
    for number in frames:
      seeds = [
        _score(plan, variant, by_name, seed, number) for seed in plan.seeds
      ]
      found[variant.name, number] = [
        {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        for rows in zip(*seeds)
      ]
  return found


def table(
  scores: Mapping[tuple[str, int], list[dict[str, float]]],
  protocol: str,
  reference: tuple[str, int],
) -> list[list[str]]:
  """Means with intervals over clips, and the difference to one row."""
  metrics = protocol_table.find(protocol).metrics
  rows = [["variant", "frames"]]
  for name in metrics:
    title = metric_table.METRICS[name].title
    rows[0] += [title, f"{title} - {reference[0]}"]
  for (variant, frames), clips in scores.items():
    row = [variant, str(frames)]
    for name in metrics:
      values = np.array([clip[name] for clip in clips])
      row.append(evaluator.format_estimate(evaluator.estimate_mean(values), 4))
      other = np.array([clip[name] for clip in scores[reference]])
      same = len(other) == len(values) and (variant, frames) != reference
      gap = evaluator.estimate_mean(values - other) if same else None
      row.append(evaluator.format_estimate(gap, 4) if gap else "–")
    rows.append(row)
  return rows


def _score(plan, variant, by_name, seed, num_frames) -> list[dict[str, float]]:
  """Scores of one seed, a dictionary a clip; read if they exist."""
  name = f"{variant.name}-{seed}-{num_frames}.json"
  path = plan.workdir / "scores" / name
  key = {
    "steps": plan.num_steps,
    "clips": plan.num_clips,
    "protocol": plan.protocol,
  }
  if path.is_file():
    document = json.loads(path.read_text())
    if document["key"] == key:
      return document["clips"]
  folder = pathlib.Path(variant.preset.weights)
  if variant.is_trained:
    trained = by_name.get(variant.training, variant)
    folder = _train(plan, trained, seed)
  logging.info(
    "Scoring %s, seed %d, %d frames.", variant.name, seed, num_frames
  )
  clips = _sample_and_score(plan, variant.preset, folder, seed, num_frames)
  text = json.dumps({"key": key, "clips": clips}, indent=1) + "\n"
  atomic.write_bytes(path, text.encode())
  return clips


def _train(plan: Plan, variant: Variant, seed: int) -> pathlib.Path:
  """Trains a variant with a seed; returns the folder of its weights."""
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
  logging.info("Training %s, seed %d.", variant.name, seed)
  stages.run(preset, workdir, ["data", "dit"])
  return workdir / "weights"


def _sample_and_score(plan, preset, folder, seed, num_frames):
  protocol = protocol_table.find(plan.protocol)
  log = run_log.RunLog()
  model = model_lib.Sculpt4D.load(preset.model, folder)
  first = preset.data.held_out_seed
  clips = held_out.make_clips(
    range(first, first + plan.num_clips), num_frames, preset.data.sizes, log
  )
  sampling = dataclasses.replace(
    preset.sampling, num_frames=num_frames, seed=seed
  )
  rows = []
  for clip in log.each("sample and score", clips):
    meshes = held_out.sample_meshes(model, clip, sampling, preset.surface)
    found = evaluate.score_clip(
      sequences.ShapeSequence(tuple(meshes)),
      sequences.ShapeSequence(tuple(clip.truth)),
      protocol,
      name=clip.name,
      workers=-1,
    )
    rows.append({name: found.mean(name) for name in protocol.metrics})
  return rows
