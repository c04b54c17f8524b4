import dataclasses

import pytest

from configs import sculpt4d
from configs import tiny
from sculpt4d_jax.inference import sampling


def config(**changes):
  return sampling.SamplingConfig(
    **(tiny.get_config().sampling.to_dict() | changes)
  )


def test_released_settings_are_fifty_steps_of_euler():
  for preset in (tiny, sculpt4d):
    fields = preset.get_config().sampling.to_dict()
    released = sampling.SamplingConfig(**fields)
    assert released == dataclasses.replace(
      released, **sampling.preset("quality")
    )
    assert released.guides_always
    assert released.num_evaluations == 98


def test_presets_by_their_calls():
  evaluations = {
    name: (len(config(**p).calls), config(**p).num_evaluations)
    for name, p in sampling.PRESETS.items()
  }
  # 9 of 15 evenly spaced calls lie within [0.2, 0.8).
  assert evaluations == {
    "draft": (8, 16),
    "fast": (15, 24),
    "quality": (49, 98),
  }
  with pytest.raises(ValueError, match="best"):
    sampling.preset("best")


def test_lists_are_taken_for_the_interval():
  assert hash(config(guidance_interval=[0, 0.5])) == hash(
    config(guidance_interval=(0.0, 0.5))
  )


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(solver="rk4"), "solver='rk4'"),
    (dict(noise="pink"), "noise='pink'"),
    (dict(temporal_mode="all"), "temporal_mode='all'"),
    (dict(guidance_interval=(0.5, 0.1)), "guidance_interval"),
    (dict(keep_difference=0), "keep_difference=0"),
    (dict(num_steps=1), "num_steps=1"),
    (dict(num_frames=0), "num_frames=0"),
    (dict(stream_layers="yes"), "stream_layers='yes' must be true or false"),
    (dict(skips_on_host=1), "skips_on_host=1 must be true or false"),
    (dict(memory="all"), "memory='all'"),
    (dict(temperature=-0.1), "temperature=-0.1"),
    (dict(temperature=float("nan")), "temperature=nan"),
  ],
)
def test_bad_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    config(**changes)
