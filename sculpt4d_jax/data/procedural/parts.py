"""Points, plates and directions that procedural families are built of."""

import numpy as np

from sculpt4d_jax.data.procedural.body import Body

Array = np.ndarray


def direction(rng: np.random.Generator) -> Array:
  """A random direction [3]."""
  vector = rng.normal(size=3)
  return vector / np.linalg.norm(vector)


def point(
  phase: Array, x: Array | float, y: Array | float, z: Array | float
) -> Array:
  """A moving point [F, 3] of coordinates that are [F] or numbers."""
  zero = np.zeros_like(phase)
  return np.stack([zero + x, zero + y, zero + z], -1)


def plate(along: Array, up: Array) -> Array:
  """Rotations [F, 3, 3] with x along `along` and y as close to `up`."""
  x = along / np.linalg.norm(along, axis=-1, keepdims=True)
  z = np.cross(x, up)
  z /= np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-6)
  return np.stack([x, np.cross(z, x), z], -1)


def blade(
  body: Body, root: Array, tip: Array, up: Array, width: float, thickness: float
) -> None:
  """Adds a flat box from root to tip [F, 3]; `up` [F, 3] lies in its plane."""
  half = np.linalg.norm(tip - root, axis=-1) / 2
  size = np.stack(
    [half, np.full_like(half, width), np.full_like(half, thickness)], -1
  )
  body.box((root + tip) / 2, plate(tip - root, up), size, thickness * 0.8)
