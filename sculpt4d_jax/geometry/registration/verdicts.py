"""Derives a frame's verdict, with the reason, from its checks."""

from sculpt4d_jax.geometry.registration import checks
from sculpt4d_jax.geometry.registration import result
from sculpt4d_jax.geometry.registration import settings as settings_lib

Verdict = result.Verdict
Limits = settings_lib.Limits


def report(
  frame: int, key: int, check: checks.Check, limits: Limits
) -> result.FrameReport:
  """The report of a frame."""
  verdict, reason = _judge(check, limits)
  return result.FrameReport(
    frame=frame,
    key=key,
    verdict=verdict,
    chamfer=check.chamfer,
    hausdorff99=check.hausdorff99,
    turned=check.turned,
    stretched=check.stretched,
    reason=reason,
  )


def _judge(check: checks.Check, limits: Limits) -> tuple[Verdict, str]:
  if check is checks.NOTHING:
    return Verdict.FAILED, "the frame has no surface"
  distance = f"1 % of the surface is {check.hausdorff99:.1%} of the box away"
  if check.hausdorff99 > limits.doubtful:
    return Verdict.FAILED, distance
  if check.hausdorff99 > limits.registered:
    return Verdict.DOUBTFUL, distance
  if check.far > limits.far:
    share = f"{check.far:.1%} of the surface"
    return Verdict.DOUBTFUL, f"{share} is more than {checks.FAR:.0%} away"
  if check.turned > limits.turned:
    return Verdict.DOUBTFUL, f"{check.turned:.1%} of the surface is turned"
  if check.stretched > limits.stretched:
    share = f"{check.stretched:.1%} of the surface"
    return Verdict.DOUBTFUL, f"{share} is stretched"
  return Verdict.REGISTERED, ""
