"""Models of a preset with random weights, made without compiling anything."""

from typing import Any

from flax import nnx
import jax
import numpy as np

from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.models import networks
from sculpt4d_jax.training import preset as preset_lib
from tests.integration import micro


def random_model(**options: Any) -> model_lib.Sculpt4D:
  """A model of the micro preset."""
  preset = preset_lib.from_config(micro.get_config())
  rng = np.random.default_rng(0)
  modules = {}
  for name, (kind, part) in preset.model.parts().items():
    graphdef, params = networks.abstract(kind, part)
    params = jax.tree_util.tree_map_with_path(
      lambda path, x: _draw(jax.tree_util.keystr(path), x, rng), params
    )
    modules[name] = nnx.merge(graphdef, params)
  return model_lib.Sculpt4D(**modules, **options)


def _draw(path, leaf, rng):
  """Scales near 1; all else small."""
  noise = rng.normal(size=leaf.shape)
  values = 1 + 0.1 * noise if "scale" in path else 0.2 * noise
  return values.astype(leaf.dtype)
