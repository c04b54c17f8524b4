"""Parts of a step add up to the operations of the whole call."""

from flax import nnx
import pytest

from benchmarks.sampling import step_parts
from configs import tiny
from sculpt4d_jax.evaluation import cost
from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.training import preset as preset_lib


@pytest.mark.slow  # Compiles every part.
def test_parts_hold_all_operations_of_the_call():
  config = tiny.get_config()
  config.model.dit.update(
    dict(depth=3, width=16, num_heads=2, num_moe_blocks=1)
  )
  model = preset_lib.from_config(config).model
  configs = {name: config for name, (_, config) in model.parts().items()}
  dit = dit_lib.DiT(configs["dit"], rngs=nnx.Rngs(0))
  parts = step_parts.measure(dit, cost.Sizes(**configs), 2, rounds=1)
  assert all(part.seconds > 0 and part.operations > 0 for part in parts)
  for mode, other in (("sparse", "full"), ("full", "sparse")):
    own = [p for p in parts if not p.name.endswith(f", {other}")]
    assert own[-1].name == f"whole call, {mode}"
    assert sum(p.operations for p in own[:-1]) == own[-1].operations
  lines = step_parts.table(parts).splitlines()
  assert len(lines) == 1 + len(parts) + 2
