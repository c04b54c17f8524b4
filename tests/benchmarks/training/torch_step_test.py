"""Two implementations of one training step have one loss."""

import pytest

from tests.integration import micro

pytest.importorskip(
  "torch", reason="PyTorch is not installed: pip install torch"
)

from benchmarks.training import step_time
from sculpt4d_jax.training import preset as preset_lib

pytestmark = pytest.mark.slow  # Compiles the DiT's training.


def test_losses_agree_with_pytorch_over_several_steps():
  config = micro.get_config()
  config.dit_training.temporal_dropout = 0.5
  config.dit_training.optimizer.num_steps = 100
  ours = step_time.our_step(preset_lib.from_config(config))
  step_time.check_agreement(ours, step_time.torch_step(ours))


def test_other_presets_are_refused_with_the_reason():
  config = micro.get_config()
  config.dit_training.optimizer.accumulation_steps = 2
  ours = step_time.our_step(preset_lib.from_config(config))
  with pytest.raises(ValueError, match="written for float32"):
    step_time.torch_step(ours)
