"""The DiT's training task at micro size."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax import errors
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.tasks import presets
from tests.integration import micro

CLIPS, FRAMES = 8, 4


def config(**frame_times):
  result = micro.get_config()
  result.dit_training.context_field_weight = 0.0
  result.dit_training.temporal_dropout = 0.0
  result.dit_training.frame_times.update(frame_times)
  return result


def batch():
  rng = np.random.default_rng(0)
  sizes = micro.get_config().model
  shape = (CLIPS, FRAMES, sizes.vae.num_latents, sizes.vae.latent_channels)
  side = sizes.image_encoder.image_size
  return {
    "mean": rng.normal(size=shape).astype(np.float32),
    "log_variance": np.full(shape, -4.0, np.float32),
    "images": rng.integers(0, 255, (CLIPS, FRAMES, side, side, 3), np.uint8),
  }


@pytest.fixture(scope="module")
def losses():
  results = {}
  for name, shares in {
    "off": {},
    "nearly off": dict(known=1e-9),
    "known": dict(known=1.0),
  }.items():
    task = presets.dit(preset_lib.from_config(config(**shares)))
    params = task.init_params()
    draws = task.draw(batch(), jax.random.key(1))
    results[name] = jax.jit(task.loss)(params, batch(), draws)
  return results


def test_equal_times_of_frames_have_the_loss_of_one_time(losses):
  loss, metrics = losses["off"]
  other, _ = losses["nearly off"]
  np.testing.assert_allclose(other, loss, rtol=1e-6)
  weights = [m.weight for n, m in metrics.items() if n.startswith("flow_loss_")]
  assert sum(weights) == CLIPS


def test_known_frames_are_left_out_of_the_loss(losses):
  loss, metrics = losses["known"]
  assert np.isfinite(loss)
  weights = [m.weight for n, m in metrics.items() if n.startswith("flow_loss_")]
  # One or two of four frames are known.
  assert 2 * CLIPS <= sum(weights) <= 3 * CLIPS


class _Numbered:
  """Batches whose frames are numbered."""

  num_frames = 5

  def batch(self, step, rows=None):
    frames = np.arange(CLIPS * 5).reshape(CLIPS, 5)
    return {"images": frames if rows is None else frames[rows]}


def test_windows_are_consecutive_and_the_same_for_any_rows():
  options = config()
  options.dit_training.update(batch_size=CLIPS, num_frames=3)
  task = presets.dit(preset_lib.from_config(options), _Numbered())
  whole = [task.batch(step)["images"] for step in range(20)]
  for images in whole:
    assert images.shape == (CLIPS, 3)
    assert (np.diff(images, axis=1) == 1).all()
  starts = np.stack(whole)[..., 0] % 5
  assert set(starts.ravel()) == {0, 1, 2}
  assert (starts[0] != starts[1]).any()
  rows = np.array([6, 1])
  np.testing.assert_array_equal(task.batch(3, rows)["images"], whole[3][rows])


def test_more_frames_than_a_clip_has_are_refused():
  options = config()
  options.dit_training.num_frames = 6
  with pytest.raises(errors.UserError, match="5 frames"):
    presets.dit(preset_lib.from_config(options), _Numbered())


def _with_shapes(**changes):
  result = config()
  result.dit_training.update(
    dict(shape_weight=0.5, context_field_points=16) | changes
  )
  return result


def _samples():
  rng = np.random.default_rng(1)
  return rng.uniform(-0.5, 0.5, (CLIPS, FRAMES, 16, 4)).astype(np.float32)


@pytest.mark.parametrize(
  "shape_frames, taken", [(0, [0, 1, 2, 3]), (2, [0, 2])]
)
def test_at_the_end_of_the_path_the_shape_error_is_the_autoencoders(
  shape_frames, taken
):
  options = _with_shapes(shape_frames=shape_frames)
  task = presets.dit(preset_lib.from_config(options))
  params = task.init_params()
  clips = batch() | {"samples": _samples()}
  draws = task.draw(clips, jax.random.key(1))
  # The estimate of the latents is then the latents, whatever the DiT says.
  draws |= {"time": np.ones(CLIPS, np.float32)}
  draws["keep"] = np.arange(CLIPS)[:, None, None, None] != 3
  _, metrics = jax.jit(task.loss)(params, clips, draws)
  vae = nnx.merge(task.graphdef, params).vae
  latents = clips["mean"] + np.exp(-2.0) * draws["latent_noise"]
  field = vae.query_field(vae.decode(latents), clips["samples"][..., :3])
  target = np.clip(clips["samples"][..., 3] / 0.3, -1, 1)
  error = np.abs(field - target)[:, taken].mean((1, 2))
  # A clip without its picture is left out.
  np.testing.assert_allclose(
    metrics["shape_error"], np.delete(error, 3).mean(), rtol=1e-5
  )


def test_the_autoencoder_of_the_shape_loss_is_not_trained():
  task = presets.dit(preset_lib.from_config(_with_shapes()))
  trained = nnx.to_flat_state(task.trained(task.init_params()))
  parts = {path[0] for path, _ in trained}
  assert parts == {"dit", "image_encoder"}


def test_the_noise_of_a_clip_has_its_temperature():
  task = presets.dit(preset_lib.from_config(_with_shapes(min_temperature=0.2)))
  shape = (400, FRAMES, 32, 16)
  clips = {"mean": np.zeros(shape, np.float32)}
  noise = task.draw(clips, jax.random.key(0))["noise"]
  deviations = np.asarray(noise).std((1, 2, 3))
  # Uniform in [0.2, 1]: mean 0.6; samples of 2,048 numbers scatter by 1.6 %.
  assert 0.18 < deviations.min() < 0.23
  assert 0.97 < deviations.max() < 1.06
  assert abs(deviations.mean() - 0.6) < 0.04


def test_the_highest_temperature():
  options = _with_shapes(min_temperature=0.1, max_temperature=0.3)
  task = presets.dit(preset_lib.from_config(options))
  clips = {"mean": np.zeros((400, FRAMES, 32, 16), np.float32)}
  noise = task.draw(clips, jax.random.key(0))["noise"]
  deviations = np.asarray(noise).std((1, 2, 3))
  assert 0.09 < deviations.min() < deviations.max() < 0.32
  assert abs(deviations.mean() - 0.2) < 0.02


def test_own_estimates_are_mended():
  task = presets.dit(preset_lib.from_config(_with_shapes(own_estimates=1.0)))
  params, clips = task.init_params(), batch() | {"samples": _samples()}
  draws = task.draw(clips, jax.random.key(1))
  assert draws["mends"].all()
  draws |= {"time": np.full(CLIPS, 0.25, np.float32)}
  _, metrics = jax.jit(task.loss)(params, clips, draws)
  # The sampler's first step, written out, and the error of the data after the
  # next one.
  model = nnx.merge(task.graphdef, params)
  context = model.image_encoder(clips["images"] / np.float32(127.5) - 1.0)
  call = lambda x, time: (
    model.dit(
      x,
      jnp.full(CLIPS, time),
      context * draws["keep"],
      temporal_weight=draws.get("temporal_weight"),
    ).velocity
  )
  noise = draws["noise"]
  state = noise + 0.25 * call(noise, 0.0)
  estimate = state + 0.75 * call(state, 0.25)
  data = clips["mean"] + np.exp(-2.0) * draws["latent_noise"]
  expected = np.square(estimate - task.scale * data).mean()
  np.testing.assert_allclose(metrics["flow_loss"], expected, rtol=1e-4)


def test_without_own_estimates_nothing_else_is_drawn():
  draw = lambda **changes: presets.dit(
    preset_lib.from_config(_with_shapes(**changes))
  ).draw(batch(), jax.random.key(3))
  some, none = draw(own_estimates=0.5), draw()
  assert "mends" not in none
  for name, value in none.items():
    np.testing.assert_array_equal(value, some[name])


@pytest.mark.parametrize(
  "changes",
  [
    dict(min_temperature=0.5, max_temperature=0.4),
    dict(own_estimates=1.5),
    dict(shape_quantile=1.0),
    dict(shape_frames=-1),
    dict(min_temperature=1.5),
  ],
)
def test_impossible_options_are_refused(changes):
  with pytest.raises(errors.UserError, match="must lie"):
    preset_lib.from_config(_with_shapes(**changes))
