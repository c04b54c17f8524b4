from html import parser

from sculpt4d_jax.evaluation.reproduce import report_page


class Cells(parser.HTMLParser):
  """Texts of a page's table cells."""

  def __init__(self):
    super().__init__()
    self.cells, self._open = [], False

  def handle_starttag(self, tag, attrs):
    del attrs
    self._open = tag in ("td", "th")

  def handle_data(self, data):
    if self._open:
      self.cells.append(data)
      self._open = False


def test_page_and_markdown_hold_the_same_figures(tmp_path):
  section = report_page.Section(
    "Scores <of> A1",
    "python -m launch.reproduce --table=A1",
    table=[["variant", "CD"], ["ours", "0.1 [0.0, 0.2]"]],
    text="a | b",
    notes=["20 clips & 3 seeds."],
    figure="<svg></svg>",
  )
  page, markdown = report_page.write(tmp_path, "Table A1", [section])
  text = page.read_text()
  cells = Cells()
  cells.feed(text)
  assert cells.cells == ["variant", "CD", "ours", "0.1 [0.0, 0.2]"]
  assert "Scores &lt;of&gt; A1" in text and "<svg></svg>" in text
  text = markdown.read_text()
  for expected in (
    "## Scores <of> A1",
    "0.1 [0.0, 0.2] |",
    "3 seeds.",
    "a | b",
  ):
    assert expected in text
  assert "--table=A1" in text
