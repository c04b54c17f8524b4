"""Where this package finds its kernels.

The kernels are a separate project in the top-level folder `kernels/`, which
needs jax and numpy only. A wheel carries them here, as
`sculpt4d_jax.kernels.block_sparse_attention`, because the top-level name
`kernels` belongs to another distribution on PyPI (Hugging Face's), which
`transformers` looks for. In a checkout this file points at the folder instead;
the folder has no `__init__.py`, so that theirs wins wherever both are present.
"""

import pathlib

_checkout = pathlib.Path(__file__).resolve().parents[2] / "kernels"
if (_checkout / "block_sparse_attention").is_dir():
  __path__.append(str(_checkout))
