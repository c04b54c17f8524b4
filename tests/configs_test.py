"""Presets build the networks they describe."""

import dataclasses

from flax import nnx
import jax
import pytest

from configs import ablations
from configs import base
from configs import pods
from configs import sculpt4d
from configs import tiny
from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.training import preset as preset_lib

# Densities at 16 frames, Table A1 of the paper by way of its PFLOPs.
DENSITIES = {
  "no_anchor": 30.37,
  "fixed_stride": 29.69,
  "aggressive": 23.67,
  "conservative": 47.66,
  "ours": 35.23,
}


def _num_params(module_type, config):
  module = nnx.eval_shape(lambda: module_type(config, rngs=nnx.Rngs(0)))
  return sum(x.size for x in jax.tree.leaves(nnx.split(module)[1]))


def test_released_size_has_the_parameters_of_the_pretrained_model():
  parts = preset_lib.from_config(sculpt4d.get_config()).model.parts()
  sizes = {name: _num_params(*part) for name, part in parts.items()}
  assert sizes["vae"] == 327_746_177
  # The stored mask token, 1024 numbers, is never used.
  assert sizes["image_encoder"] == 304_368_640 - 1024
  temporal = 21 * (4 * 2048**2 + 2048 + 2 * 128 + 2 * 2048)
  assert sizes["dit"] == 3_050_758_720 + temporal


@pytest.mark.parametrize("variant", DENSITIES)
def test_variants_have_the_papers_densities(variant):
  dit = ablations.get_config(variant).model.dit
  mask = bsa.BlockMask(
    16, 32, dit.temporal_schedule, dit.temporal_anchor_frames
  )
  assert round(100 * mask.density(), 2) == DENSITIES[variant]


def test_every_variant_of_every_size_is_a_valid_model():
  for module in (sculpt4d, tiny):
    for variant in ablations._VARIANTS:
      config = ablations.apply(module.get_config(), variant)
      preset_lib.from_config(config)
  with pytest.raises(ValueError, match="Unknown variant"):
    ablations.get_config("best")


@pytest.mark.parametrize("name", ["v5p-64", "v6e-256", "v5e-64", "gpu-8"])
def test_pods_divide_the_training_of_both_networks(name):
  for stage, suffix in (("dit_training", ""), ("vae_training", "-vae")):
    config = pods.get_config(name + suffix)
    mesh = config.mesh
    clips = config[stage].batch_size
    assert clips % (mesh.data * mesh.fsdp * mesh.expert) == 0
    assert mesh.fsdp * mesh.context == int(name.split("-")[1])
  with pytest.raises(ValueError, match="Unknown slice 'v5p-vae'"):
    pods.get_config("v5p-vae")


def test_defaults_of_the_classes_are_those_of_the_base_configuration():
  preset = preset_lib.from_config(base.get_config())
  sections = (
    preset.mesh,
    preset.sampling,
    preset.surface,
    preset.dit_training.optimizer,
    preset.dit_training.schedule,
    preset.dit_training.task,
    preset.dit_training.task.lora,
    preset.vae_training.optimizer,
    preset.vae_training.task,
  )
  # An encoder that does not learn is frozen by the preset.
  by_design = {"frozen", "lora"}
  for section in sections:
    for field in dataclasses.fields(section):
      if field.default is dataclasses.MISSING or field.name in by_design:
        continue
      value = getattr(section, field.name)
      assert field.default == value, (type(section).__name__, field.name)
