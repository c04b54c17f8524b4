import hashlib
import socket

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from sculpt4d_jax.evaluation.protocols import evaluate
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.evaluation.protocols import scores
from sculpt4d_jax.evaluation.views import weight_files
from sculpt4d_jax.io.meshes import ply_obj
from tests.evaluation import shapes
from tests.evaluation.views import clip_test
from tests.evaluation.views import lpips_test


def test_missing_files_are_named(tmp_path):
  with pytest.raises(
    weight_files.MissingWeights, match="no weights: vgg16.pth"
  ):
    weight_files.find(tmp_path, "vgg16")
  with pytest.raises(weight_files.MissingWeights, match="no folder of weights"):
    weight_files.find(None, "i3d")


def test_a_machine_without_network_scores_what_it_has(tmp_path, monkeypatch):
  def refuse(*unused_arguments, **unused_options):
    raise AssertionError("a socket was opened")

  monkeypatch.setattr(socket.socket, "connect", refuse)
  weights = tmp_path / "weights"
  weights.mkdir()
  trunk, heads = lpips_test.random_weights()
  safetensors_numpy.save_file(trunk, weights / "vgg16.safetensors")
  safetensors_numpy.save_file(heads, weights / "lpips_vgg.safetensors")
  clip_test.write_folder(weights / "clip-vit-base-patch32")
  truth = [shapes.body(1), shapes.body(2)]
  ply_obj.write_mesh_sequence(tmp_path / "truth", truth)
  ply_obj.write_mesh_sequence(tmp_path / "same", truth)
  protocol = protocol_table.find("views")
  protocol = evaluate.with_views(protocol, size=32, weights=str(weights))
  report = evaluate.evaluate(tmp_path / "same", tmp_path / "truth", protocol)
  values = {name: e.mean for name, e in report.estimates.items()}
  for name in ("lpips", "lpips_spatial", "lpips_normals"):
    assert values[name] == pytest.approx(0.0, abs=1e-9)
  assert values["clip_b32"] == pytest.approx(1.0)
  for name in ("clip_bigg", "dreamsim", "i3d_distance", "fvd"):
    assert np.isnan(values[name])
    assert "no weights: " in report.clips[0].notes[name]
  notes = "\n".join(scores.format_notes(report))
  assert "i3d_torchscript.pt (I3D of StyleGAN-V), not in" in notes
  document = scores.to_json({"a": report})
  found = document["methods"]["a"]["weights"]
  content = (weights / "vgg16.safetensors").read_bytes()
  assert found["vgg16"]["sha256"] == hashlib.sha256(content).hexdigest()
  assert found["vgg16"]["bytes"] == len(content)
  text = weight_files.describe(weights, report.weights)
  assert found["clip_b32"]["sha256"] in text
  assert text.count("missing") == 3
