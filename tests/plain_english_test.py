"""Text is plain English: phrases that patterns recognise are rejected."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = (
  "benchmarks",
  "configs",
  "docs",
  "kernels",
  "launch",
  "notebooks",
  "sculpt4d_jax",
  "tests",
  "weights",
)
SUFFIXES = (".py", ".md", ".ipynb", ".js", ".sh")

# A pattern, and what to write in its place.
HABITS = (
  (
    r"^ +\*{0,2}[a-z_]+: (?:Of|That|How|Whose|What|Which|Where|When|Whom)\b",
    'a noun phrase: "seed: Seed of the draws.", "folder: Output folder."',
  ),
  (r"^ +[a-z_]+: As (?:query|key|in|for)\b", '"Same shape as query."'),
  (r"\b[Bb]eside\b", '"besides" or "next to"'),
  (r"\bof (?:its|their) own(?=[.,;:)\"])", '"separate", or "its own X"'),
  (r"(?<!one )\bof ours\b", '"our X"'),
  (r"\b[Gg]o(?:es)? on\b", '"resumes", "continues", or the verb that is meant'),
  (r"\b(?:is|are|as) no number\b", '"is NaN or infinite"'),
  (r"\b(?:is|are) worked through\b", '"is computed", "is processed"'),
  (r"[,;] came\b", '"expected X, got Y"'),
  (r"(?<!as good )\bas it is(?=[.,;:)\"]|$)", '"unchanged"'),
)


def _texts():
  for folder in FOLDERS:
    for path in sorted((ROOT / folder).rglob("*")):
      if path.suffix in SUFFIXES and path.is_file():
        yield path
  yield from sorted(ROOT.glob("*.md"))


@pytest.mark.parametrize(("pattern", "instead"), HABITS)
def test_text_is_plain(pattern, instead):
  search = re.compile(pattern).search
  found = [
    f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
    for path in _texts()
    if path != pathlib.Path(__file__).resolve()
    for number, line in enumerate(path.read_text().splitlines(), 1)
    if search(line)
  ]
  assert not found, f"write {instead} in\n" + "\n".join(found)


@pytest.mark.parametrize(
  ("line", "is_refused"),
  [
    ("    seed: Of the draws.", True),
    ("    seed: Seed of the draws.", False),
    ("      **flags: What is passed on.", True),
    ("what stands beside the file", True),
    ("what else, besides the file", False),
    ("in an order of its own.", True),
    ("two of its own matrices", False),
    ("the same command goes on", True),
    ("expected 3, came 4", True),
  ],
)
def test_patterns_find_habits_alone(line, is_refused):
  assert any(re.search(p, line) for p, _ in HABITS) == is_refused
