"""Heun's method: second order, two calls an interval and one in the last.

Source: Karras et al., Elucidating the Design Space of Diffusion-Based
Generative Models, 2022, algorithm 1, which also ends with an Euler step.
"""

import numpy as np

from sculpt4d_jax.diffusion.solvers import calls as calls_lib


def solver(times: np.ndarray) -> calls_lib.Calls:
  """Takes an Euler step, then the mean of the velocities at both ends."""
  times = np.asarray(times, np.float32)
  call_times, state, point = [], [], []
  for start, end in zip(times[:-2], times[1:-1]):
    half = (end - start) / 2
    call_times += [start, end]
    state += [(0, 0), (half, half)]
    point += [(end - start, 0), (half, half)]
  last = (times[-1] - times[-2], 0)
  arrays = [*call_times, times[-2]], [*state, last], [*point, last]
  return calls_lib.Calls(*(np.asarray(x, np.float32) for x in arrays))
