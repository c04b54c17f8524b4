"""Axis letters and array aliases, used in annotations, comments and einsums.

B  clips in a batch             D  width of the transformer
F  frames of a clip             H  attention heads
N  latent tokens of a frame     K  width of a head, D = H * K
S  tokens of a clip, F * N      M  hidden width of an MLP
C  channels of a latent         E  experts
I  context tokens of a frame    L  stacked layers
P  surface points               Q  query points
V  vertices                     T  triangles
R  tokens routed to experts     k  experts chosen for a token
W  width of a context token     U  rows of a frame in the DiT: time and N tokens
G  grid points along an axis
"""

import jax
import jaxtyping
import numpy as np

Array = jax.Array
PRNGKey = jax.Array
Float = jaxtyping.Float
Int = jaxtyping.Int
Bool = jaxtyping.Bool
Real = jaxtyping.Real
UInt8 = jaxtyping.UInt8

NumpyArray = np.ndarray
# What jax functions take: their own arrays, or arrays of the host.
AnyArray = Array | NumpyArray
