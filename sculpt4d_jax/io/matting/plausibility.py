"""Signs that a cut-out is wrong, with their effect on its confidence.

A mask that covers most of the frame, touches the border on all sides or
flickers usually indicates a failed cut-out. The clip is still processed, with a
warning, because it might be a close-up.
"""

import dataclasses

import numpy as np

_SOLID = 128
_MOST = 0.45  # Share of the frame.
_TOUCHED = 0.25  # Share of a side's length.
_JUMP = 0.35  # Share of the usual area, between frames.
_MOSTLY_SOFT = 0.5  # Share of the pixels that are not transparent.


@dataclasses.dataclass(frozen=True)
class Finding:
  """One doubt.

  Attributes:
    text: A sentence.
    factor: Factor that the confidence is multiplied by.
  """

  text: str
  factor: float


def examine(alpha: np.ndarray) -> list[Finding]:
  """Doubts about a mask, uint8 [F, height, width]."""
  solid = alpha >= _SOLID
  covered = solid.mean(axis=(1, 2))
  shown = covered[covered > 0]
  findings = []
  soft = (alpha > 25) & (alpha < 200)
  if soft.sum() > _MOSTLY_SOFT * (alpha > 25).sum():
    findings.append(Finding("Most of the cut-out is half transparent.", 0.5))
  if not shown.size:
    return findings
  if np.median(shown) > _MOST:
    findings.append(
      Finding(
        f"The cut-out covers {np.median(shown):.0%} of the frame: the"
        " background may be part of it.",
        0.3,
      )
    )
  touched = [
    side.mean(axis=-1)[covered > 0].mean() > _TOUCHED
    for side in (solid[:, 0], solid[:, -1], solid[:, :, 0], solid[:, :, -1])
  ]
  if all(touched):
    findings.append(
      Finding("The cut-out touches the border of the frame all round.", 0.3)
    )
  if len(shown) > 2:
    jumps = np.abs(np.diff(shown)) / np.median(shown)
    if np.median(jumps) > _JUMP:
      findings.append(
        Finding(
          "The cut-out flickers: its area changes by"
          f" {np.median(jumps):.0%} from frame to frame.",
          0.5,
        )
      )
  return findings
