r"""The small model on records of animated assets, from the shipped weights.

  python -m launch.prepare_data --assets=my_assets --output=data/mine \
    --preset=tiny
  python -m launch.train --config=configs/tiny_records.py \
    --config.records.folders=data/mine --workdir=runs/mine

Several data sets: --config.records.folders=data/mine,data/made. Objects are
turned so that the camera stands in front of them, as the shipped model knows
them; views from steeply above or below are left out.

Where there is an hour and not a day, keep the shipped autoencoder, with
--stages=data,dit; see "An hour on records" in docs/training.md.

Hardware: two CPU cores. An hour makes some thousand steps.
"""

import ml_collections

from sculpt4d_jax.configs import tiny


def get_config() -> ml_collections.ConfigDict:
  """Fine-tuning of the shipped small model."""
  config = tiny.get_config()
  config.name = "tiny_records"
  config.records.update(
    dict(
      num_parts=1,
      turn_to_camera=True,
      max_elevation=0.6,
      num_threads=1,
    )
  )
  config.vae_training.init_from = "weights/tiny"
  config.vae_training.optimizer.update(
    dict(
      learning_rate=5e-4,
      num_steps=800,
      warmup_steps=50,
    )
  )
  config.dit_training.init_from = "weights/tiny"
  config.dit_training.latent_choices = 1  # There are some for every view.
  config.dit_training.optimizer.update(
    dict(
      learning_rate=2e-4,
      num_steps=6000,
      warmup_steps=100,
    )
  )
  return config
