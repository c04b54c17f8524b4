"""Seconds by stage that a sampling run left in its run.json.

The folder of a prediction holds one if `launch.sample` or the library wrote it.
Runs on different devices, or with different numbers of frames, are never
averaged.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import os
import pathlib

import numpy as np

from sculpt4d_jax.errors import UserError

PathLike = str | os.PathLike

_NAME = "run.json"


@dataclasses.dataclass(frozen=True)
class RunSeconds:
  """Wall time of one run.

  Attributes:
    device: Device that ran it.
    num_frames: Number of frames of the clip.
    stages: Seconds by stage, in the order of the run.
  """

  device: str
  num_frames: int
  stages: Mapping[str, float]


def read(prediction: PathLike) -> RunSeconds | None:
  """The seconds of the run that wrote a prediction; None without a run.json.

  Args:
    prediction: Folder of a sequence, or a file in such a folder.

  Raises:
    UserError: The file is damaged.
  """
  path = pathlib.Path(prediction)
  path = (path if path.is_dir() else path.parent) / _NAME
  if not path.is_file():
    return None
  try:
    document = json.loads(path.read_text())
    stages: dict[str, float] = {}
    for stage in document["stages"]:
      name = str(stage["name"])
      stages[name] = stages.get(name, 0.0) + float(stage["seconds"])
    return RunSeconds(
      str(document["device"]), int(document["input"]["frames"]), stages
    )
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{path} is not a record of a run (device, input.frames and stages with"
      " name and seconds); remove it to score the meshes without their seconds."
    ) from error


def describe(runs: Sequence[RunSeconds]) -> list[str]:
  """A line for each device and number of frames, with the mean seconds."""
  groups: dict[tuple[str, int], list[RunSeconds]] = {}
  for run in runs:
    groups.setdefault((run.device, run.num_frames), []).append(run)
  lines = []
  for (device, frames), members in groups.items():
    names = dict.fromkeys(name for run in members for name in run.stages)
    parts = [
      f"{name} {np.mean([run.stages.get(name, 0.0) for run in members]):.2f}"
      for name in names
    ]
    whole = np.mean([sum(run.stages.values()) for run in members])
    plural = "" if len(members) == 1 else "s"
    lines.append(
      f"seconds a clip from {_NAME}, {device}, {frames} frames,"
      f" {len(members)} clip{plural}: {', '.join(parts)}; in all {whole:.2f}"
    )
  return lines
