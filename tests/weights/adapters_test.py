"""LoRA adapters in the names of PEFT, diffusers and kohya."""

import json

import numpy as np
import pytest
import safetensors.numpy

from sculpt4d_jax.weights.tensor_files import tensor_file
from tests.weights import training_files_test as files

RANK = 4
LAYERS = {
  "blocks.0.attn1.to_q": (16, 16),
  "blocks.1.attn2.to_k": (16, 12),
  "blocks.2.moe.experts.1.net.2": (16, 64),
}


def halves(seed=5):
  rng = np.random.default_rng(seed)
  return {
    layer: (
      rng.standard_normal((RANK, inputs), np.float32),
      rng.standard_normal((outputs, RANK), np.float32),
    )
    for layer, (outputs, inputs) in LAYERS.items()
  }


def save(path, tensors, metadata=None):
  path.parent.mkdir(exist_ok=True)
  arrays = {n: np.ascontiguousarray(a) for n, a in tensors.items()}
  safetensors.numpy.save_file(arrays, path, metadata)
  return path


def adapter_names(name, down, up, layers=LAYERS):
  """The tensors of adapters; `name` turns a layer into what it is called."""
  tensors = {}
  for layer in layers:
    a, b = halves()[layer]
    tensors[f"{name(layer)}.{down}.weight"] = a
    tensors[f"{name(layer)}.{up}.weight"] = b
  return tensors


def peft(layers=LAYERS):
  prefix = "base_model.model."
  return adapter_names(lambda n: prefix + n, "lora_A", "lora_B", layers)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  folder = tmp_path_factory.mktemp("base")
  return files.write(folder / "dit.safetensors", files.dit_tensors())


def expected(folder, scale):
  """The arrays of a checkpoint into which the adapters were merged."""
  scales = scale if isinstance(scale, dict) else dict.fromkeys(LAYERS, scale)
  tensors = files.dit_tensors()
  for layer, (a, b) in halves().items():
    tensors[f"{layer}.weight"] += np.float32(scales[layer]) * (b @ a)
  path = files.write(folder / "merged.safetensors", tensors)
  return files.converted(folder / "merged", path)[0]


def assert_close(actual, wanted):
  assert actual.keys() == wanted.keys()
  for name, array in wanted.items():
    np.testing.assert_allclose(
      actual[name], array, rtol=0, atol=2e-6, err_msg=name
    )


def write_config(path, **settings):
  config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8} | settings
  (path.parent / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
  "settings, scale",
  [
    ({}, 8 / 4),
    ({"lora_alpha": 3}, 3 / 4),
    ({"use_rslora": True}, 8 / 2),
    (
      {"alpha_pattern": {"to_q": 2}},
      dict.fromkeys(LAYERS, 2.0) | {"blocks.0.attn1.to_q": 0.5},
    ),
  ],
  ids=["alpha", "other alpha", "rank-stabilised", "pattern"],
)
def test_adapters_of_peft(tmp_path, base, settings, scale):
  path = save(tmp_path / "lora" / "adapter_model.safetensors", peft())
  write_config(path, **settings)
  arrays, made = files.converted(tmp_path / "out", base, path.parent)
  assert_close(arrays, expected(tmp_path, scale))
  (note,) = made.notes
  assert "3 layers" in note and "rank 4" in note
  # Adapters change the result at all.
  plain, _ = files.converted(tmp_path / "plain", base)
  assert any(np.abs(arrays[n] - plain[n]).max() > 0.1 for n in plain)


@pytest.mark.parametrize(
  "name, down, up",
  [
    (lambda n: "transformer." + n, "lora_A", "lora_B"),
    (lambda n: "unet." + n, "lora.down", "lora.up"),
    (lambda n: "lora_unet_" + n.replace(".", "_"), "lora_down", "lora_up"),
  ],
  ids=["diffusers", "old diffusers", "kohya"],
)
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_adapters_of_diffusers_and_kohya(tmp_path, base, name, down, up, alpha):
  """Without alpha the scale is one, by their loaders' rule."""
  tensors = adapter_names(name, down, up)
  if alpha is not None:
    for layer in LAYERS:
      tensors[f"{name(layer)}.alpha"] = np.float32(alpha)
  path = save(tmp_path / "pytorch_lora_weights.safetensors", tensors)
  arrays, _ = files.converted(tmp_path / "out", base, path)
  scale = 1 if alpha is None else alpha / RANK
  assert_close(arrays, expected(tmp_path, scale))


def test_alpha_in_the_metadata_of_diffusers(tmp_path, base):
  tensors = adapter_names(lambda n: "transformer." + n, "lora_A", "lora_B")
  metadata = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 2})
  path = save(
    tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": metadata}
  )
  arrays, _ = files.converted(tmp_path / "out", base, path)
  assert_close(arrays, expected(tmp_path, 0.5))


def together():
  """Base and adapters in one file, as a PEFT model's state dict has them."""
  prefix = "base_model.model."
  tensors = {}
  for name, array in files.dit_tensors().items():
    layer, _, kind = name.rpartition(".")
    changed = f"{layer}.base_layer.{kind}" if layer in LAYERS else name
    tensors[prefix + changed] = array
  return tensors | adapter_names(
    lambda n: prefix + n, "lora_A.default", "lora_B.default"
  )


def test_base_and_adapters_in_one_file(tmp_path):
  path = save(tmp_path / "a" / "both.safetensors", together())
  with pytest.raises(tensor_file.CheckpointError, match="adapter_alpha") as e:
    files.plan(path)
  assert len(str(e.value).splitlines()) == 1
  arrays, _ = files.converted(tmp_path / "out", path, adapter_alpha=8)
  assert_close(arrays, expected(tmp_path, 2))
  write_config(path)
  arrays, _ = files.converted(tmp_path / "again", path)
  assert_close(arrays, expected(tmp_path / "a", 2))


def test_layers_trained_whole_replace_the_bases(tmp_path, base):
  bias = np.arange(16, dtype=np.float32)
  tensors = peft() | {"base_model.model.x_embedder.bias": bias}
  path = save(tmp_path / "lora" / "adapter_model.safetensors", tensors)
  write_config(path)
  arrays, _ = files.converted(tmp_path / "out", base, path)
  np.testing.assert_array_equal(arrays["latent_embedding.bias"], bias)


def refused(match, *sources):
  with pytest.raises(tensor_file.CheckpointError, match=match) as error:
    files.plan(*sources)
  assert len(str(error.value).splitlines()) == 1


def test_what_does_not_fit_is_refused(tmp_path, base):
  path = save(tmp_path / "lora" / "adapter_model.safetensors", peft())
  refused("alpha", base, path)
  write_config(path)
  refused("--source=WEIGHTS,ADAPTERS", path)
  write_config(path, use_dora=True)
  refused("DoRA.*merge_and_unload", base, path)
  write_config(path, peft_type="LOHA")
  refused("LOHA", base, path)
  (path.parent / "adapter_config.json").write_text("{")
  refused("does not describe an adapter", base, path)
  write_config(path)
  odd = dict(peft())
  odd.popitem()
  refused("one half", base, save(path, odd))
  far = {n.replace("blocks.1", "blocks.9"): a for n, a in peft().items()}
  refused("1 of 3 layers.*another network", base, save(path, far))
  wide = {
    n: np.concatenate([a, a]) if n.endswith("to_q.lora_B.weight") else a
    for n, a in peft().items()
  }
  refused(r"\(32, 16\).*another network", base, save(path, wide))
  magnitude = {
    "base_model.model.blocks.0.attn1.to_q.lora_magnitude_vector": np.ones(16)
  }
  refused("another kind", base, save(path, peft() | magnitude))
  two = peft() | adapter_names(
    lambda n: "base_model.model." + n, "lora_A.style", "lora_B.style"
  )
  refused("several adapters", base, save(path, two))
