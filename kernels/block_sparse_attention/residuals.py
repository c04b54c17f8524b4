"""The name by which a remat policy keeps what the backward kernels need.

With `jax.checkpoint_policies.save_only_these_names(NAME)` output and log-sum-exp of
the forward kernels are kept, and these kernels do not run again.
"""

NAME = "attention_kernel"
