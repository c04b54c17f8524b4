from flax import nnx
import jax
import pytest

from configs import sculpt4d
from configs import small
from configs import tiny
from sculpt4d_jax.models import networks
from sculpt4d_jax.training import preset as preset_lib


@pytest.mark.parametrize("config", [tiny, small, sculpt4d])
@pytest.mark.parametrize("name", list(networks.KINDS))
def test_shapes_are_those_of_a_network_with_drawn_parameters(config, name):
  model = preset_lib.from_config(config.get_config()).model
  kind, part = model.parts()[name]
  graphdef, params = networks.abstract(kind, part)
  drawn = nnx.split(nnx.eval_shape(lambda: kind(part, rngs=nnx.Rngs(0))))
  assert graphdef == drawn[0]
  # Shapes, dtypes and metadata such as the names of axes.
  assert jax.tree.structure(params) == jax.tree.structure(drawn[1])
  assert jax.tree.leaves(params) == jax.tree.leaves(drawn[1])
