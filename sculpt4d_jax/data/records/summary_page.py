"""The summary page of a data set, with pictures of all clips.

`summary.html` shows all accepted clips and all rejected clips with the reasons.
It works offline, with the pictures next to it.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
import html
from typing import Any

from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths

_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto;
  max-width: 72rem; padding: 0 1rem; color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .9rem .2rem 0;
  text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
.clips { display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); }
.clip { border: 1px solid #ddd; border-radius: 6px; overflow: hidden; }
.clip img { width: 100%; display: block; background: #eeeeec; }
.clip div { padding: .45rem .7rem .6rem; } .clip b { font-weight: 600; }
.small { color: #666; font-size: 12px; } .bad { color: #a32121; }
.none { height: 5rem; background: #eeeeec; }
"""
_SHOWN = (
  ("chamfer_cells", "Chamfer, cells"),
  ("missing", "missing"),
  ("extra", "extra"),
  ("sheets", "sheets"),
  ("unmatched", "unmatched"),
  ("slip_cells", "slip, cells"),
  ("sign_errors", "sign errors"),
)
_MAX_SHOWN = 2000

_Verdict = Mapping[str, Any]  # The content of a unit's verdict file.
# Clips, each after the verdict of its unit.
_Clips = Sequence[tuple[_Verdict, Mapping[str, Any]]]


def write_summary(folder: paths.PathLike, verdicts: Sequence[_Verdict]) -> Any:
  """Writes `summary.html` of a data set.

  Args:
    folder: Folder of the data set.
    verdicts: Its verdicts; see `index.read_verdicts`.

  Returns:
    The page's path.
  """
  folder = paths.of(folder)
  clips = [(v, clip) for v in verdicts for clip in v["clips"]]
  accepted = [(v, c) for v, c in clips if c["accepted"]]
  rejected = [(v, c) for v, c in clips if not c["accepted"]]
  refused = [v for v in verdicts if v["error"]]
  parts = [
    "<!doctype html><html lang=en><meta charset=utf-8>",
    "<meta name=viewport content='width=device-width'>",
    f"<title>Summary of {html.escape(folder.name)}</title>",
    f"<style>{_STYLE}</style><h1>{html.escape(folder.name)}</h1>",
    _totals(verdicts, accepted, rejected, refused),
    _reason_table(rejected),
    _gallery("Rejected clips", rejected),
    _gallery("Accepted clips", accepted),
    _refused_table(refused),
  ]
  path = folder / "summary.html"
  atomic.write_bytes(path, "\n".join(parts).encode())
  return path


def _totals(
  verdicts: Sequence[_Verdict],
  accepted: _Clips,
  rejected: _Clips,
  refused: Sequence[_Verdict],
) -> str:
  assets = {c["asset"] for _, c in accepted}
  done = [v for v in verdicts if not v["error"]]
  clips = max(len(accepted) + len(rejected), 1)
  rows = [
    ("clips accepted", len(accepted)),
    ("clips rejected", len(rejected)),
    ("assets with accepted clips", len(assets)),
    ("assets that could not be used", len(refused)),
    (
      "seconds a clip, on average",
      f"{sum(v['seconds'] for v in done) / clips:.1f}",
    ),
    (
      "processor seconds a clip, on average",
      f"{sum(v['cpu_seconds'] for v in done) / clips:.1f}",
    ),
    (
      "peak memory of a process, MB",
      f"{max([v['peak_bytes'] for v in verdicts], default=0) / 1e6:.0f}",
    ),
    ("bytes of records, MB", f"{sum(v['bytes'] for v in verdicts) / 1e6:.1f}"),
  ]
  return _table(rows)


def _table(rows: Iterable[Sequence[Any]]) -> str:
  cells = "".join(
    f"<tr><td>{html.escape(str(name))}<td class=n>{html.escape(str(value))}"
    for name, value in rows
  )
  return f"<table>{cells}</table>"


def _reason_table(rejected: _Clips) -> str:
  if not rejected:
    return ""
  counts = collections.Counter(
    reason.partition(":")[0]
    for _, clip in rejected
    for reason in clip["reasons"]
  )
  return "<h2>Reasons to reject</h2>" + _table(counts.most_common())


def _refused_table(refused: Sequence[_Verdict]) -> str:
  if not refused:
    return ""
  rows = "".join(
    f"<tr><td>{html.escape(v['asset_name'])}<td class=bad>"
    f"{html.escape(v['error'])}"
    for v in refused
  )
  return f"<h2>Assets that could not be used</h2><table>{rows}</table>"


def _gallery(title: str, clips: _Clips) -> str:
  if not clips:
    return ""
  more = ""
  if len(clips) > _MAX_SHOWN:
    more = f"<p class=small>The first {_MAX_SHOWN} of {len(clips)}.</p>"
  cards = "\n".join(_card(v, clip) for v, clip in clips[:_MAX_SHOWN])
  return f"<h2>{title} ({len(clips)})</h2>{more}<div class=clips>{cards}</div>"


def _card(verdict: Mapping[str, Any], clip: Mapping[str, Any]) -> str:
  picture = "<div class=none></div>"
  if clip["preview"]:
    picture = f"<img loading=lazy alt='' src='{html.escape(clip['preview'])}'>"
  measures = " · ".join(
    f"{label} {clip['measures'][name]:.3g}"
    for name, label in _SHOWN
    if name in clip["measures"]
  )
  reasons = "".join(
    f"<div class=bad style='padding:0'>{html.escape(reason)}</div>"
    for reason in clip["reasons"]
  )
  left_out = "".join(
    f"<div class=small style='padding:0'>left out: {html.escape(text)}</div>"
    for text in map(_left_out, clip.get("left_out", ()))
  )
  seconds = sum(clip["seconds"].values())
  return (
    f"<div class=clip>{picture}<div><b>{html.escape(clip['name'])}</b>"
    f" <span class=small>{html.escape(verdict['asset_name'])},"
    f" {clip['start']:.2f} to {clip['end']:.2f} s,"
    f" made in {seconds:.1f} s</span>{reasons}{left_out}"
    f"<div class=small style='padding:0'>{measures}</div></div></div>"
  )


def _left_out(part: Mapping[str, Any]) -> str:
  share = part["share"]
  area = "" if share is None else f" ({share:.1%} of the area)"
  return f"{part['name']}{area} {part['reason']}"
