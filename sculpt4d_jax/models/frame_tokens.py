"""The DiT's tokens of a frame: one of the flow time, and N latent tokens.

The time token leads the latent tokens in one array [B, F, 1 + N, D], or lies
apart from them: on TPUs, where memory is tiled. There N = 4096 tokens are whole
tiles, and 4097 are not: every kernel that takes whole tiles would have its
queries, keys and values copied, and its gradients padded.

    joined    [ t | x0 x1 ... x4095 ]     4097 = 256 * 16 + 1
    apart     [ t ]  [ x0 x1 ... x4095 ]  4096 = 256 * 16

Layers that treat every token alike are mapped over both by `jax.tree.map`. The
few that do not ask for what they need by the functions below.
"""

from typing import NamedTuple

import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning

Array = array_types.Array
Float = array_types.Float


class Apart(NamedTuple):
  """Tokens of all frames, the time token apart.

  Attributes:
    latents: [B, F, N, ...].
    time: [B, F, 1, ...].
  """

  latents: Array
  time: Array


# Tokens of all frames: one array [B, F, 1 + N, ...], or two.
Tokens = Array | Apart


def lead(
  time: Float[Array, "B F 1 D"],
  latents: Float[Array, "B F N D"],
  apart: bool | None = None,
) -> Tokens:
  """Puts time tokens in front of the latent tokens.

  Args:
    time: The time token of every frame.
    latents: The latent tokens.
    apart: Whether to keep them apart; None does so on TPUs.
  """
  if apart is None:
    apart = partitioning.platform()[0] == "tpu"
  if apart:
    return Apart(latents, time)
  return jnp.concatenate((time, latents), axis=2)


def latents(tokens: Tokens) -> Array:
  """The latent tokens alone, [B, F, N, ...]."""
  return tokens.latents if isinstance(tokens, Apart) else tokens[:, :, 1:]


def add_to_latents(tokens: Tokens, update: Array) -> Tokens:
  """Adds an update [B, F, N, ...] of the latent tokens."""
  if isinstance(tokens, Apart):
    return tokens._replace(latents=tokens.latents + update)
  # Adding a padded update fuses; writing a slice of x would copy it.
  return tokens + jnp.pad(update, ((0, 0), (0, 0), (1, 0), (0, 0)))


def in_one(tokens: Tokens) -> Array:
  """All tokens in one array [B, F, 1 + N, ...], in whatever order."""
  if not isinstance(tokens, Apart):
    return tokens
  # Latent tokens first, so that they stay where tiles begin.
  return jnp.concatenate(tokens, axis=2)


def like(tokens: Tokens, array: Array) -> Tokens:
  """What is computed from `in_one(tokens)`, as the tokens are."""
  if not isinstance(tokens, Apart):
    return array
  return Apart(array[:, :, :-1], array[:, :, -1:])
