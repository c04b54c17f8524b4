import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.diffusion import guidance
from sculpt4d_jax.diffusion import samplers

X = jnp.array([[1.0, 2.0], [3.0, 4.0]])
TIME = jnp.array([0.25, 0.5])


def with_context(x, time):
  return x * time[:, None] + jnp.array([[1.0], [2.0]])


def without_context(x, time):
  return x * time[:, None]


PAIR = guidance.pair_in_turns(with_context, without_context)


def test_scale_extrapolates_from_the_unconditional_velocity():
  conditional, unconditional = jnp.array([3.0]), jnp.array([1.0])
  for scale, expected in ((0.0, 1.0), (1.0, 3.0), (5.0, 11.0)):
    combined = guidance.combine(conditional, unconditional, scale)
    np.testing.assert_allclose(combined, [expected])


def test_one_batch_equals_one_after_the_other():
  def both(x, time):
    contexts = jnp.array([1.0, 2.0, 0.0, 0.0])[:, None]
    return x * time[:, None] + contexts

  np.testing.assert_allclose(
    guidance.guided(guidance.pair_in_one_batch(both), 5.0)(X, TIME),
    guidance.guided(PAIR, 5.0)(X, TIME),
  )


def recorded(calls, **settings):
  """The branches that are evaluated at each call, and the result."""
  log = []

  def branch(name, function):
    def run(x, time):
      note = lambda t: log.append((name, round(float(t), 3)))
      jax.debug.callback(note, time[0], ordered=True)
      return function(x, time)

    return run

  conditional = branch("c", with_context)
  pair = guidance.pair_in_turns(conditional, branch("u", without_context))
  velocity = guidance.scheduled(pair, conditional, 3.0, **settings)
  result = jax.jit(lambda x: samplers.integrate(velocity, x, calls))(X)
  jax.effects_barrier()
  return log, result


def test_interval_by_hand():
  calls = samplers.calls_of("euler", np.linspace(0, 1, 5))
  log, result = recorded(calls, interval=(0.25, 0.75))
  assert log == [
    ("c", 0.0),
    ("c", 0.25),
    ("u", 0.25),
    ("c", 0.5),
    ("u", 0.5),
    ("c", 0.75),
  ]
  x = np.array(X)
  context = np.array([[1.0], [2.0]])
  for time, scale in ((0.0, 1), (0.25, 3), (0.5, 3), (0.75, 1)):
    x = x + 0.25 * (x * time + scale * context)
  np.testing.assert_allclose(result, x, rtol=1e-6)


def test_differences_are_kept_for_a_few_calls():
  calls = samplers.calls_of("euler", np.linspace(0, 1, 7))
  log, result = recorded(calls, keep_difference=2)
  assert [name for name, _ in log] == list("cuccuccuc")
  # The difference does not depend on time or state here: nothing is lost.
  whole = samplers.integrate(guidance.guided(PAIR, 3.0), X, calls)
  np.testing.assert_allclose(result, whole, rtol=1e-6)


@pytest.mark.parametrize("solver", samplers.SAMPLERS)
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.8), (0.3, 0.31)])
@pytest.mark.parametrize("keep", [1, 3])
def test_evaluations_are_counted(solver, interval, keep):
  calls = samplers.calls_of(solver, samplers.euler_times(6))
  log, _ = recorded(calls, interval=interval, keep_difference=keep)
  count = guidance.num_evaluations(calls.times, 3.0, interval, keep)
  assert len(log) == count
  assert guidance.num_evaluations(calls.times, 1.0) == len(calls)


def test_each_form_is_compiled_once():
  """An interval has calls without guidance on both sides."""
  traced = []

  def conditional(x, time):
    traced.append("c")
    return with_context(x, time)

  def pair(x, time):
    traced.append("pair")
    return with_context(x, time), without_context(x, time)

  velocity = guidance.scheduled(pair, conditional, 2.0, interval=(0.2, 0.8))
  calls = samplers.calls_of("ab2", samplers.euler_times(9))
  jaxpr = jax.make_jaxpr(lambda x: samplers.integrate(velocity, x, calls))(X)
  assert sorted(set(traced)) == ["c", "pair"]
  assert str(jaxpr).count("cond[") == 1


def test_wrappers_reach_every_form():
  velocity = guidance.scheduled(PAIR, with_context, 2.0, interval=(0.2, 0.8))
  one = lambda function: lambda x, time: 0 * function(x, time) + 1
  calls = samplers.calls_of("euler", samplers.euler_times(9))
  for each in (velocity, with_context):
    x = samplers.integrate(guidance.wrap(each, one), X, calls)
    np.testing.assert_allclose(x, X + 1, rtol=1e-6)


def test_bad_settings_are_refused():
  for interval in ((0.5, 0.5), (-0.1, 1.0), (0.8, 0.2), (0.1,)):
    with pytest.raises(ValueError, match="guidance_interval"):
      guidance.check(interval, 1)
  with pytest.raises(ValueError, match="keep_difference=0"):
    guidance.check((0.0, 1.0), 0)
