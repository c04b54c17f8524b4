r"""Measures what consistent sampling and shared noise do to latents in time.

  python -m launch.measure_consistency --data=data/mine --config=configs/tiny.py

The paper's two ablations: an autoencoder with fixed weights encodes every frame
of prepared clips, and the mean change of a latent from one frame to the next is
printed, over the latents' standard deviation, for

  consistent sampling or not   the same material points and queries in all
                               frames, or other ones in every frame
  shared noise or not          one noise for all frames of a clip, or one a
                               frame; "mean" takes none
"""

import functools

from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import numpy as np

from launch import program
from sculpt4d_jax.data import dataset_index
from sculpt4d_jax.data import record_examples
from sculpt4d_jax.geometry import farthest_points
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.io import model_files
from sculpt4d_jax.models import shape_vae

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/tiny.py", "Preset of the autoencoder."
)
_DATA = flags.DEFINE_string("data", None, "Folder of the data set.",
                            required=True)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of weights; the preset's by default."
)
_NUM_CLIPS = flags.DEFINE_integer("num_clips", 20, "Clips.", lower_bound=1)


def _load_vae(config):
  folder = model_lib.weights_folder(config.weights, _CHECKPOINT.value)
  vae_config = shape_vae.ShapeVAEConfig(**config.model.vae)
  make = lambda: shape_vae.ShapeVAE(vae_config, rngs=nnx.Rngs(0))
  graph, params = nnx.split(nnx.eval_shape(make))
  params, _ = model_files.load(folder / "vae.safetensors", params, vae_config)
  return nnx.merge(graph, params)


def _read_surfaces(index, frames):
  clips = sum(index.splits.values(), [])[: _NUM_CLIPS.value]
  whole = dataset_index.DatasetIndex(
      index.folder, index.settings, {"all": clips}
  )
  reader = record_examples.ExampleReader(
      whole, "all",
      record_examples.ExampleConfig(
          contents=("geometry",), num_frames=frames, num_parts=0,
          mirror=False, reverse_time=False,
      ),
  )
  for row in range(len(clips)):
    yield reader.read(row, np.random.default_rng(row))["surface"]


def _change(latents) -> float:
  """Mean step from frame to frame over the standard deviation of all."""
  return float(jnp.abs(jnp.diff(latents, axis=0)).mean() / latents.std())


def main(argv):
  del argv
  vae = _load_vae(_CONFIG.value)
  config = vae.config
  index = dataset_index.read_index(_DATA.value)
  num_uniform, num_sharp = (
      index.settings["num_uniform"], index.settings["num_sharp"]
  )
  select = functools.partial(
      farthest_points.select_rows,
      num_latents=config.num_latents, num_uniform=num_uniform,
      num_sharp=num_sharp, downsample_ratio=config.downsample_ratio,
  )
  encode = nnx.jit(lambda vae, surface, queries: vae.encode(surface, queries))
  results = {}
  frames = index.settings["num_frames"]
  for number, surface in enumerate(_read_surfaces(index, frames)):
    keys = jax.random.split(jax.random.key(number), frames)
    shared = jax.random.normal(
        keys[0], (1, config.num_latents, config.latent_channels)
    )
    own = jax.vmap(lambda key: jax.random.normal(key, shared.shape[1:]))(keys)
    for sampling in ("consistent", "independent"):
      chosen = []
      for frame in range(frames):
        first = sampling == "consistent"
        rows, queries = select(
            keys[0 if first else frame], surface[0 if first else frame]
        )
        chosen.append((surface[frame][rows], surface[frame][queries]))
      posterior = encode(
          vae, jnp.stack([c[0] for c in chosen]),
          jnp.stack([c[1] for c in chosen]),
      )
      for noise, latents in (
          ("mean", posterior.mean),
          ("shared noise", posterior.sample(shared)),
          ("independent noise", posterior.sample(own)),
      ):
        results.setdefault((sampling, noise), []).append(_change(latents))
  count = len(next(iter(results.values())))
  print(f"Change of a latent from frame to frame, {count} clips:")
  for (sampling, noise), changes in results.items():
    print(f"  {sampling:12} sampling, {noise:18} {np.mean(changes):.3f}"
          f" +- {np.std(changes) / max(count, 1) ** 0.5:.3f}")


if __name__ == "__main__":
  program.run(main)
