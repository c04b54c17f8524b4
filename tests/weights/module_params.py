"""Sets the parameters of a module by their dotted paths."""

from collections.abc import Mapping
from typing import Any

from flax import nnx
import jax

from sculpt4d_jax.weights import rules as weight_rules


def set_params(module: nnx.Module, values: Mapping[str, Any]) -> None:
  """Sets parameters, cast to their present dtype; the others stay."""
  state = nnx.state(module, nnx.Param)
  params = {
    ".".join(map(str, path)): param for path, param in nnx.to_flat_state(state)
  }
  assert params.keys() == weight_rules.param_shapes(module).keys()
  for path, value in values.items():
    old = params[path].get_value()
    assert tuple(old.shape) == tuple(value.shape), path
    params[path].set_value(jax.numpy.asarray(value, old.dtype))
  nnx.update(module, state)
