r"""Counts the code of checkouts: files, lines, comments, annotations, tests.

  python -m benchmarks.code_counts                   # this checkout
  git worktree add ../before COMMIT
  python -m benchmarks.code_counts --trees=../before,.
  python -m benchmarks.code_counts --listed=30       # fewest comments first
  python -m benchmarks.code_counts --hardest         # the hardest files

Counted are the Python files that git knows. A code line has at least one token
that is neither a comment nor part of a docstring; a comment line has a comment,
alone or behind code, that is no instruction to a tool. Arguments are those of
functions and methods without self and cls. A module has a test of its name if
`tests/` mirrors its path.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import io
import pathlib
import re
import subprocess
import tokenize

from absl import flags

from launch import program
from sculpt4d_jax.errors import UserError

_TREES = flags.DEFINE_list(
  "trees", ["."], "Checkouts that are counted side by side."
)
_LISTED = flags.DEFINE_integer(
  "listed",
  0,
  "Also lists this many product files of 100 code lines or more, those with the"
  " fewest comments first.",
  lower_bound=0,
)

_HARDEST = flags.DEFINE_bool(
  "hardest", False, "Also lists the files that are hardest to understand."
)

_LEAST_LINES = 100  # Code lines of a listed file.
# Kernels, sharding, loops with hand-written gradients, formats of others: by
# judgement, since no count says what is hard.
HARDEST = (
  "kernels/block_sparse_attention/mask.py",
  "kernels/block_sparse_attention/tpu/lists.py",
  "kernels/block_sparse_attention/tpu/forward.py",
  "kernels/block_sparse_attention/tpu/backward.py",
  "kernels/block_sparse_attention/tpu/attention.py",
  "kernels/block_sparse_attention/gpu/kernels.py",
  "kernels/block_sparse_attention/gpu/attention.py",
  "kernels/block_sparse_attention/gpu/walk.py",
  "kernels/block_sparse_attention/gpu/ampere.py",
  "kernels/block_sparse_attention/xla/contiguous.py",
  "sculpt4d_jax/models/moe/grouped_mlp.py",
  "sculpt4d_jax/models/moe/grouped_matmul.py",
  "sculpt4d_jax/models/moe/experts.py",
  "sculpt4d_jax/models/u_shape.py",
  "sculpt4d_jax/models/dit.py",
  "sculpt4d_jax/models/attention.py",
  "sculpt4d_jax/models/streaming.py",
  "sculpt4d_jax/partitioning.py",
  "sculpt4d_jax/training/ahead_of_time/collectives.py",
  "sculpt4d_jax/training/loop.py",
  "sculpt4d_jax/training/checkpoints.py",
  "sculpt4d_jax/training/store_checkpoints.py",
  "sculpt4d_jax/training/record_latents.py",
  "sculpt4d_jax/training/sources.py",
  "sculpt4d_jax/data/loading/examples.py",
  "sculpt4d_jax/data/preparation/prepare.py",
  "sculpt4d_jax/weights/pretrained.py",
  "sculpt4d_jax/weights/tensor_files/torch_pickle.py",
  "sculpt4d_jax/weights/orbax_leaves.py",
  "sculpt4d_jax/geometry/isosurface.py",
  "sculpt4d_jax/geometry/watertight.py",
  "sculpt4d_jax/diffusion/samplers.py",
)
_INSTRUCTION = re.compile(r"#\s*(noqa|fmt|pylint|type|ruff)\b|#!")
_LAYOUT = (
  tokenize.NL,
  tokenize.NEWLINE,
  tokenize.INDENT,
  tokenize.DEDENT,
  tokenize.ENDMARKER,
)
_WITH_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef)


@dataclasses.dataclass(frozen=True)
class FileCount:
  """Counts of one file.

  Attributes:
    lines: Number of lines.
    code: Number of code lines.
    comments: Number of comment lines.
    arguments: Number of arguments.
    annotated: Number of annotated arguments.
    tests: Number of test functions.
  """

  lines: int
  code: int
  comments: int
  arguments: int
  annotated: int
  tests: int

  @property
  def density(self) -> float:
    """Comment lines for every hundred code lines."""
    return 100 * self.comments / max(self.code, 1)


def count(source: str) -> FileCount:
  """Counts a file's text."""
  tree = ast.parse(source)
  code, comments = set(), set()
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      if not _INSTRUCTION.match(token.string):
        comments.add(token.start[0])
    elif token.type not in _LAYOUT:
      code.update(range(token.start[0], token.end[0] + 1))
  for node in ast.walk(tree):
    if isinstance(node, _WITH_DOCSTRINGS) and ast.get_docstring(node):
      docstring = node.body[0]
      code.difference_update(range(docstring.lineno, docstring.end_lineno + 1))
  functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
  arguments = [a for f in functions for a in _arguments(f)]
  return FileCount(
    lines=len(source.splitlines()),
    code=len(code),
    comments=len(comments),
    arguments=len(arguments),
    annotated=sum(a.annotation is not None for a in arguments),
    tests=sum(f.name.startswith("test_") for f in functions),
  )


def _arguments(function: ast.FunctionDef) -> list[ast.arg]:
  given = function.args
  found = [*given.posonlyargs, *given.args, *given.kwonlyargs]
  found += [a for a in (given.vararg, given.kwarg) if a is not None]
  return [a for a in found if a.arg not in ("self", "cls")]


def count_tree(root: pathlib.Path) -> dict[str, FileCount]:
  """Path in a checkout -> counts of the file.

  Raises:
    UserError: The folder is no checkout.
  """
  listed = subprocess.run(
    ["git", "ls-files", "*.py"],
    cwd=root,
    capture_output=True,
    text=True,
    check=False,
  )
  if listed.returncode:
    raise UserError(f"{root} is no checkout of git: {listed.stderr.strip()}.")
  return {
    path: count((root / path).read_text())
    for path in listed.stdout.splitlines()
  }


def is_product(path: str) -> bool:
  """Whether a file is neither a test nor a measuring program."""
  return not path.startswith(("tests/", "benchmarks/"))


def table(trees: Mapping[str, Mapping[str, FileCount]]) -> str:
  """Counts of checkouts side by side, in Markdown."""
  columns = [_column(files) for files in trees.values()]
  lines = [
    f"| | {' | '.join(trees)} |",
    "|---" * (len(trees) + 1) + "|",
  ]
  lines += [
    f"| {name} | {' | '.join(column[name] for column in columns)} |"
    for name in columns[0]
  ]
  return "\n".join(lines)


def _column(files: Mapping[str, FileCount]) -> dict[str, str]:
  product = {p: c for p, c in files.items() if is_product(p)}
  kinds = {
    "product": product,
    "benchmarks": {
      p: c for p, c in files.items() if p.startswith("benchmarks/")
    },
    "tests": {p: c for p, c in files.items() if p.startswith("tests/")},
  }
  column = {}
  for name, counts in kinds.items():
    column[f"files, lines: {name}"] = (
      f"{len(counts)}, {_sum(counts.values(), 'lines'):,}"
    )
  code = _sum(product.values(), "code")
  comments = _sum(product.values(), "comments")
  column["code lines of the product"] = f"{code:,}"
  column["comments per 100 code lines"] = f"{100 * comments / max(code, 1):.1f}"
  arguments = _sum(product.values(), "arguments")
  annotated = _sum(product.values(), "annotated")
  column["annotated arguments"] = (
    f"{annotated:,} of {arguments:,}"
    f" ({100 * annotated / max(arguments, 1):.1f} %)"
  )
  modules = [p for p in product if _is_module(p)]
  tested = sum(_test_of(p) in files for p in modules)
  column["modules with a test of their name"] = f"{tested} of {len(modules)}"
  tests = _sum(kinds["tests"].values(), "tests")
  column["test functions"] = f"{tests:,}"
  column["test functions per module"] = f"{tests / max(len(modules), 1):.1f}"
  return column


def _sum(counts: Iterable[FileCount], name: str) -> int:
  return sum(getattr(one, name) for one in counts)


def _is_module(path: str) -> bool:
  is_special = path.endswith(("__init__.py", "__main__.py"))
  return not is_special and not path.startswith("configs/")


def _test_of(path: str) -> str:
  return f"tests/{path.removeprefix('sculpt4d_jax/')[:-3]}_test.py"


def main(argv: Sequence[str]):
  """Runs the program."""
  del argv
  trees = {root: count_tree(pathlib.Path(root)) for root in _TREES.value}
  print(table(trees))
  for root, files in trees.items():
    if _LISTED.value:
      found = {
        path: one
        for path, one in files.items()
        if is_product(path) and one.code >= _LEAST_LINES
      }
      print(f"\n{root}: {_lines(found, _LISTED.value)}")
    if _HARDEST.value:
      found = {path: files[path] for path in HARDEST if path in files}
      print(f"\n{root}: {_lines(found, len(found))}")


def _lines(files: Mapping[str, FileCount], count: int) -> str:
  """The files with the fewest comments, and the mean of all."""
  code = _sum(files.values(), "code")
  mean = 100 * _sum(files.values(), "comments") / max(code, 1)
  ordered = sorted(files, key=lambda path: files[path].density)
  lines = ["comments per 100 code lines, code lines, file"]
  for path in ordered[:count]:
    lines.append(f"{files[path].density:6.1f} {files[path].code:5d}  {path}")
  lines.append(f"{mean:6.1f} {code:5d}  all {len(files)}")
  return "\n".join(lines)


if __name__ == "__main__":
  program.run(main)
