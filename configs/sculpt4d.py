r"""Sculpt4D at the released size: 21 x 2048, 4096 x 64 latents a frame.

  python -m launch.sample --config=configs/sculpt4d.py --checkpoint=WEIGHTS \
      --input=clip.mp4 --output=out

WEIGHTS is a folder written by launch.train or launch.convert_weights.

Hardware: the paper trains on 8 GPUs of 96 GB for 3 days (24k steps of 32
clips) and samples 16 frames in 7 minutes. Paper's figures for the variant
"Ours": Chamfer 0.0972, IoU 0.3451, F-Score 0.3383 (Table A1).
"""

import ml_collections

from sculpt4d_jax.configs import base


def get_config() -> ml_collections.ConfigDict:
  """Returns the released size."""
  return base.get_config()
