"""Small training steps and a sampler, compiled ahead of time for a slice."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests import conftest

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='needs the TPU compiler: pip install "jax[tpu]"',
  ),
]

_SMALL = {
  "mesh.fsdp": 2,
  "mesh.context": 2,
  "model.dit.depth": 3,
  "model.dit.num_moe_blocks": 1,
  "model.dit.width": 256,
  "model.dit.num_heads": 2,
  "model.dit.num_experts": 4,
  "model.vae.num_latents": 512,
  "model.image_encoder.num_layers": 2,
  "model.image_encoder.width": 128,
  "model.image_encoder.num_heads": 2,
  "model.dit.context_width": 128,
  "data.num_frames": 4,
  "sampling.num_frames": 4,
  "dit_training.batch_size": 4,
}


def _compile(*flags):
  small = [f"--config.{name}={value}" for name, value in _SMALL.items()]
  return subprocess.run(
    [
      sys.executable,
      "-m",
      "launch.compile_check",
      "--config=configs/pods.py:v5e-64",
      "--topology=v5e:2x2",
      *small,
      *flags,
    ],
    cwd=conftest.ROOT,
    env={**os.environ, "JAX_OPTIMIZATION_LEVEL": "O0"},
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )


def test_training_compiles_with_its_kernels_and_fits(tmp_path):
  result = _compile(
    "--what=train",
    f"--json={tmp_path / 'report.json'}",
    "--config.model.dit.depth=5",
    "--config.model.dit.num_moe_blocks=2",
  )
  assert result.returncode == 0, result.stderr[-3000:]
  report = json.loads((tmp_path / "report.json").read_text())["train"]
  assert report["fits"] and 0 < report["memory_gb"]["peak"] < 16
  kernels = " ".join(report["kernels"])
  for name in (
    "block_sparse_forward",
    "block_sparse_backward",
    "grouped_multiply",
    "grouped_outer",
  ):
    assert name in kernels
  # Frames for heads and back, for queries, keys, values and outputs; forward,
  # again and backward; for five blocks. No loop has one block: the compiler would
  # unroll it and merge some of its recomputation with the forward pass.
  exchanged = [c for c in report["collectives"] if c["kind"] == "all-to-all"]
  assert [(c["group_size"], c["number"]) for c in exchanged] == [(2, 60)]


def test_inputs_of_blocks_are_kept_on_the_host(tmp_path):
  result = _compile(
    "--what=train",
    f"--json={tmp_path / 'report.json'}",
    "--config.model.dit.remat_policy=offload_inputs",
    "--config.model.dit.depth=7",
  )
  assert result.returncode == 0, result.stderr[-3000:]
  report = json.loads((tmp_path / "report.json").read_text())["train"]
  # At least the inputs of two stages of three blocks: 1 clip, 2 frames, 513
  # tokens of 256 numbers a chip.
  one = 2 * 513 * 256 * 2 / 1e9
  assert report["fits"] and report["memory_gb"]["on the host"] >= 4 * one


def test_the_autoencoders_training_compiles(tmp_path):
  sizes = {
    "mesh.fsdp": 4,
    "mesh.context": 1,
    "model.vae.width": 256,
    "model.vae.num_heads": 2,
    "model.vae.num_encoder_layers": 1,
    "model.vae.num_decoder_layers": 2,
    "model.vae.remat_policy": "full",
    "data.num_uniform": 20480,
    "vae_training.batch_size": 4,
    "vae_training.num_frames": 2,
  }
  result = _compile(
    "--what=train_vae",
    f"--json={tmp_path / 'report.json'}",
    *[f"--config.{name}={value}" for name, value in sizes.items()],
  )
  assert result.returncode == 0, result.stderr[-3000:]
  report = json.loads((tmp_path / "report.json").read_text())["train_vae"]
  assert report["fits"] and 0 < report["memory_gb"]["peak"] < 16
  work = report["tera_flops"]
  assert work["hardware"] == pytest.approx(work["model"] * 4 / 3, rel=0.1)
  # Frames are independent of each other: none are exchanged.
  assert "all-to-all" not in {c["kind"] for c in report["collectives"]}


def test_what_does_not_fit_fails(tmp_path):
  result = _compile("--what=sample", "--max_gb=0.001")
  assert result.returncode == 1, result.stderr[-3000:]
  assert "DOES NOT FIT" in result.stdout
