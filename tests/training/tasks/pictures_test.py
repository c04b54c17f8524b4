"""The lesson of the image encoder."""

import jax
import numpy as np
import optax

from sculpt4d_jax.models import image_encoder
from sculpt4d_jax.training.tasks import pictures


class _Discs:
  """Balls at random places: the picture says where the inside is."""

  num_frames, num_held_out = 1, 1

  def batch(self, step, rows=None):
    rng = np.random.default_rng(step)
    centre = rng.uniform(-0.5, 0.5, (8, 1, 3))
    axis = np.linspace(-1, 1, 8)
    x, y = np.meshgrid(axis, -axis)
    near = (x - centre[..., :1, None]) ** 2 + (y - centre[..., 1:2, None]) ** 2
    images = np.where(near[..., None] < 0.16, 40, 255).astype(np.uint8)
    # In the plane of the picture, around the ball.
    points = centre[..., None, :] + rng.uniform(-0.6, 0.6, (8, 1, 32, 3))
    points[..., 2] = centre[..., None, 2]
    distance = 0.4 - np.linalg.norm(points - centre[..., None, :], axis=-1)
    samples = np.concatenate([points, distance[..., None]], -1)
    return {
      "images": np.repeat(images, 3, -1),
      "samples": samples.astype(np.float32),
    }

  def held_out(self, clip):
    return self.batch(10_000 + clip)


def _task():
  config = image_encoder.ImageEncoderConfig(
    image_size=8,
    patch_size=4,
    stem_patch_size=2,
    width=16,
    num_layers=1,
    num_heads=2,
  )
  options = pictures.PictureTaskConfig(
    batch_size=8, num_frames=1, num_queries=32, num_head_layers=1
  )
  return pictures.PictureTask(options, config, _Discs())


def test_the_field_is_learnt_off_pictures():
  task = _task()
  params = task.init_params()
  before = task.evaluate(params)
  tx = optax.adam(5e-3)

  @jax.jit
  def step(params, state, batch):
    grads, metrics = jax.grad(task.loss, has_aux=True)(
      params, batch, jax.random.key(0)
    )
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state, metrics

  state = tx.init(params)
  for number in range(400):
    params, state, _ = step(params, state, task.batch(number))
  after = task.evaluate(params)
  assert after["field_error"] < 0.6 * before["field_error"]
  assert after["sample_iou"] > before["sample_iou"] + 0.2
