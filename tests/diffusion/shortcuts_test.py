import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax.diffusion import shortcuts


def test_steps_lie_within_the_path():
  steps = shortcuts.draw(jax.random.key(0), 6000)
  time, step = np.asarray(steps.time), np.asarray(steps.step)
  lengths, counts = np.unique(step, return_counts=True)
  np.testing.assert_allclose(lengths, 2.0 ** np.arange(-5, 1))
  assert counts.min() > 850
  assert time.min() == 0 and (time + step).max() == 1
  np.testing.assert_allclose(time / step, np.round(time / step))


def test_two_half_steps_by_hand():
  """v = x + step; from x = 1 with a step of 1/2."""
  velocity = lambda x, time, step: x + step[:, None]
  steps = shortcuts.Steps(jnp.array([0.5]), jnp.array([0.5]))
  target = shortcuts.target(velocity, jnp.ones((1, 1)), steps)
  first = 1 + 0.25
  second = (1 + 0.25 * first) + 0.25
  np.testing.assert_allclose(target, [[(first + second) / 2]], rtol=1e-6)


def test_the_shortest_half_step_is_the_velocity_itself():
  asked = []

  def velocity(x, time, step):
    asked.append(np.asarray(step))
    return x

  steps = shortcuts.Steps(jnp.zeros(2), jnp.array([1 / 32, 1.0]))
  shortcuts.target(velocity, jnp.ones((2, 1)), steps)
  for step in asked:
    np.testing.assert_allclose(step, [0.0, 0.5])


def test_exact_shortcuts_are_consistent():
  """Of dx/dt = x the exact shortcut is x (e^d - 1) / d."""
  velocity = lambda x, time, step: x * ((jnp.exp(step) - 1) / step)[:, None]
  steps = shortcuts.Steps(jnp.array([0.0, 0.5]), jnp.array([1.0, 0.25]))
  x = jnp.array([[1.0], [2.0]])
  np.testing.assert_allclose(
    shortcuts.target(velocity, x, steps),
    velocity(x, steps.time, steps.step),
    rtol=1e-5,
  )
