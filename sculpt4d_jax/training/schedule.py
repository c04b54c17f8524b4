"""Steps at which a run logs, evaluates, saves and profiles; its time limit."""

import dataclasses
from typing import Any

from sculpt4d_jax.errors import UserError

# Metrics for which higher is better; for all others lower is better.
_HIGHER = ("iou", "f_score", "sample_iou")
# Kinds of evaluation: the loss of held-out clips, and sampled clips.
_KINDS = ("eval", "sample")


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Numbers of steps between the things that a run does besides training.

  Attributes:
    log_every: Number of steps between lines of training metrics.
    eval_every: Number of steps between evaluations of the held-out loss.
    save_every: Number of steps between checkpoints.
    keep_checkpoints: Number of newest checkpoints that are kept.
    keep_best: Number of best checkpoints that are also kept, by `best_metric`.
    best_metric: Logged name of a metric of an evaluation or of sampled clips,
      such as "eval/flow_loss" or "sample/chamfer".
    export: "last" exports the weights of the last step, "best" those of the
      best checkpoint, which needs `keep_best` of at least 1.
    profile: First step and number of steps to trace; () for none.
    hang_seconds: Time after which a step counts as hanging and the run ends, to
      be restarted by its launcher (`watchdog`); 0 waits forever.
  """

  log_every: int = 20
  eval_every: int = 1000
  save_every: int = 500
  keep_checkpoints: int = 2
  keep_best: int = 0
  best_metric: str = "eval/flow_loss"
  export: str = "last"
  profile: tuple[int, ...] = ()
  hang_seconds: float = 1800.0

  def __post_init__(self):
    object.__setattr__(self, "profile", tuple(self.profile))
    for name in ("log_every", "eval_every", "save_every", "keep_checkpoints"):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
    if self.hang_seconds < 0:
      raise UserError(
        f"hang_seconds={self.hang_seconds} must be 0, which is off, or more."
      )
    if self.keep_best < 0:
      raise UserError(f"keep_best={self.keep_best} must not be negative.")
    if kind(self.best_metric) not in _KINDS:
      raise UserError(
        f"best_metric={self.best_metric!r} must be a name that is logged, with"
        f" {'/ or '.join(_KINDS)}/ before it."
      )
    if self.export not in ("last", "best"):
      raise UserError(f"export={self.export!r}: choose 'last' or 'best'.")
    if self.export == "best" and not self.keep_best:
      raise UserError("export='best' needs keep_best of at least 1.")
    if self.profile and (
      len(self.profile) != 2 or self.profile[0] < 0 or self.profile[1] < 1
    ):
      raise UserError(
        f"profile={self.profile} must be a first step and a number of steps,"
        " as (100, 5), or () for none."
      )

  @property
  def best_is_highest(self) -> bool:
    """Whether a higher value of `best_metric` is better."""
    return self.best_metric.split("/")[-1] in _HIGHER

  def traces(self, step: int) -> bool:
    """Whether this step, counted from 0, is traced."""
    if not self.profile:
      return False
    first, count = self.profile
    return first <= step < first + count


def kind(metric: str) -> str:
  """The kind of evaluation of a metric: the first part of its name."""
  return metric.split("/")[0]


FIELDS = tuple(field.name for field in dataclasses.fields(Schedule))


def take(options: dict[str, Any]) -> Schedule:
  """Takes the schedule's fields out of a stage's options."""
  return Schedule(**{name: options.pop(name) for name in FIELDS})
