"""Two implementations of one training step have one loss."""

import pytest

from tests.integration import micro

pytest.importorskip(
  "torch", reason="PyTorch is not installed: pip install torch"
)

from benchmarks.training import sampling_peer
from benchmarks.training import step_time
from sculpt4d_jax.training import preset as preset_lib

pytestmark = pytest.mark.slow  # Compiles the DiT's training.


def test_losses_agree_with_pytorch_over_several_steps():
  config = micro.get_config()
  config.dit_training.temporal_dropout = 0.5
  config.dit_training.optimizer.num_steps = 100
  ours = step_time.our_step(preset_lib.from_config(config))
  step_time.check_agreement(ours, step_time.torch_step(ours))


def test_losses_agree_for_patches_in_two_levels_and_known_token_indices():
  config = micro.get_config()
  config.model.image_encoder.update(dict(stem_patch_size=4))
  config.model.dit.update(dict(num_token_indices=8))
  config.dit_training.update(dict(num_frames=2))
  config.dit_training.optimizer.num_steps = 100
  ours = step_time.our_step(preset_lib.from_config(config))
  step_time.check_agreement(ours, step_time.torch_step(ours))


@pytest.mark.parametrize(("scale", "temperature"), [(3.0, 1.0), (1.0, 0.25)])
def test_sampled_latents_agree_with_pytorch(scale, temperature):
  config = micro.get_config()
  config.sampling.update(dict(guidance_scale=scale, temperature=temperature))
  preset = preset_lib.from_config(config)
  clip = sampling_peer.make_clip(preset)
  peer = sampling_peer.torch_sampler(clip, step_time.our_step(preset), False)
  sampling_peer.check_agreement(sampling_peer.ours(clip), peer)


def test_other_presets_are_refused_with_the_reason():
  config = micro.get_config()
  config.dit_training.optimizer.accumulation_steps = 2
  ours = step_time.our_step(preset_lib.from_config(config))
  with pytest.raises(ValueError, match="written for float32"):
    step_time.torch_step(ours)
