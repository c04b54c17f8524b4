"""Sculpt4D in JAX: a video of a moving object in, a mesh for every frame out.

  import sculpt4d_jax as s4d

  result = s4d.load("small").generate("clip.mp4")
  result.save("out")

Names are imported when they are first used, so that `import sculpt4d_jax`
takes no time and starts no device.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
  "BlockMask",
  "Model",
  "Result",
  "__version__",
  "block_sparse_attention",
  "convert_weights",
  "evaluate",
  "load",
  "plan",
  "preset",
  "read_clip",
  "train",
]

_API = "sculpt4d_jax.api"
_ATTENTION = "sculpt4d_jax.kernels.block_sparse_attention"
_MODULES = {name: _API for name in __all__} | {
  name: _ATTENTION for name in ("BlockMask", "block_sparse_attention")
}
_MODULES["evaluate"] = "sculpt4d_jax.evaluation.protocols.evaluate"

if TYPE_CHECKING:
  from sculpt4d_jax.api import Model
  from sculpt4d_jax.api import Result
  from sculpt4d_jax.api import convert_weights
  from sculpt4d_jax.api import load
  from sculpt4d_jax.api import plan
  from sculpt4d_jax.api import preset
  from sculpt4d_jax.api import read_clip
  from sculpt4d_jax.api import train
  from sculpt4d_jax.evaluation.protocols.evaluate import evaluate
  from sculpt4d_jax.kernels.block_sparse_attention import BlockMask
  from sculpt4d_jax.kernels.block_sparse_attention import block_sparse_attention


def __getattr__(name: str) -> Any:
  if name not in _MODULES:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  value = getattr(importlib.import_module(_MODULES[name]), name)
  globals()[name] = value
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
