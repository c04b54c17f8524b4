"""Rows of the built-in systems: a model, and answers that need none.

  model          samples of a preset's weights for the pictures in frames/
  per frame      the same weights without temporal attention
  mean shape     one mesh for all clips: the region that is most often inside the
                 training objects
  best training  the training clip with the largest overlap with the benchmark's
                 procedural clips (chosen on them, so optimistic)

Every clip's score is a file, so the same command continues after a stop:
FOLDER/scores/PROTOCOL/clips/ROW/CLIP.json.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import hashlib
import json
import pathlib

import numpy as np
from PIL import Image

from benchmarks.bench_v1 import make
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import held_out
from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.evaluation.protocols import conventions as conventions_lib
from sculpt4d_jax.evaluation.protocols import evaluate
from sculpt4d_jax.evaluation.protocols import scores as scores_lib
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io import paths
from sculpt4d_jax.training import preset as preset_lib

ROWS = ("mean shape", "best training", "model", "per frame")
TRIVIAL = ROWS[:2]
_MAX_TRAINING = 128  # Training clips of the trivial answers.

# Name of a clip and its number of frames -> the meshes.
Answer = Callable[[str, int], held_out.Meshes]


def truth_kind(protocol: conventions_lib.Protocol) -> str:
  """The benchmark's folder of the truth that a protocol compares with."""
  is_tracked = protocol.name.startswith("actionbench")
  return "tracked" if is_tracked else "truth"


def score(
  folder: pathlib.Path,
  names: Sequence[str],
  rows: Sequence[str],
  preset: preset_lib.Preset,
  protocol: conventions_lib.Protocol,
  log: run_log.RunLog,
) -> dict[str, scores_lib.Report]:
  """Scores what is missing of the rows.

  Args:
    folder: Folder of the benchmark.
    names: Its clips.
    rows: Some of `ROWS`.
    preset: Preset of the model and of the training clips.
    protocol: Protocol of the scores.
    log: Shows the progress.

  Returns:
    A report for each row.

  Raises:
    UserError: A row is unknown, or the protocol compares sets of clips.
  """
  unknown = [row for row in rows if row not in ROWS]
  if unknown:
    raise UserError(f"no row {unknown[0]!r}; choose of {', '.join(ROWS)}.")
  if protocol.name.startswith("views"):
    raise UserError(
      "the built-in rows are scored clip by clip, and --protocol=views compares"
      " sets; write the meshes and give them as --predicted."
    )
  answers = _Answers(folder, preset)
  place = folder / "scores" / protocol.name.replace(":", "-") / "clips"
  found = {}
  for row in rows:
    clips = []
    key = _key(row, preset, protocol)
    for name in log.each(row, names):
      path = place / row.replace(" ", "-") / f"{name}.json"
      clip = _read(path, key)
      if clip is None:
        truth = sequences.read(folder / truth_kind(protocol) / name)
        meshes = answers.of(row)(name, truth.num_frames)
        clip = evaluate.score_clip(
          sequences.ShapeSequence(tuple(meshes), source=row),
          truth,
          protocol,
          name=name,
          workers=-1,
        )
        document = {"key": key, "clip": scores_lib.clip_to_json(clip)}
        text = json.dumps(document, indent=1, allow_nan=False)
        atomic.write_bytes(path, f"{text}\n".encode())
      clips.append(clip)
    found[row] = scores_lib.summarise(protocol, clips)
  return found


def _read(path: pathlib.Path, key: str) -> scores_lib.ClipScores | None:
  if not path.is_file():
    return None
  document = json.loads(path.read_text())
  if document["key"] != key:
    return None
  return scores_lib.clip_from_json(document["clip"])


def _key(
  row: str, preset: preset_lib.Preset, protocol: conventions_lib.Protocol
) -> str:
  """A short name of settings and weights, so that no other scores are taken."""
  settings = [make.VERSION, protocol.name, protocol.conventions, preset.data]
  if row not in TRIVIAL:
    settings += [preset, _weights_digest(_weights(preset))]
  text = json.dumps(
    [dataclasses.asdict(s) if not isinstance(s, str) else s for s in settings],
    sort_keys=True,
    default=str,
  )
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _weights_digest(folder: paths.PathLike) -> str:
  """SHA-256 of the files of weights in a folder."""
  digest = hashlib.sha256()
  for path in sorted(local_copies.fetch(folder).glob("*.safetensors")):
    digest.update(path.name.encode())
    digest.update(path.read_bytes())
  return digest.hexdigest()


def _weights(preset: preset_lib.Preset) -> paths.StorePath:
  return model_lib.weights_folder(preset.weights, None)


class _Answers:
  """The answers, each made when a clip first needs it."""

  def __init__(self, folder: pathlib.Path, preset: preset_lib.Preset):
    self._folder = folder
    self._preset = preset

  def of(self, row: str) -> Answer:
    """The answer of a row."""
    return {
      "mean shape": lambda name, count: self._mean_shape * count,
      "best training": lambda name, count: self._best_training[:count],
      "model": lambda name, count: self._sample(name, count),
      "per frame": lambda name, count: self._sample(name, count, "none"),
    }[row]

  @functools.cached_property
  def _training(self) -> list[solids.SyntheticClip]:
    data = self._preset.data
    return [
      solids.make_clip(data.first_seed + i, make.NUM_FRAMES)
      for i in range(min(data.num_clips, _MAX_TRAINING))
    ]

  @functools.cached_property
  def _mean_shape(self) -> held_out.Meshes:
    return held_out.mean_shape(self._training)

  @functools.cached_property
  def _best_training(self) -> held_out.Meshes:
    clips = []
    for seed in range(make.NUM_CLIPS):
      clip = solids.make_clip(seed, make.NUM_FRAMES)
      clips.append(
        held_out.HeldOutClip(clip.family, clip, np.zeros(0), np.zeros(0), [])
      )
    best = held_out.best_training_clip(self._training, clips)
    return held_out.truth_meshes(best)

  @functools.cached_property
  def _model(self) -> model_lib.Sculpt4D:
    return model_lib.Sculpt4D.load(self._preset.model, _weights(self._preset))

  def _sample(
    self, name: str, count: int, temporal_mode: str | None = None
  ) -> held_out.Meshes:
    sampling = dataclasses.replace(self._preset.sampling, num_frames=count)
    if temporal_mode is not None:
      sampling = dataclasses.replace(sampling, temporal_mode=temporal_mode)
    size = self._preset.model.image_encoder.image_size
    images, masks = read_pictures(self._folder / "frames" / name, size)
    return pipeline.sample_meshes(
      self._model, images, masks, sampling, self._preset.surface
    )


def read_pictures(
  folder: pathlib.Path, size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pictures of a clip on white, uint8 [F, size, size, 3], and their masks."""
  pictures, masks = [], []
  for path in sorted(folder.glob("*.png")):
    with Image.open(path) as image:
      rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    picture = Image.alpha_composite(white, rgba).convert("RGB")
    pictures.append(
      np.asarray(picture.resize((size, size), Image.Resampling.BOX))
    )
    mask = rgba.getchannel("A").resize((size, size), Image.Resampling.BOX)
    masks.append(np.asarray(mask))
  return np.stack(pictures), np.stack(masks)
