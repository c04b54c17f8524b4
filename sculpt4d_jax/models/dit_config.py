"""Configuration of the diffusion transformer: its blocks and their sizes.

Of L blocks, those before block L // 2 hand their output to those after it, last
in first out; the last `num_moe_blocks` have experts. With an even L there is
one more block before the middle than after it, and its output stays unused.
"""

import dataclasses
import itertools
from typing import NamedTuple

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import attention
from sculpt4d_jax.models import remat
from sculpt4d_jax.models.moe import experts


class BlockKind(NamedTuple):
  """Kind of a block.

  Attributes:
    pushes: Whether the output is kept as a skip.
    has_skip: Whether the block reads the newest unused skip.
    is_moe: Whether it has a mixture of experts instead of the MLP.
  """

  pushes: bool
  has_skip: bool
  is_moe: bool


class Stage(NamedTuple):
  """Consecutive blocks of one kind."""

  kind: BlockKind
  first_block: int
  num_blocks: int


@dataclasses.dataclass(frozen=True)
class DiTConfig:
  """Shape of the DiT; the defaults are the full-size model.

  Attributes:
    depth: Number of blocks.
    width: D.
    num_heads: H, a divisor of D.
    latent_channels: C.
    context_width: Width of a context token.
    mlp_ratio: Hidden width of an MLP and of an expert, over D.
    num_moe_blocks: Number of blocks with experts, counted from the last.
    num_experts: E.
    num_experts_per_token: k.
    num_token_indices: Number N of latent tokens a frame that have a learned
      embedding of their index; for tokens in a fixed order, see
      `ShapeVAEConfig.token_order`. 0 treats tokens as a set.
    picture_frame: Whether the shapes of its latents are placed as pictures show
      them, and set upright after sampling; see `geometry/placement.py`.
    temporal_mode: "sparse", "full", "token" (a token sees itself in all
      frames) or "none": the per-frame model, without temporal parameters.
    temporal_block_size: Number of tokens of a block.
    temporal_schedule: Strides by distance in frames; the last one holds for all
      larger distances.
    temporal_anchor_frames: Frames that every query sees.
    temporal_rope_theta: Base of the rotary wavelengths.
    router_aux_loss_weight: alpha of each block's load balancing loss.
    step_embedding: Whether the time token also encodes the step length, for
      models that sample in few steps.
    dtype: Dtype of the computation, "float32" or "bfloat16".
    param_dtype: Dtype of the parameters.
    scan_unroll: Number of blocks in an iteration of a stage's scan; True
      unrolls all.
    remat_policy: See `remat.py`; "none" is None, for flags.
    attention_implementation: See `dense_attention.dot_product_attention`.
    temporal_implementation: Backend of the block-sparse kernel.
    moe_implementation: See `experts.apply_experts`.
  """

  depth: int = 21
  width: int = 2048
  num_heads: int = 16
  latent_channels: int = 64
  context_width: int = 1024
  mlp_ratio: int = 4
  num_moe_blocks: int = 6
  num_experts: int = 8
  num_experts_per_token: int = 2
  temporal_mode: str = "sparse"
  temporal_block_size: int = 128
  temporal_schedule: tuple[int, ...] = (1, 1, 2, 4, 8, 16)
  temporal_anchor_frames: tuple[int, ...] = (0,)
  temporal_rope_theta: float = 10000.0
  router_aux_loss_weight: float = 0.01
  step_embedding: bool = False
  dtype: str = "float32"
  param_dtype: str = "float32"
  scan_unroll: int | bool = 1
  remat_policy: str | None = None
  attention_implementation: str | None = None
  temporal_implementation: str | None = None
  moe_implementation: str | None = None
  num_token_indices: int = 0
  picture_frame: bool = False

  def __post_init__(self):
    # Lists, as configuration files have them, would not be hashable.
    for name in ("temporal_schedule", "temporal_anchor_frames"):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    self._check_sizes()
    self._check_temporal()
    for name in ("dtype", "param_dtype"):
      if getattr(self, name) not in ("float32", "bfloat16"):
        raise UserError(
          f"{name}={getattr(self, name)!r}: choose 'float32' or 'bfloat16'."
        )
    if self.moe_implementation not in (None, *experts.IMPLEMENTATIONS):
      raise UserError(
        f"moe_implementation={self.moe_implementation!r}: choose one of"
        f" {experts.IMPLEMENTATIONS} or None."
      )
    if self.remat_policy == "none":
      object.__setattr__(self, "remat_policy", None)
    remat.check(self.remat_policy)

  def _check_sizes(self):
    positive = ("depth", "width", "num_heads", "latent_channels")
    positive += ("context_width", "mlp_ratio", "temporal_block_size")
    for name in positive:
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
    if self.width % self.num_heads:
      raise UserError(
        f"width={self.width} is not a multiple of num_heads="
        f"{self.num_heads}; choose heads that divide the width."
      )
    if self.num_token_indices < 0:
      raise UserError(
        f"num_token_indices={self.num_token_indices} must not be negative."
      )
    if self.width % 2:
      raise UserError(
        f"width={self.width} is odd, but the time token has as many sines as"
        " cosines; choose an even width."
      )
    if not 0 <= self.num_moe_blocks <= self.depth:
      raise UserError(
        f"num_moe_blocks={self.num_moe_blocks} must be within 0 and depth="
        f"{self.depth}."
      )
    if self.num_moe_blocks and not (
      1 <= self.num_experts_per_token <= self.num_experts
    ):
      raise UserError(
        f"num_experts_per_token={self.num_experts_per_token} must be within"
        f" 1 and num_experts={self.num_experts}."
      )

  def _check_temporal(self):
    if self.temporal_mode not in attention.TEMPORAL_MODES:
      raise UserError(
        f"temporal_mode={self.temporal_mode!r}: choose one of"
        f" {attention.TEMPORAL_MODES}."
      )
    schedule = self.temporal_schedule
    if not schedule or any(stride < 1 for stride in schedule):
      raise UserError(
        f"temporal_schedule={schedule} must be strides of at least 1, one for"
        " each distance in frames from 0 on."
      )
    if self.temporal_mode != "none" and self.head_dim % 2:
      raise UserError(
        f"Heads are {self.head_dim} wide, which is odd; temporal rotary"
        " embedding turns channels in pairs: choose an even width/num_heads."
      )

  @property
  def head_dim(self) -> int:
    """Width of an attention head, K."""
    return self.width // self.num_heads

  @property
  def block_kinds(self) -> tuple[BlockKind, ...]:
    """The kind of every block, in order."""
    middle = self.depth // 2
    return tuple(
      BlockKind(
        pushes=block < middle,
        has_skip=block > middle,
        is_moe=self.depth - block <= self.num_moe_blocks,
      )
      for block in range(self.depth)
    )

  @property
  def stages(self) -> tuple[Stage, ...]:
    """Runs of blocks of one kind, in order."""
    stages, first = [], 0
    for kind, run in itertools.groupby(self.block_kinds):
      num_blocks = len(list(run))
      stages.append(Stage(kind, first, num_blocks))
      first += num_blocks
    return tuple(stages)

  def locate(self, block: int) -> tuple[int, int]:
    """(stage, slot in that stage) of a block."""
    for index, stage in enumerate(self.stages):
      if 0 <= block - stage.first_block < stage.num_blocks:
        return index, block - stage.first_block
    raise UserError(f"There is no block {block}: depth={self.depth}.")
