import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.diffusion import frame_times

CLIPS, FRAMES = 4000, 6
CONFIG = frame_times.FrameTimesConfig(known=0.25, independent=0.25)


@pytest.fixture(scope="module")
def drawn():
  time = jnp.linspace(0.0, 0.8, CLIPS)
  drawn = frame_times.draw(jax.random.key(0), time, FRAMES, CONFIG)
  return np.asarray(time), *map(np.asarray, drawn)


def test_shares_of_the_clips(drawn):
  time, times, learned = drawn
  has_known = ~learned.all(1)
  is_equal = learned.all(1) & (times == time[:, None]).all(1)
  assert abs(has_known.mean() - 0.25) < 0.03
  assert abs(is_equal.mean() - 0.5) < 0.03


def test_known_frames_are_one_to_half_of_them_and_near_the_data(drawn):
  time, times, learned = drawn
  counts = (~learned).sum(1)
  assert set(counts[counts > 0]) == {1, 2, 3}
  assert times[~learned].min() >= 0.9 and times[~learned].max() <= 1.0
  # The frames to be learned of such a clip have its one time.
  rows = counts > 0
  expected = np.broadcast_to(time[rows, None], (rows.sum(), FRAMES))
  others = learned[rows]
  np.testing.assert_array_equal(times[rows][others], expected[others])


def test_half_of_them_are_the_first_frames(drawn):
  learned = drawn[2]
  known = ~learned[(~learned).any(1)]
  is_prefix = (np.diff(known.astype(int), axis=1) <= 0).all(1)
  # Besides the drawn half, of random subsets some are prefixes: 1 in 6, 15, 20.
  by_chance = np.mean([1 / 6, 1 / 15, 1 / 20])
  assert abs(is_prefix.mean() - (0.5 + 0.5 * by_chance)) < 0.06


def test_single_frames_have_nothing_known():
  time = jnp.full((100,), 0.5)
  config = frame_times.FrameTimesConfig(known=1.0)
  times, learned = frame_times.draw(jax.random.key(0), time, 1, config)
  assert np.asarray(learned).all()
  np.testing.assert_array_equal(times, 0.5)


def test_bad_shares_are_refused():
  for bad in (dict(known=-0.1), dict(known=0.6, independent=0.6)):
    with pytest.raises(ValueError, match="frame_times"):
      frame_times.FrameTimesConfig(**bad)
  with pytest.raises(ValueError, match="clean_from"):
    frame_times.FrameTimesConfig(clean_from=0.0)
  assert not frame_times.FrameTimesConfig().is_on
