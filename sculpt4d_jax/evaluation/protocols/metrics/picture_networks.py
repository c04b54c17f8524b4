"""Metrics by networks that compare rendered pictures of both sides.

All use the same views: head-light grey, or normal maps if the name says so. A
frame without a surface gives an empty picture. A metric without weights is
undefined, and its note names the missing file.
"""

from collections.abc import Callable, Sequence
import functools
import os
from typing import Any

import numpy as np

from sculpt4d_jax.evaluation.protocols.metrics import metric
from sculpt4d_jax.evaluation.views import clip
from sculpt4d_jax.evaluation.views import frechet
from sculpt4d_jax.evaluation.views import lpips
from sculpt4d_jax.evaluation.views import torch_networks
from sculpt4d_jax.evaluation.views import weight_files

ClipPair = metric.ClipPair
NotDefined = metric.NotDefined
PathLike = str | os.PathLike


def lpips_scores(pair: ClipPair, kind: str) -> lpips.Scores:
  """LPIPS of all pictures of a kind, "shaded" or "normals"."""
  network = _network(_load_lpips, pair)
  return network(*_flat(pair, kind))


def lpips_scalar(pair: ClipPair) -> float:
  """Mean LPIPS of shaded pictures: sums of the layers' means."""
  return float(_shaded_lpips(pair).scalar.mean())


def lpips_spatial(pair: ClipPair) -> float:
  """Mean LPIPS of shaded pictures: means of the maps of enlarged layers."""
  return float(_shaded_lpips(pair).spatial.mean())


def lpips_normals(pair: ClipPair) -> float:
  """Mean LPIPS of pictures of the normals."""
  return float(lpips_scores(pair, "normals").scalar.mean())


def clip_cosine(
  pair: ClipPair, load: Callable[[PathLike | None], Any]
) -> float:
  """Mean cosine of the embeddings of corresponding pictures."""
  embed = _network(load, pair)
  a, b = (embed(pictures) for pictures in _flat(pair, "shaded"))
  return float(np.sum(a * b, axis=1).mean())


def dreamsim(pair: ClipPair) -> float:
  """Mean DreamSim distance of shaded pictures."""
  return float(_network(_load_dreamsim, pair)(*_flat(pair, "shaded")).mean())


def i3d_distance(pair: ClipPair) -> float:
  """Mean over views of `frechet.single_clip_distance` of the whole clip."""
  network = _network(_load_i3d, pair)
  a, b = (network(pictures) for pictures in pair.pictures("shaded"))
  return float(
    np.mean([frechet.single_clip_distance(x, y) for x, y in zip(a, b)])
  )


def video_features(pair: ClipPair) -> np.ndarray:
  """I3D features of both sides' pieces of 32 frames, [2, N, 400]."""
  network = _network(_load_i3d, pair)
  return np.stack(
    [
      network(np.concatenate([torch_networks.pieces(v) for v in pictures]))
      for pictures in pair.pictures("shaded")
    ]
  )


def video_distance(features: Sequence[np.ndarray]) -> tuple[float, str]:
  """The Frechet distance of all clips' pieces, and a note for the table.

  Raises:
    NotDefined: There are fewer than two pieces.
  """
  a, b = (np.concatenate(rows) for rows in zip(*features))
  if len(a) < 2:
    raise NotDefined("a set distance needs two pieces of video, there is one")
  return frechet.frechet_distance(a, b), (
    f"{len(a)} pieces, covariances of rank {frechet.rank(a, b)} at most"
  )


def _flat(pair: ClipPair, kind: str) -> list[np.ndarray]:
  return [x.reshape(-1, *x.shape[2:]) for x in pair.pictures(kind)]


def _shaded_lpips(pair: ClipPair) -> lpips.Scores:
  """Both forms from one pass."""
  if "lpips" not in pair.memory:
    pair.memory["lpips"] = lpips_scores(pair, "shaded")
  return pair.memory["lpips"]


def _network(load: Callable[[PathLike | None], Any], pair: ClipPair) -> Any:
  try:
    return load(pair.conventions.views.weights)
  except weight_files.MissingWeights as error:
    raise NotDefined(str(error)) from error
  except ImportError as error:
    raise NotDefined(str(error).rstrip(".")) from error


@functools.lru_cache(maxsize=1)
def _load_lpips(folder: PathLike | None) -> lpips.Lpips:
  return lpips.Lpips.load(
    weight_files.find(folder, "vgg16"),
    weight_files.find(folder, "lpips_heads"),
  )


@functools.lru_cache(maxsize=1)
def _load_clip(folder: PathLike | None) -> clip.Clip:
  return clip.Clip.load(weight_files.find(folder, "clip_b32"))


@functools.lru_cache(maxsize=1)
def _load_open_clip(folder: PathLike | None) -> torch_networks.OpenClip:
  return torch_networks.OpenClip(weight_files.find(folder, "clip_bigg"))


@functools.lru_cache(maxsize=1)
def _load_dreamsim(folder: PathLike | None) -> torch_networks.DreamSim:
  return torch_networks.DreamSim(weight_files.find(folder, "dreamsim"))


@functools.lru_cache(maxsize=1)
def _load_i3d(folder: PathLike | None) -> torch_networks.I3d:
  return torch_networks.I3d(weight_files.find(folder, "i3d"))


LPIPS = metric.Metric("lpips", "LPIPS", "lower", np.nan, of_clip=lpips_scalar)
LPIPS_SPATIAL = metric.Metric(
  "lpips_spatial", "LPIPS (map)", "lower", np.nan, of_clip=lpips_spatial
)
LPIPS_NORMALS = metric.Metric(
  "lpips_normals", "LPIPS (normals)", "lower", np.nan, of_clip=lpips_normals
)
CLIP_B32 = metric.Metric(
  "clip_b32",
  "CLIP B/32",
  "higher",
  np.nan,
  of_clip=functools.partial(clip_cosine, load=_load_clip),
)
CLIP_BIGG = metric.Metric(
  "clip_bigg",
  "CLIP bigG",
  "higher",
  np.nan,
  of_clip=functools.partial(clip_cosine, load=_load_open_clip),
)
DREAMSIM = metric.Metric(
  "dreamsim", "DreamSim", "lower", np.nan, of_clip=dreamsim
)
I3D_DISTANCE = metric.Metric(
  "i3d_distance",
  'I3D distance (Consistent4D\'s "FVD")',
  "lower",
  np.nan,
  of_clip=i3d_distance,
)
FVD = metric.Metric(
  "fvd",
  "FVD (set)",
  "lower",
  np.nan,
  features_of_clip=video_features,
  of_set=video_distance,
)
