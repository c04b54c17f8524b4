"""Posteriors and image features that were computed before the training.

They lie in shards next to the records' (`training/record_latents.py` makes
them). A clip has several: one for each view, mirror image and draw that an
example may ask for.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.data.records import schema
from sculpt4d_jax.data.records import shards as record_files


def posterior(
  reader: record_files.ShardReader,
  clip: dataset_index.IndexedClip,
  frames: np.ndarray,
  variant: tuple[int, bool, float],
) -> dict[str, np.ndarray]:
  """Mean and log-variance of some frames, [F', N, C].

  Args:
    reader: Shards of an encoder's posteriors.
    clip: The clip.
    frames: Numbers of the frames, [F'].
    variant: View, whether the object is mirrored, and a number in [0, 1) that
      selects one of the draws.

  Raises:
    RecordError: They were not computed.
  """
  view, mirrored, fraction = variant
  found = _found(reader, clip, "posterior")
  details = found["details"]
  _check_mirrors(reader, details, mirrored, "posteriors")
  part = posterior_part(
    details, view, mirrored, int(fraction * details["choices"])
  )
  entry = schema.decode(
    reader.read(clip.shard, found["entries"]["posterior"][part]), "posterior"
  )
  return {name: x[frames] for name, x in entry.items()}


def features(
  reader: record_files.ShardReader,
  clip: dataset_index.IndexedClip,
  frames: np.ndarray,
  variant: tuple[int, bool],
) -> dict[str, np.ndarray]:
  """Image tokens of some frames as `context`, [F', I, D].

  Args:
    reader: Shards of an image encoder's features.
    clip: The clip.
    frames: Numbers of the frames, [F'].
    variant: View, and whether the object is mirrored.

  Raises:
    RecordError: They were not computed.
  """
  view, mirrored = variant
  found = _found(reader, clip, "features")
  _check_mirrors(reader, found["details"], mirrored, "features")
  part = posterior_part(found["details"] | {"choices": 1}, view, mirrored, 0)
  entry = schema.decode(
    reader.read(clip.shard, found["entries"]["features"][part]), "features"
  )
  return {"context": entry["tokens"][frames]}


def posterior_part(
  contents: Mapping[str, Any], view: int, mirrored: bool, choice: int
) -> int:
  """Number of a posterior among those of its clip.

  Args:
    contents: The shard's table of contents: its `views` (empty if it is the
      same for all) and the numbers of `mirrors` and `choices`.
    view: View that the object is turned to.
    mirrored: Whether the object is mirrored.
    choice: Index of the draw of the query rows.
  """
  # Two views, with mirror images and two choices:
  #
  #   view       |     0     |     1     |
  #   mirrored   |  no | yes |  no | yes |
  #   choice     | 0 1 | 0 1 | 0 1 | 0 1 |
  #   part       | 0 1 | 2 3 | 4 5 | 6 7 |
  place = contents["views"].index(view) if contents["views"] else 0
  return (place * contents["mirrors"] + mirrored) * contents["choices"] + choice


def _found(
  reader: record_files.ShardReader, clip: dataset_index.IndexedClip, kind: str
) -> dict[str, Any]:
  contents = reader.contents(clip.shard)
  if clip.clip not in contents:
    raise schema.RecordError(
      f"{clip.clip} has no {kind} of {reader.folder.name!r}; compute it before"
      " the training, as docs/data.md says."
    )
  return contents[clip.clip]


def _check_mirrors(
  reader: record_files.ShardReader,
  details: Mapping[str, Any],
  mirrored: bool,
  kind: str,
) -> None:
  if mirrored and details["mirrors"] < 2:
    raise schema.RecordError(
      f"The {kind} of {reader.folder.name!r} were made without mirrors: set"
      " mirror=False, or make them with mirrors."
    )
