import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.diffusion import guidance
from sculpt4d_jax.diffusion import known_frames
from sculpt4d_jax.diffusion import samplers

SHAPE = (2, 3, 4)
IS_KNOWN = np.array([[True, False, False], [False, False, True]])
NOISE, DATA = jax.random.normal(jax.random.key(0), (2, *SHAPE))
KNOWN = known_frames.KnownFrames(IS_KNOWN, DATA)
MODES = {
  "path": known_frames.on_path(KNOWN, NOISE),
  "clean": known_frames.clean(KNOWN),
}


def mean_velocity(x, time):
  """Frames see each other: each moves towards the mean of all."""
  return x.mean(1, keepdims=True) - x


@pytest.mark.parametrize("solver", samplers.SAMPLERS)
@pytest.mark.parametrize("mode", MODES)
def test_known_frames_come_back_and_others_see_them(mode, solver):
  calls = samplers.calls_of(solver, samplers.euler_times(5))
  velocity = MODES[mode](mean_velocity)
  x = KNOWN.put(samplers.integrate(velocity, NOISE, calls))
  np.testing.assert_array_equal(x[IS_KNOWN], DATA[IS_KNOWN])
  alone = samplers.integrate(mean_velocity, NOISE, calls)
  assert (np.abs(x - alone)[~IS_KNOWN] > 1e-3).mean() > 0.9


def test_on_path_the_network_sees_known_frames_at_its_noise():
  seen = []

  def velocity(x, time):
    seen.append((x, time))
    return 0 * x

  time = jnp.array([0.25, 0.5])
  answer = MODES["path"](velocity)(jnp.full(SHAPE, 9.0), time)
  x, asked = seen[0]
  np.testing.assert_array_equal(asked, time)
  expected = 0.25 * DATA[0, 0] + 0.75 * NOISE[0, 0]
  np.testing.assert_allclose(x[0, 0], expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(x[0, 1], 9.0)
  direction = (DATA - NOISE)[IS_KNOWN]
  np.testing.assert_allclose(answer[IS_KNOWN], direction, rtol=1e-6)


def test_clean_frames_have_time_one():
  seen = []

  def velocity(x, time):
    seen.append((x, time))
    return x

  answer = MODES["clean"](velocity)(NOISE, jnp.array([0.25, 0.5]))
  x, time = seen[0]
  np.testing.assert_array_equal(time, [[1, 0.25, 0.25], [0.5, 0.5, 1]])
  np.testing.assert_array_equal(x[IS_KNOWN], DATA[IS_KNOWN])
  np.testing.assert_array_equal(answer[IS_KNOWN], 0)


def test_frames_that_are_not_known_have_no_data():
  other = known_frames.KnownFrames(
    IS_KNOWN, jnp.where(IS_KNOWN[..., None], DATA, 7.0)
  )
  calls = samplers.calls_of("ab2", samplers.euler_times(4))
  results = [
    samplers.integrate(wrapper(mean_velocity), NOISE, calls)
    for wrapper in (MODES["path"], known_frames.on_path(other, NOISE))
  ]
  np.testing.assert_array_equal(results[0][~IS_KNOWN], results[1][~IS_KNOWN])


def test_guided_velocities_are_wrapped_too():
  pair = guidance.pair_in_turns(mean_velocity, lambda x, t: -x)
  velocity = guidance.scheduled(
    pair, mean_velocity, 2.0, interval=(0.2, 0.8), keep_difference=2
  )
  calls = samplers.calls_of("ab2", samplers.euler_times(7))
  wrapped = guidance.wrap(velocity, MODES["clean"])
  x = KNOWN.put(samplers.integrate(wrapped, NOISE, calls))
  np.testing.assert_array_equal(x[IS_KNOWN], DATA[IS_KNOWN])


SHARE = np.array([[0, 0.25, 0], [0.5, 0, 0]], np.float32)
PARTLY = known_frames.KnownFrames(np.zeros((2, 3), bool), DATA, SHARE)


@pytest.mark.parametrize("solver", samplers.SAMPLERS)
def test_blended_frames_end_between_data_and_sample_by_hand(solver):
  """Alone, each frame moves by 2: with share s it ends between both ends."""
  calls = samplers.calls_of(solver, samplers.euler_times(5))
  velocity = known_frames.blended(PARTLY, NOISE)(lambda x, time: 0 * x + 2.0)
  x = samplers.integrate(velocity, NOISE, calls)
  share = SHARE[..., None]
  expected = share * DATA + (1 - share) * (NOISE + 2)
  np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)


def test_frames_see_the_blend_of_their_neighbours():
  """Frame 0 moves towards a mean that frame 1's data are a part of."""
  moved = known_frames.KnownFrames(PARTLY.is_known, DATA + 1, SHARE)
  calls = samplers.calls_of("ab2", samplers.euler_times(5))
  results = [
    samplers.integrate(
      known_frames.blended(known, NOISE)(mean_velocity), NOISE, calls
    )
    for known in (PARTLY, moved)
  ]
  assert (np.abs(results[1] - results[0])[0, 0] > 1e-3).all()


def test_without_a_share_nothing_is_blended():
  none = known_frames.KnownFrames(PARTLY.is_known, DATA, 0 * SHARE)
  answer = known_frames.blended(none, NOISE)(mean_velocity)(NOISE, jnp.zeros(2))
  np.testing.assert_array_equal(answer, mean_velocity(NOISE, 0))
