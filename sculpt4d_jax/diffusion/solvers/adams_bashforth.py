"""Two-step Adams-Bashforth method: second order, one call an interval.

The velocity is extrapolated linearly from this call and the previous one, with
any spacing of times. The first interval, without a previous call, is an Euler
step.

Source: Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I,
section III.5 (variable steps).
"""

import numpy as np

from sculpt4d_jax.diffusion.solvers import calls as calls_lib


def solver(times: np.ndarray) -> calls_lib.Calls:
  """Computes x + h (1 + r / 2) v - h r / 2 m; r is h over the last step."""
  times = np.asarray(times, np.float64)
  step = np.diff(times)
  half_ratio = np.zeros_like(step)
  half_ratio[1:] = step[1:] / step[:-1] / 2
  weights = np.stack([step * (1 + half_ratio), -step * half_ratio], -1)
  return calls_lib.at_the_state(times, weights)
