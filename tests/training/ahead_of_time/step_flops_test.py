"""Operations of a step by hand, and peaks by the names of devices."""

import dataclasses

import jax
import pytest

from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import flops
from sculpt4d_jax.models import image_encoder
from sculpt4d_jax.training.ahead_of_time import step_flops

DIT = dit_config.DiTConfig(
  depth=3, width=32, num_heads=2, num_moe_blocks=1, temporal_block_size=4
)
ENCODER = image_encoder.ImageEncoderConfig(
  image_size=16, patch_size=8, width=16, num_layers=2, num_heads=2
)


def _step(**changes):
  fields = dict(batch_size=2, num_frames=3, num_tokens=8, encoder_learns=True)
  return step_flops.dit_step(DIT, ENCODER, **(fields | changes))


def test_a_step_is_three_times_its_forward_pass():
  parts = [
    flops.dit_call(DIT, 3, 8, 5),
    flops.dit_context(DIT, 3, 5),
    flops.image_encoder(ENCODER, 3),
  ]
  forward, pictures = (
    sum(flops.add(*some).values()) for some in (parts, parts[2:])
  )
  assert _step() == 2 * 3 * forward
  # What does not learn has no backward pass; what is adapted needs half of it.
  assert _step(encoder_learns=False) == 2 * (3 * forward - 2 * pictures)
  assert _step(encoder_learns=False, is_adapted=True) == 2 * (
    2 * forward - pictures
  )


@dataclasses.dataclass
class _Device:
  device_kind: str
  platform: str = "tpu"


@pytest.mark.parametrize(
  "kind, tera",
  [
    ("TPU v5 lite", 197),
    ("TPU v5p", 459),
    ("TPU v5", 459),
    ("TPU v6 lite", 918),
    ("TPU v4", 275),
    ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA H100 PCIe", 756),
    ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA L4", 121),
    ("NVIDIA L40S", 362),
  ],
)
def test_peaks_by_kind(kind, tera):
  assert step_flops.peak(_Device(kind)) == tera * 1e12


def test_an_unknown_device_has_no_peak():
  assert step_flops.peak(_Device("Abacus 3000", "wood")) is None


def test_a_processor_is_measured():
  assert 1e8 < step_flops.peak(jax.devices("cpu")[0]) < 1e14
