"""Solvers of ordinary differential equations, written as tables.

A solver with a fixed schedule is a list of calls of the velocity and, after
each call, one linear update. With x the state, y the point where the velocity
is evaluated, v its value and m the value of the previous call:

    v = velocity(y, time)
    x, y = x + state . (v, m), x + point . (v, m)
    m = v

`samplers.integrate` runs any such table in one loop, so that a network is
compiled once, however many calls a step of the solver has.
"""

from collections.abc import Callable
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Calls:
  """Calls of a velocity; NumPy arrays, known before anything is compiled.

  Attributes:
    times: Time of each call, float32 [calls].
    state: Weights of (v, m) in the new state, float32 [calls, 2].
    point: Weights of (v, m) in the next point, float32 [calls, 2].
  """

  times: np.ndarray
  state: np.ndarray
  point: np.ndarray

  @property
  def uses_memory(self) -> bool:
    """Whether the velocity of the previous call is used."""
    return bool(self.state[:, 1].any() or self.point[:, 1].any())

  @property
  def asks_elsewhere(self) -> bool:
    """Whether the velocity is evaluated at points other than the state."""
    return not np.array_equal(self.state, self.point)

  def __len__(self) -> int:
    return len(self.times)


# Increasing times [intervals + 1] -> calls.
Solver = Callable[[np.ndarray], Calls]


def at_the_state(times: np.ndarray, weights: np.ndarray) -> Calls:
  """The calls of a solver that evaluates at its state, once an interval.

  Args:
    times: Increasing times, [intervals + 1].
    weights: Weights of (v, m), [intervals, 2].
  """
  weights = np.asarray(weights, np.float32)
  return Calls(np.asarray(times[:-1], np.float32), weights, weights)
