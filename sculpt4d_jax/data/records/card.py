"""The dataset card: content, licences and production of a data set."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.data.records import schema
from sculpt4d_jax.io import atomic


def write_card(
  index: dataset_index.DatasetIndex,
  verdicts: Sequence[Mapping[str, Any]],
  command: str,
) -> Any:
  """Writes `README.md` of a data set.

  Args:
    index: Index of the data set.
    verdicts: Its verdicts; see `index.read_verdicts`.
    command: Command that made the data set.

  Returns:
    The card's path.
  """
  sections = [
    f"# {index.folder.name}",
    "Animated objects as training records of Sculpt4D in JAX: surface points"
    " that correspond from frame to frame, signed distances, and pictures"
    " with cameras, depth and normals.",
    _counts(index, verdicts),
    _licences(index),
    _unusable(verdicts),
    "## How it was made\n\n"
    f"```sh\n{command}\n```\n\n"
    "The same command resumes after an interruption, takes up new assets and"
    " leaves alone what is done. `settings.json` holds all settings,"
    " `verdicts/` what was measured on every clip with the versions of all"
    " libraries, `summary.html` shows it.",
    _format(index),
  ]
  path = index.folder / "README.md"
  text = "\n\n".join(section for section in sections if section) + "\n"
  atomic.write_bytes(path, text.encode())
  return path


def _counts(
  index: dataset_index.DatasetIndex, verdicts: Sequence[Mapping[str, Any]]
) -> str:
  rejected = sum(not clip["accepted"] for v in verdicts for clip in v["clips"])
  rows = ["## Content", "", "| split | assets | clips |", "|---|---|---|"]
  for name, clips in index.splits.items():
    assets = {clip.asset for clip in clips}
    rows.append(f"| {name} | {len(assets)} | {len(clips)} |")
  rows += [
    "",
    f"Every clip has {index.settings['num_frames']} frames. {rejected} more"
    " clips were rejected by the round-trip gate. The split is by asset: no"
    " asset has clips on both sides, nor has an object that several assets"
    " are said to show.",
  ]
  return "\n".join(rows)


def _licences(index: dataset_index.DatasetIndex) -> str:
  groups = collections.defaultdict(lambda: [set(), 0])
  for clips in index.splits.values():
    for clip in clips:
      details = clip.details
      key = (
        details["licence"] or "not stated",
        details["source"] or "not stated",
        details["authors"] or "not stated",
      )
      groups[key][0].add(clip.asset)
      groups[key][1] += 1
  rows = [
    "## Licences",
    "",
    "The records are made from these assets and keep their terms.",
    "",
    "| licence | source | authors | assets | clips |",
    "|---|---|---|---|---|",
  ]
  for key, (assets, clips) in sorted(groups.items()):
    cells = [cell.replace("|", "/") for cell in key]
    rows.append(f"| {' | '.join(cells)} | {len(assets)} | {clips} |")
  return "\n".join(rows)


def _unusable(verdicts: Sequence[Mapping[str, Any]]) -> str:
  rows = [
    f"| {v['asset_name']} | {v['error'].replace('|', '/')} |"
    for v in verdicts
    if v["error"]
  ]
  if not rows:
    return ""
  return "\n".join(
    [
      "## Assets that could not be used",
      "",
      "| asset | why |",
      "|---|---|",
      *rows,
    ]
  )


def _format(index: dataset_index.DatasetIndex) -> str:
  rows = [
    "## Format",
    "",
    f"ArrayRecord shards of schema version {schema.VERSION}, read with"
    " `sculpt4d_jax.data.loading.loader`. F frames a clip"
    f" (= {index.settings['num_frames']}).",
    "",
    "| entry | field | type | shape | meaning |",
    "|---|---|---|---|---|",
  ]
  for kind, fields in schema.SCHEMA.items():
    for name, field in fields.items():
      shape = ", ".join(map(str, field.shape))
      rows.append(
        f"| {kind} | {name} | {field.dtype} | [{shape}] | {field.meaning} |"
      )
  return "\n".join(rows)
