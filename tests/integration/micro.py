"""A preset that trains and samples in seconds: the tiny one, made smaller."""

from configs import tiny


def get_config():
  """Two heads, three blocks, a few clips."""
  config = tiny.get_config()
  config.name = "micro"
  config.weights = ""
  config.model.vae.update(
    dict(
      num_latents=8,
      latent_channels=4,
      width=16,
      num_heads=2,
      num_encoder_layers=1,
      num_decoder_layers=1,
      downsample_ratio=4,
    )
  )
  config.model.image_encoder.update(
    dict(
      image_size=16,
      patch_size=8,
      width=16,
      num_layers=1,
    )
  )
  config.model.dit.update(
    dict(
      depth=3,
      width=16,
      num_heads=2,
      latent_channels=4,
      context_width=16,
      num_moe_blocks=1,
      num_experts=4,
      temporal_block_size=2,
    )
  )
  config.data.update(
    dict(
      num_clips=4,
      num_held_out=2,
      num_frames=3,
      num_uniform=24,
      num_sharp=8,
      num_near=32,
      num_volume=16,
      image_size=16,
    )
  )
  for stage in (config.vae_training, config.dit_training):
    stage.update(
      dict(
        batch_size=2, eval_clips=1, log_every=1, eval_every=100, save_every=2
      )
    )
    stage.optimizer.update(dict(num_steps=4, warmup_steps=1))
  config.vae_training.update(dict(num_frames=2, num_queries=16))
  config.picture_training.update(
    dict(
      batch_size=2,
      num_frames=2,
      num_queries=16,
      eval_clips=1,
      log_every=1,
      eval_every=100,
      save_every=2,
    )
  )
  config.picture_training.optimizer.update(dict(num_steps=2, warmup_steps=1))
  config.dit_training.update(
    dict(
      latent_choices=1,
      context_field_points=8,
      keep_best=1,
      profile=(1, 2),
    )
  )
  config.dit_training.samples.update(
    dict(
      every=4,
      num_clips=1,
      num_steps=2,
      resolution=8,
      num_points=50,
    )
  )
  config.sampling.update(dict(num_frames=3, num_steps=3))
  config.surface.update(dict(resolution=16, min_resolution=8, level=-10.0))
  return config
