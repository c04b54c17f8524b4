r"""A size between tiny and the released model, for measurements of speed.

  python -m launch.flops --config=configs/mid.py --measure

A quarter of the released model in width, in tokens a frame (still in 32 blocks)
and in tokens of the context, with half as many heads half as wide and a third
of the blocks with experts: small enough for two CPU cores. There are no
weights; timing needs none.

Sampling with sparse over full temporal attention, in CPU time on two busy cores
(median of two; one at 32 frames): 81.9 % at 8 frames, where the operations are
78.2 %; 53.1 % at 16 frames, where they are 55.7 %; 38.4 % at 32 frames, where
they are 36.2 %. `--parts` shows the reason for the agreement: every part of a
step runs at 140 to 170 GFLOP/s.
"""

import ml_collections

from sculpt4d_jax.configs import tiny


def get_config() -> ml_collections.ConfigDict:
  """Width 512, 1024 tokens per frame."""
  config = tiny.get_config()
  config.name = "mid"
  config.weights = ""
  config.model.vae.update(dict(num_latents=1024, latent_channels=64))
  config.model.image_encoder.image_size = 144  # 325 tokens of context.
  config.model.dit.update(
    dict(
      depth=3,
      width=512,
      num_heads=8,
      latent_channels=64,
      num_moe_blocks=1,
      temporal_block_size=32,
    )
  )
  config.sampling.update(dict(num_frames=16, num_steps=2, guidance_scale=1.0))
  return config
