"""Choice of an asset's animations, and their cut into windows."""

import numpy as np

from sculpt4d_jax.data.preparation import prepare


def window_times(
  start: float, end: float, settings: prepare.PreparationSettings
) -> list[np.ndarray]:
  """Times [F] of each window of an animation, seconds.

  An animation of about `window_seconds` or less is one window; a longer one is
  cut into equal windows.
  """
  count = max(1, round((end - start) / settings.window_seconds))
  edges = np.linspace(start, end, count + 1)[: settings.max_windows + 1]
  return [
    np.linspace(a, b, settings.num_frames) for a, b in zip(edges, edges[1:])
  ]


def choose_clips(
  num_clips: int, settings: prepare.PreparationSettings
) -> list[int]:
  """Indices of the animations that are taken of an asset."""
  if not settings.max_clips or num_clips <= settings.max_clips:
    return list(range(num_clips))
  chosen = np.linspace(0, num_clips - 1, settings.max_clips)
  return sorted(set(chosen.round().astype(int).tolist()))
