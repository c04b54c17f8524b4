"""Trains the head that predicts how pictures were taken.

The image encoder stays unchanged: tokens are computed once, then the small
networks of the head are trained in a minute. A mirrored picture has the same
view with its centre mirrored. See `models/view_head.py`.
"""

from collections.abc import Iterator
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sculpt4d_jax import array_types
from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import store as record_store
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import outlines
from sculpt4d_jax.models import view_head

Array = array_types.Array
Float = array_types.Float

# Parameters that are measured on the clips instead of trained.
_MEASURED = ("token_mean", "token_scale", "view_mean", "view_scale")
_MIRRORED = np.array([1, -1, 1, 1], np.float32)


@dataclasses.dataclass(frozen=True)
class ViewTrainingConfig:
  """Settings of the training.

  Attributes:
    num_steps: Number of optimizer steps.
    batch_size: Clips in a step.
    learning_rate: Largest learning rate; it falls to 0 along a cosine.
    weight_decay: Decay of AdamW.
    dropout: Share of features that are dropped.
    noise: Standard deviation of noise on normalised tokens.
    frames: Frames of a clip whose tokens are averaged.
    seed: Seed of parameters and batches.
  """

  num_steps: int = 3000
  batch_size: int = 128
  learning_rate: float = 2e-3
  weight_decay: float = 0.05
  dropout: float = 0.3
  noise: float = 0.1
  frames: tuple[int, ...] = (1, 6, 10, 14)
  seed: int = 0


def views(
  store: record_store.RecordStore, sizes: clip_records.RecordSizes
) -> Iterator[np.ndarray]:
  """True answers for the clips of a store, each [4]."""
  for index in range(store.num_clips):
    clip = sizes.make_clip(store.first_seed + index, store.num_frames)
    yield outlines.as_numbers(clip_records.make_view(clip, sizes))


def tokens(
  model: model_lib.Sculpt4D,
  store: record_store.RecordStore,
  frames: tuple[int, ...],
) -> Iterator[np.ndarray]:
  """Mean tokens of every clip and of its mirror image, each [2, I, W]."""
  for images in store.images:
    shown = np.asarray(images[list(frames)])
    both = np.concatenate([shown, shown[..., ::-1, :]])
    context = np.asarray(model.encode(both), np.float32)
    yield context.reshape(2, len(frames), *context.shape[1:]).mean(1)


def train(
  tokens: Float[np.ndarray, "clips 2 I W"],
  views: Float[np.ndarray, "clips 4"],
  config: ViewTrainingConfig,
) -> view_head.ViewHead:
  """Trains a head.

  Args:
    tokens: Mean tokens of clips and of their mirror images.
    views: Elevation, centre and log extent of the clips.
    config: Settings.
  """
  targets = np.stack([views, views * _MIRRORED], 1).reshape(-1, views.shape[1])
  rows = tokens.reshape(-1, *tokens.shape[2:])
  head = view_head.ViewHead(
    view_head.ViewHeadConfig(*rows.shape[1:]), rngs=nnx.Rngs(config.seed)
  )
  head.token_mean[...] = jnp.asarray(rows.mean((0, 1)))
  head.token_scale[...] = jnp.asarray(rows.std((0, 1)) + 1e-3)
  head.view_mean[...] = jnp.asarray(targets.mean(0))
  head.view_scale[...] = jnp.asarray(targets.std(0) + 1e-6)
  graphdef, params = nnx.split(head)
  trained = {
    name: leaf[...] for name, leaf in params.items() if name not in _MEASURED
  }
  optimizer = optax.adamw(
    optax.cosine_decay_schedule(config.learning_rate, config.num_steps),
    weight_decay=config.weight_decay,
  )
  rows, targets = jnp.asarray(rows), jnp.asarray(targets)
  normalised = (targets - head.view_mean[...]) / head.view_scale[...]
  members = head.config.num_members
  num_features = head.config.num_tokens * head.config.token_features

  @jax.jit
  def step(
    trained: dict[str, Array], state: optax.OptState, key: Array
  ) -> tuple[dict[str, Array], optax.OptState]:
    row_key, noise_key, drop_key = jax.random.split(key, 3)
    chosen = jax.random.randint(row_key, (config.batch_size,), 0, len(rows))
    noise = jax.random.normal(noise_key, rows[chosen].shape)
    shown = rows[chosen] + config.noise * noise * head.token_scale[...]
    keeps = 1 - config.dropout
    shape = (members, config.batch_size, num_features)
    kept = jax.random.bernoulli(drop_key, keeps, shape) / keeps

    def loss(trained: dict[str, Array]) -> Array:
      model = nnx.merge(graphdef, _joined(params, trained))
      answers = model.members(shown, kept)
      return optax.huber_loss(answers, normalised[chosen][None]).mean()

    gradient = jax.grad(loss)(trained)
    updates, state = optimizer.update(gradient, state, trained)
    return optax.apply_updates(trained, updates), state

  state = optimizer.init(trained)
  key = jax.random.key(config.seed)
  for number in range(config.num_steps):
    trained, state = step(trained, state, jax.random.fold_in(key, number))
  return nnx.merge(graphdef, _joined(params, trained))


def _joined(params: nnx.State, trained: dict[str, Array]) -> nnx.State:
  """The state with these trained parameters."""
  result = nnx.State(dict(params.items()))
  for name, value in trained.items():
    result[name] = params[name].replace(value)
  return result


def errors(
  head: view_head.ViewHead,
  tokens: Float[np.ndarray, "clips I W"],
  views: Float[np.ndarray, "clips 4"],
) -> np.ndarray:
  """Root mean square errors of the four numbers [4]."""
  answers = np.asarray(head(jnp.asarray(tokens)[:, None]))
  return np.sqrt(((answers - views) ** 2).mean(0))
