"""Block-sparse attention over frames of a clip; needs jax and numpy only."""

from .api import block_sparse_attention
from .api import explain
from .mask import BlockMask
from .mask import Mask
from .mask import bit_reversal
from .mask import bit_reversed_tokens
from .mask import inverse_order
from .sharded import attend_with_sharded_frames
from .sharded import with_all_frames
from .sharded import with_all_frames_of_groups
