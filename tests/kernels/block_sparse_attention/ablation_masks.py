"""The masks of the paper's ablation."""

from sculpt4d_jax.kernels.block_sparse_attention import mask as mask_lib
from sculpt4d_jax.kernels.block_sparse_attention import shapes

BlockMask = mask_lib.BlockMask


def ablation_masks(
  num_frames: int, blocks_per_frame: int = 32
) -> dict[str, BlockMask]:
  """Variants A to F of Table A1 of the paper."""
  size = (num_frames, blocks_per_frame)
  return {
    "A": BlockMask(*size, shapes.PAPER_SCHEDULE, anchor_frames=()),
    "B": BlockMask(*size, (4,)),
    "C": BlockMask(*size, (1, 2, 4, 8, 16, 32)),
    "D": BlockMask(*size, (1, 1, 2, 2, 4, 4)),
    "E": BlockMask.dense(*size),
    "F": BlockMask(*size, shapes.PAPER_SCHEDULE),
  }
