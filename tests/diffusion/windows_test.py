import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.diffusion import windows


@pytest.mark.parametrize(
  "size, overlap, frames, starts",
  [
    (4, 2, 10, [0, 2, 4, 6]),
    (4, 2, 9, [0, 2, 4, 5]),
    (4, 0, 8, [0, 4]),
    (4, 3, 6, [0, 1, 2]),
    (4, 2, 4, [0]),
    (4, 2, 3, [0]),
    (4, 2, 5, [0, 1]),
  ],
)
def test_starts_by_hand(size, overlap, frames, starts):
  assert windows.Windows(size, overlap).starts(frames) == starts


@pytest.mark.parametrize("size, overlap", [(2, 0), (4, 1), (5, 4), (8, 4)])
def test_windows_cover_the_clip_and_overlap_enough(size, overlap):
  for frames in range(1, 40):
    starts = windows.Windows(size, overlap).starts(frames)
    ends = [min(start + size, frames) for start in starts]
    assert starts[0] == 0 and ends[-1] == frames
    for end, start in zip(ends, starts[1:]):
      assert end - start >= overlap


def of_frames(x, time, context):
  """Each frame by itself."""
  return x * time[:, None, None] + context


def test_average_of_equal_answers_is_the_answer():
  x, context = jax.random.normal(jax.random.key(0), (2, 2, 9, 3))
  time = jnp.array([0.25, 0.5])
  cut = windows.averaged(of_frames, context, windows.Windows(4, 2), lambda y: 1)
  expected = of_frames(x, time, context)
  np.testing.assert_allclose(cut(x, time), expected, rtol=1e-5, atol=1e-6)


def test_weights_fall_towards_the_ends_by_hand():
  """Two windows of three frames, [0, 1, 2] and [1, 2, 3]; weights 1, 2, 1."""
  first = lambda x, time, context: (
    0 * x + context[:, :1]
  )  # First frame's number.
  number = jnp.arange(4.0)[None, :, None]
  cut = windows.averaged(
    first, number, windows.Windows(3, 2, "averaged"), lambda y: 1
  )
  answer = cut(jnp.zeros((1, 4, 1)), jnp.zeros(1))
  # Frame 1: weight 2 of window 0, 1 of window 1; frame 2 the reverse.
  np.testing.assert_allclose(answer[0, :, 0], [0, 1 / 3, 2 / 3, 1], rtol=1e-6)


def test_times_of_frames_are_cut_too():
  x = jnp.ones((1, 5, 1))
  time = jnp.arange(5.0)[None]
  velocity = lambda x, time, context: x * time[..., None]
  cut = windows.averaged(velocity, None, windows.Windows(2, 1), lambda y: 1)
  np.testing.assert_allclose(cut(x, time)[0, :, 0], np.arange(5.0), rtol=1e-6)


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((1, 0), "window=1"),
    ((4, 4), "overlap=4"),
    ((4, -1), "overlap=-1"),
    ((4, 2, "both"), "windows='both'"),
    ((4, 2, "sequential", 3), "blend=3"),
    ((4, 2, "sequential", -1), "blend=-1"),
  ],
)
def test_bad_windows_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    windows.Windows(*arguments)


def test_weights_of_a_blend_by_hand():
  made = windows.Windows(8, 4, blend=3)
  half = 0.5**0.5
  expected = [(1 - half) / 2, 0.5, (1 + half) / 2]
  np.testing.assert_allclose(made.new_weights, expected, rtol=1e-6)
  assert windows.Windows(8, 4).new_weights.shape == (0,)


def test_defaults_of_windows():
  assert windows.make(16) == windows.Windows(16, 8, blend=8)
  assert windows.make(16, 4, 4) == windows.Windows(16, 4, blend=4)
  assert windows.make(16, kind="averaged") == windows.Windows(16, 8, "averaged")
