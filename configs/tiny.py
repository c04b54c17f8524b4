r"""The complete system, small enough for two CPU cores; weights are included.

  python -m launch.sample --config=configs/tiny.py --input=my.mp4 --output=out
  python -m launch.train --config=configs/tiny.py --workdir=runs/tiny

It has all parts of the released model: vector-set autoencoder, image encoder,
U-shaped transformer with block-sparse temporal attention (32 tokens a frame in
blocks of 4) and mixture of experts. It is trained from scratch on procedural
clips of articulated and deforming solids seen from the front.
"""

import ml_collections

from sculpt4d_jax.configs import base


def get_config() -> ml_collections.ConfigDict:
  """Returns the small model with included weights."""
  config = base.get_config()
  config.name = "tiny"
  config.weights = "weights/tiny"
  config.model.vae.update(
    dict(
      num_latents=32,
      latent_channels=16,
      width=96,
      num_heads=4,
      num_encoder_layers=2,
      num_decoder_layers=4,
      downsample_ratio=16,
      num_freqs=6,
      field_mlp_ratio=2,
      scale_factor=1.0,
      dtype="float32",
    )
  )
  config.model.image_encoder.update(
    dict(
      image_size=64,
      patch_size=8,
      width=64,
      num_layers=3,
      num_heads=2,
      dtype="float32",
      scan_unroll=3,
    )
  )
  config.model.dit.update(
    dict(
      depth=5,
      width=96,
      num_heads=4,
      latent_channels=16,
      context_width=64,
      num_moe_blocks=2,
      temporal_block_size=4,
      dtype="float32",
      # Unrolled: for few small blocks, copying a scan's residuals for the
      # backward pass takes longer than the computation.
      remat_policy=None,
      scan_unroll=5,
    )
  )
  config.data.update(
    dict(
      num_clips=6656,
      num_frames=8,
      num_uniform=384,
      num_sharp=128,
      num_near=1024,
      num_volume=512,
      image_size=64,
    )
  )
  config.vae_training.update(
    dict(
      # A wide band: with the narrow band of the full size, the field is so
      # steep that a small decoder does not learn the positions of its tokens.
      batch_size=16,
      num_frames=2,
      num_queries=384,
      field_band=0.3,
      kl_weight=1e-4,
      eval_every=1000,
      save_every=250,
    )
  )
  config.vae_training.optimizer.update(
    dict(
      learning_rate=2e-3,
      num_steps=2200,
      warmup_steps=100,
      epsilon=1e-8,
    )
  )
  config.dit_training.update(
    dict(
      batch_size=8,
      train_image_encoder=True,
      context_field_weight=1.0,
      temporal_dropout=0.2,
      latent_choices=2,
      save_every=250,
    )
  )
  config.dit_training.optimizer.update(
    dict(
      learning_rate=1e-3,
      num_steps=9000,
      warmup_steps=200,
      epsilon=1e-8,
      decay_fraction=0.4,
    )
  )
  config.sampling.update(dict(num_frames=8, guidance_scale=2.0))
  config.surface.update(
    dict(
      resolution=96,
      # The field changes by at most 0.49 from a point of the coarsest grid to a
      # surface in the middle of a cell.
      min_resolution=12,
      band=0.5,
      # The wide band leaves nothing for "exact" to find that "lean" misses.
      grid="lean",
      # Activations of so many points stay in a CPU's cache, and leave cores
      # to a second frame.
      chunk_size=1024,
      frames_at_a_time=2,
    )
  )
  return config
