"""A report of tables and plots as one HTML page and as Markdown."""

from collections.abc import Sequence
import dataclasses
import html
import pathlib

from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.io import atomic

_STYLE = (
  "body{font:15px/1.5 system-ui,sans-serif;max-width:72em;margin:2em auto;"
  "padding:0 1em;color:#222}table{border-collapse:collapse}td,th{padding:.2em"
  " .8em;border-bottom:1px solid #ddd;text-align:right}td:first-child,"
  "th:first-child{text-align:left}td{white-space:nowrap}th{vertical-align:"
  "bottom}.wide{overflow-x:auto;margin:1em 0}pre{background:#f5f5f5;padding:.8em;"
  "overflow-x:auto}.command{white-space:pre-wrap;overflow-wrap:anywhere}svg{max-width:100%}"
)


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of a report.

  Attributes:
    title: Its heading.
    command: The command that gives its figures; "" if an earlier section has
      it.
    table: Rows of cells, the first one the heads; may be empty.
    text: Lines kept as they are, for instance of a report in columns.
    notes: Paragraphs.
    figure: An SVG picture, or "".
    pictures: Files next to the report that show the figure, for Markdown.
  """

  title: str
  command: str
  table: Sequence[Sequence[str]] = ()
  text: str = ""
  notes: Sequence[str] = ()
  figure: str = ""
  pictures: Sequence[str] = ()


def markdown(title: str, sections: Sequence[Section]) -> str:
  """The report in Markdown; it shows figures that are files next to it."""
  parts = [f"# {title}"]
  for section in sections:
    parts.append(f"## {section.title}")
    if section.table:
      parts.append(evaluator.layout(section.table, True))
    if section.text:
      parts.append(f"```\n{section.text}\n```")
    parts += [f"![{section.title}]({name})" for name in section.pictures]
    parts += section.notes
    if section.command:
      parts.append(f"```\n{section.command}\n```")
  return "\n\n".join(parts) + "\n"


def page(title: str, sections: Sequence[Section]) -> str:
  """The report as a page that needs no other file."""
  parts = [f"<h1>{html.escape(title)}</h1>"]
  for section in sections:
    parts.append(f"<h2>{html.escape(section.title)}</h2>")
    if section.table:
      rows = [_row(section.table[0], "th")]
      rows += [_row(row, "td") for row in section.table[1:]]
      parts.append(f'<div class="wide"><table>{"".join(rows)}</table></div>')
    if section.figure:
      parts.append(f'<div class="wide">{section.figure}</div>')
    if section.text:
      parts.append(f"<pre>{html.escape(section.text)}</pre>")
    parts += [f"<p>{html.escape(note)}</p>" for note in section.notes]
    if section.command:
      command = html.escape(section.command)
      parts.append(f'<pre class="command">{command}</pre>')
  return (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    f"<body>{''.join(parts)}</body></html>\n"
  )


def write(
  folder: pathlib.Path, title: str, sections: Sequence[Section]
) -> list[pathlib.Path]:
  """Writes report.html and report.md; returns their paths."""
  paths = []
  for name, text in (
    ("report.html", page(title, sections)),
    ("report.md", markdown(title, sections)),
  ):
    atomic.write_bytes(folder / name, text.encode())
    paths.append(folder / name)
  return paths


def _row(cells: Sequence[str], tag: str) -> str:
  inner = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
  return f"<tr>{inner}</tr>"
