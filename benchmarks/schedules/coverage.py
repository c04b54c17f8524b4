"""Coverage of a mask of temporal attention, in one layer and in two.

Two measures besides the density:

  shares   the share of blocks of a frame at distance 0, 1, 2, ... that a query
           sees, without anchors: 1 / stride
  reach    for two layers in which every query weights all visible blocks
           equally: exp of the entropy of the resulting weights, divided by the
           number of blocks, mean over queries. 1 means that all blocks have
           equal weights, as in full attention

With the same anchors, a schedule whose shares are all at least those of another
has at least its density, so no schedule is sparser at equal shares.

`reach` says how evenly two layers mix, not how good a trained model is.
"""

from collections.abc import Sequence

import numpy as np

from sculpt4d_jax.kernels import block_sparse_attention as bsa


def shares(schedule: Sequence[int], num_frames: int) -> tuple[float, ...]:
  """Share of a frame's blocks that is seen, by the distance of frames."""
  last = len(schedule) - 1
  return tuple(1 / schedule[min(d, last)] for d in range(num_frames))


def reach(mask: bsa.BlockMask) -> float:
  """Evenness of two layers' weights, in (0, 1]; see the module.

  Args:
    mask: A mask whose strides divide the blocks of a frame, so that a pair of
      frames depends on the difference of blocks alone.

  Raises:
    ValueError: A stride does not divide the number of blocks.
  """
  blocks, frames = mask.blocks_per_frame, mask.num_frames
  difference = np.arange(blocks)
  weights = np.zeros((frames, frames, blocks))
  for query in range(frames):
    for key in range(frames):
      for stride in mask.strides(query, key):
        if blocks % stride:
          raise ValueError(f"stride {stride} does not divide {blocks} blocks.")
        weights[query, key] += difference % stride == 0
  weights = (weights > 0).astype(float)
  weights /= weights.sum((1, 2), keepdims=True)
  # Circulant in the blocks: products of frames by frequency.
  waves = np.fft.rfft(weights, axis=2)
  twice = np.fft.irfft(np.einsum("ijw,jkw->ikw", waves, waves), blocks, axis=2)
  twice = np.clip(twice, 1e-300, None)
  entropy = -(twice * np.log(twice)).sum((1, 2))
  return float(np.mean(np.exp(entropy)) / mask.num_blocks)
