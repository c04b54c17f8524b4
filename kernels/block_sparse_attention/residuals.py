"""Names by which a remat policy keeps what the backward kernels need.

With `jax.checkpoint_policies.save_only_these_names(NAME, OVER_FRAMES)` output and
log-sum-exp of the forward kernels are kept, and these kernels do not run again.
"""

NAME = "attention_kernel"
# Where the mask has several frames.
OVER_FRAMES = "attention_over_frames_kernel"


def name(num_frames: int) -> str:
  """The name of the results of a kernel whose mask has so many frames."""
  return NAME if num_frames == 1 else OVER_FRAMES
