"""Compares counts of operations with the PFLOPs of the paper's Table A2.

Its six figures are, to 0.2 %,

  5.4 + 3.18 F + density(F) * 500 * 21 * 4 * (4096 F)^2 * 2048 / 1e15

for F frames: the scores of temporal attention in 500 calls, and a part that the
paper does not break down. This module lists possible accounts of that part and
compares each with all six rows. An account counts as found if every row agrees
to 1 %; the report then prints its figures next to the paper's.

`choices` says how much such an agreement means: it counts which choices of
parts, each counted once or not at all, agree as well.

Source: Sculpt4D, Table A2.
"""

from collections.abc import Callable
import dataclasses
import itertools
import textwrap

import numpy as np

from sculpt4d_jax.evaluation import cost
from sculpt4d_jax.models import flops

FRAMES = (8, 16, 32)
TOLERANCE = 0.01

_LINEAR = (
  "latent embedding",
  "skips",
  "spatial attention: projections",
  "cross-attention: projections",
  "temporal attention: projections",
  "MLP",
  "final layer",
)
_CROSS_SCORES = "cross-attention: scores"
# Parts of a call that `choices` takes or leaves, besides the context's keys and
# values. Smaller ones are left out.
_CHOSEN = (
  "skips",
  "spatial attention: projections",
  "spatial attention: scores",
  "cross-attention: projections",
  _CROSS_SCORES,
  "temporal attention: projections",
  "MLP",
  "MoE: routed experts",
  "MoE: shared expert",
)
_TEXT_WIDTH = 96
# Grid of a frame's field: 512 cells an axis, all points evaluated.
_GRID_POINTS = 513**3
# Hunyuan3D's program decodes this many points at a time, and computes the keys
# and values of the latents anew for each portion.
_PORTION = 8_000


@dataclasses.dataclass(frozen=True)
class Account:
  """A count of all operations except temporal attention.

  Attributes:
    name: Description of what is counted.
    fixed: Operations of a whole sample of F frames, temporal scores left out.
  """

  name: str
  fixed: Callable[[cost.Sizes, int], float]


@dataclasses.dataclass(frozen=True)
class Found:
  """Comparison of an account with the paper.

  Attributes:
    name: Description of what is counted.
    constant: Its part that does not grow with the frames, PFLOPs.
    a_frame: Its part a frame, PFLOPs.
    rows: PFLOPs sparse and full by frames.
    worst: Largest relative error of the six rows.
    worst_row: Name of the row with it.
  """

  name: str
  constant: float
  a_frame: float
  rows: dict[int, tuple[float, float]]
  worst: float
  worst_row: str


def _call_parts(
  sizes: cost.Sizes, num_frames: int, names: tuple[str, ...], factor: float
) -> float:
  counts = sizes.call(num_frames, "full")
  return cost.PAPER_CALLS * factor * sum(counts[name] for name in names)


def _everything(sizes: cost.Sizes, num_frames: int) -> float:
  counts = sizes.call(num_frames, "full")
  del counts[flops.TEMPORAL_SCORES]
  return cost.PAPER_CALLS * sum(counts.values())


def _context(sizes: cost.Sizes, num_frames: int) -> float:
  """Multiply-adds of the context's keys and values in every call."""
  counts = flops.dit_context(
    sizes.dit, num_frames, sizes.image_encoder.num_tokens
  )
  return cost.PAPER_CALLS * 0.5 * sum(counts.values())


def _linear(sizes: cost.Sizes, num_frames: int) -> float:
  return _call_parts(sizes, num_frames, _LINEAR, 0.5) + _context(
    sizes, num_frames
  )


def _with_experts(sizes: cost.Sizes, num_frames: int) -> float:
  experts = _call_parts(sizes, num_frames, ("MoE: routed experts",), 0.5)
  return _linear(sizes, num_frames) + experts


def _with_cross_scores(sizes: cost.Sizes, num_frames: int) -> float:
  scores = _call_parts(sizes, num_frames, (_CROSS_SCORES,), 0.5)
  return _linear(sizes, num_frames) + scores


def _context_once(sizes: cost.Sizes, num_frames: int) -> float:
  """Linear layers and cross-attention, context's keys and values cached."""
  scores = _call_parts(sizes, num_frames, (_CROSS_SCORES,), 0.5)
  context = _context(sizes, num_frames) / cost.PAPER_CALLS
  return _call_parts(sizes, num_frames, _LINEAR, 0.5) + scores + context


def _one_field(sizes: cost.Sizes) -> float:
  """The field of one frame at all points of a grid, once a sample."""
  return sum(flops.field_queries(sizes.vae, _GRID_POINTS).values())


def _field_in_portions(sizes: cost.Sizes) -> float:
  """The same with the latents' keys and values anew for every portion."""
  portions = -(-_GRID_POINTS // _PORTION)
  vae = sizes.vae
  return _one_field(sizes) + portions * flops.linear(
    vae.num_latents, vae.width, 2 * vae.width
  )


ACCOUNTS = (
  Account("every product, two operations a multiply-add (ours)", _everything),
  Account("multiply-adds of every product", lambda s, f: _everything(s, f) / 2),
  Account("multiply-adds of linear layers without experts", _linear),
  Account("multiply-adds of linear layers with routed experts", _with_experts),
  Account(
    "multiply-adds of linear layers and of cross-attention, without experts",
    _with_cross_scores,
  ),
  Account(
    "linear layers without experts, and one frame's field on 513^3 points",
    lambda s, f: _linear(s, f) + _one_field(s),
  ),
  Account(
    "the same with cross-attention's scores",
    lambda s, f: _with_cross_scores(s, f) + _one_field(s),
  ),
  Account(
    "linear layers without experts, and that field in portions of 8,000 points",
    lambda s, f: _linear(s, f) + _field_in_portions(s),
  ),
  Account(
    "linear layers and cross-attention without experts, the context's keys and"
    " values once a clip, and that field in portions",
    lambda s, f: _context_once(s, f) + _field_in_portions(s),
  ),
)


def compare(sizes: cost.Sizes, account: Account) -> Found:
  """Compares an account with the six rows."""
  rows, errors = {}, {}
  fixed = {frames: account.fixed(sizes, frames) / 1e15 for frames in FRAMES}
  for frames in FRAMES:
    scores = [
      cost.PAPER_CALLS * sizes.call(frames, mode)[flops.TEMPORAL_SCORES] / 1e15
      for mode in ("sparse", "full")
    ]
    rows[frames] = tuple(fixed[frames] + value for value in scores)
    paper = cost.PAPER_TABLE_A2[frames][:2]
    for mode, ours, theirs in zip(("sparse", "full"), rows[frames], paper):
      errors[f"{frames} frames, {mode}"] = abs(ours / theirs - 1)
  a_frame, constant = np.polyfit(FRAMES, [fixed[f] for f in FRAMES], 1)
  worst = max(errors, key=errors.get)
  return Found(
    account.name, float(constant), float(a_frame), rows, errors[worst], worst
  )


def choices(sizes: cost.Sizes, constant: float) -> tuple[int, int, float]:
  """How many choices of parts agree with the six rows to 1 %.

  Each of ten parts of a call counts its multiply-adds or nothing.

  Args:
    sizes: Sizes of the networks.
    constant: Operations of a sample besides them.

  Returns:
    Number that agree, number of choices, smallest error of the worst row.
  """
  parts = [_call_parts(sizes, 1, (name,), 0.5) for name in _CHOSEN]
  parts.append(_context(sizes, 1))
  taken = np.array(list(itertools.product((0, 1), repeat=len(parts))))
  a_frame = taken @ np.array(parts)
  worst = np.zeros(len(taken))
  for frames in FRAMES:
    for mode, figure in zip(("sparse", "full"), cost.PAPER_TABLE_A2[frames]):
      scores = sizes.call(frames, mode)[flops.TEMPORAL_SCORES]
      total = a_frame * frames + constant + cost.PAPER_CALLS * scores
      worst = np.maximum(worst, np.abs(total / (figure * 1e15) - 1))
  return int((worst <= TOLERANCE).sum()), len(taken), float(worst.min())


def paper_fit(sizes: cost.Sizes) -> tuple[float, float]:
  """Constant and slope of the remainder of the paper's six figures, PFLOPs."""
  frames, rest = [], []
  for number in FRAMES:
    for mode, figure in zip(("sparse", "full"), cost.PAPER_TABLE_A2[number]):
      scores = sizes.call(number, mode)[flops.TEMPORAL_SCORES]
      frames.append(number)
      rest.append(figure - cost.PAPER_CALLS * scores / 1e15)
  a_frame, constant = np.polyfit(frames, rest, 1)
  return float(constant), float(a_frame)


def report(sizes: cost.Sizes) -> str:
  """Text with all accounts, the best last, and the conclusion."""
  constant, a_frame = paper_fit(sizes)
  found = sorted(
    (compare(sizes, account) for account in ACCOUNTS), key=lambda f: -f.worst
  )
  lines = [
    "What the paper's PFLOPs leave besides temporal scores:"
    f" {constant:.1f} + {a_frame:.2f} a frame. Accounts of it:",
    f"{'constant':>10}{'a frame':>10}{'worst row':>11}  counted",
  ]
  for f in found:
    row = (
      f"{round(f.constant, 2) + 0:>10.2f}{f.a_frame:>10.2f}{f.worst:>11.2%}  "
    )
    lines.append(
      textwrap.fill(
        f.name,
        _TEXT_WIDTH,
        initial_indent=row,
        subsequent_indent=" " * len(row),
      )
    )
  best = found[-1]
  if best.worst <= TOLERANCE:
    lines.append(
      f"The last is within {TOLERANCE:.0%} of all six rows. Its figures, and the"
      " paper's:"
    )
    lines.append(f"{'frames':<8}{'sparse | paper':>20}{'full | paper':>22}")
    for frames, (sparse, full) in best.rows.items():
      paper = cost.PAPER_TABLE_A2[frames]
      lines.append(
        f"{frames:<8}{sparse:>11.1f} |{paper[0]:>7.1f}{full:>13.1f}"
        f" |{paper[1]:>7.1f}"
      )
  else:
    lines.append(
      f"None is within {TOLERANCE:.0%} of all six rows. The nearest is off by"
      f" {best.worst:.2%} in {best.worst_row};\n"
      "its constant part is a guess, as the paper breaks nothing down."
    )
  fitting, every, nearest = choices(sizes, 0.0)
  with_field, _, _ = choices(sizes, _field_in_portions(sizes))
  lines.append(
    "The agreement is weak evidence. With ten parts of a call counted or not,"
    f" {fitting} of {every}\nchoices agree without a constant (the nearest is off"
    f" by {nearest:.1%}), and {with_field} with that field.\nSo a constant is"
    " needed; which parts go with it the six rows do not tell."
  )
  return "\n".join(lines)
