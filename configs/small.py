r"""A model trained for hours on two CPU cores, on clips and records.

  python -m launch.train --config=configs/small.py --workdir=runs/small \
    --config.records.folders=data/characters

Differences to `tiny`: 16 frames; pictures of 96 pixels, whose patches are embedded in
two levels; a wider image encoder whose positions start as waves and which first
learns to read the field off pictures; a wider transformer; tokens at fixed
anchors, which the transformer knows by their index; four consecutive frames of
many clips in a step; Muon. Objects are turned until the camera stands in front
of them, as records of assets are: how far to the side a camera stands cannot be
seen in a picture. A fifth of the clips are records; of the procedural
ones a seventh are rigid things, a third of the others have thin limbs, wings,
tails and fins. The autoencoder starts from tiny's.

Hardware: two CPU cores. docs/training.md describes experiments,
weights/small/README.md the weights.
"""

import ml_collections

from sculpt4d_jax.configs import tiny


def get_config() -> ml_collections.ConfigDict:
  """Returns the small model."""
  config = tiny.get_config()
  config.name = "small"
  config.weights = "weights/small"
  config.model.vae.token_order = "anchored"
  config.model.image_encoder.update(
    dict(
      image_size=96,
      patch_size=12,
      stem_patch_size=4,
      position_init="sinusoidal",
      width=128,
      num_layers=4,
      num_heads=4,
      scan_unroll=4,
    )
  )
  config.model.dit.update(
    dict(
      depth=5,
      width=128,
      num_heads=4,
      context_width=128,
      num_token_indices=32,
      num_moe_blocks=2,
      num_experts=4,
      scan_unroll=5,
    )
  )
  config.data.update(
    dict(
      num_clips=2048,
      num_held_out=24,
      num_frames=16,
      num_uniform=384,
      num_sharp=128,
      num_near=768,
      num_volume=768,
      image_size=96,
      max_azimuth=0.0,
      variety=0.3,
      things=0.15,
    )
  )
  config.records.update(
    dict(
      share=0.2,
      num_parts=1,
      turn_to_camera=True,
      max_elevation=0.6,
      num_threads=1,
    )
  )
  config.vae_training.update(dict(init_from="weights/tiny", batch_size=12))
  config.vae_training.optimizer.update(
    dict(
      learning_rate=1e-3,
      num_steps=2000,
      warmup_steps=30,
      use_muon=True,
      decay_fraction=0.5,
      ema_decay=0.99,
    )
  )
  config.picture_training.update(
    dict(
      batch_size=24,
      num_frames=2,
      num_queries=96,
      eval_clips=16,
      eval_every=500,
      save_every=100,
    )
  )
  config.picture_training.optimizer.update(
    dict(
      learning_rate=2e-3,
      num_steps=900,
      warmup_steps=50,
      epsilon=1e-8,
      use_muon=True,
      decay_fraction=0.3,
      ema_decay=0.99,
    )
  )
  config.dit_training.update(
    dict(
      batch_size=24,
      num_frames=4,
      latent_choices=1,
      context_field_weight=0.5,
      temporal_dropout=0.15,
      eval_clips=16,
      eval_every=500,
      save_every=100,
    )
  )
  config.dit_training.optimizer.update(
    dict(
      learning_rate=1e-3,
      num_steps=20_000,
      warmup_steps=100,
      use_muon=True,
      decay_fraction=0.4,
      ema_decay=0.999,
    )
  )
  # Temperature, and the mean with the mirrored clip, were chosen on validation
  # clips; at this temperature four calls without guidance lose nothing. See
  # docs/sampling.md.
  config.sampling.update(
    dict(
      num_frames=16,
      guidance_scale=1.0,
      temperature=0.0,
      mirror=True,
      solver="ab2",
      num_steps=5,
    )
  )
  return config
