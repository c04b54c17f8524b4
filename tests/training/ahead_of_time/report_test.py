"""Reports of compiled programs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from configs import pods
from configs import sculpt4d
from configs import tiny
from sculpt4d_jax.models import flops
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.ahead_of_time import report as compiled


def test_unknown_chips_and_shapes_are_refused():
  with pytest.raises(ValueError, match="expected one of .*v5p"):
    compiled.chip("v9:4x4")
  with pytest.raises(ValueError, match="and a shape"):
    compiled.chip("v5p")
  assert compiled.chip("v6e:16x16").memory_bytes == 32e9


def test_work_of_a_training_step_is_three_forward_passes_and_one_more():
  config = preset_lib.from_config(sculpt4d.get_config())
  once = sum(flops.dit_call(config.model.dit, 16, 4096, 1370).values())
  once += sum(flops.dit_context(config.model.dit, 16, 1370).values())
  encoder = config.model.image_encoder
  pictures = sum(flops.image_encoder(encoder, 16).values())
  work = compiled.model_flops(config, "train", num_clips=0)
  # The encoder does not learn; every block is computed again.
  assert work["model"] == pytest.approx(32 * (3 * once + pictures))
  assert work["hardware"] == pytest.approx(32 * (4 * once + pictures))


def test_nothing_is_computed_again_where_all_is_kept():
  work = compiled.model_flops(
    preset_lib.from_config(tiny.get_config()), "train", num_clips=0
  )
  assert work["hardware"] == work["model"]


def test_work_of_the_autoencoders_training():
  config = preset_lib.from_config(pods.get_config("v5p-64-vae"))
  vae = config.model.vae
  frame = flops.add(
    flops.vae_encoder(vae),
    flops.vae_decoder(vae),
    flops.field_queries(vae, config.vae_training.task.num_queries),
  )
  once = 64 * 4 * sum(frame.values())  # 64 clips of 4 frames.
  work = compiled.model_flops(config, "train_vae", num_clips=0)
  assert work["model"] == pytest.approx(3 * once)
  assert work["hardware"] == pytest.approx(4 * once)


def test_guidance_doubles_the_calls_of_a_sampler():
  config = preset_lib.from_config(sculpt4d.get_config())
  guided = compiled.model_flops(config, "sample", num_clips=2)["model"]
  config = dataclasses.replace(
    config, sampling=dataclasses.replace(config.sampling, guidance_scale=1.0)
  )
  plain = compiled.model_flops(config, "sample", num_clips=2)["model"]
  assert 1.9 < guided / plain < 2


def test_figures_of_a_program():
  x = jnp.ones((256, 256))
  executable = jax.jit(lambda x: x @ x).lower(x).compile()
  chip = compiled.Chip(
    memory_bytes=1e9,
    flops=1e9,
    link_bytes=1e9,
    dcn_bytes=1e9,
    memory_rate=1e9,
    clock=1e9,
  )
  work = {"model": 1e9, "hardware": 2e9}
  report = compiled.examine(executable, chip, work, num_chips=1)
  assert report["memory_gb"]["arguments"] == round(4 * 256**2 / 1e9, 3)
  assert report["seconds"]["products"] == 2.0
  assert report["collectives"] == []
  # The compiler for CPUs estimates nothing.
  assert report["seconds"]["account"] == 0.0
  assert report["mfu_bound"] == 0.5
  report |= {"compile_seconds": 1.0, "fits": False, "kernels": []}
  assert "DOES NOT FIT" in compiled.describe("train", report, 1e9)
