import json

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from sculpt4d_jax.evaluation.views import clip

CONFIG = {
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "image_size": 32,
  "patch_size": 8,
  "projection_dim": 24,
  "hidden_act": "quick_gelu",
}


def random_tensors(seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(scale=0.2, size=shape).astype(np.float32)
  width, hidden = 32, 48
  tensors = {
    "visual_projection.weight": draw(24, width),
    "vision_model.embeddings.class_embedding": draw(width),
    "vision_model.embeddings.patch_embedding.weight": draw(width, 3, 8, 8),
    "vision_model.embeddings.position_embedding.weight": draw(17, width),
  }
  sizes = {"pre_layrnorm": None, "post_layernorm": None}
  for i in range(2):
    layer = f"encoder.layers.{i}"
    sizes |= {f"{layer}.layer_norm1": None, f"{layer}.layer_norm2": None}
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
      sizes[f"{layer}.self_attn.{name}"] = (width, width)
    sizes[f"{layer}.mlp.fc1"] = (hidden, width)
    sizes[f"{layer}.mlp.fc2"] = (width, hidden)
  for name, shape in sizes.items():
    shape = shape or (width,)
    tensors[f"vision_model.{name}.weight"] = draw(*shape)
    tensors[f"vision_model.{name}.bias"] = draw(shape[0])
  return tensors


def write_folder(path):
  path.mkdir()
  (path / "config.json").write_text(json.dumps({"vision_config": CONFIG}))
  safetensors_numpy.save_file(random_tensors(), path / "model.safetensors")
  return path


def pictures(count=3, seed=1):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, 40, 40, 3), np.uint8)


def forward(tensors, x):
  """The transformer in NumPy for one prepared picture [32, 32, 3]."""
  take = lambda name: tensors[f"vision_model.{name}"].astype(np.float64)

  def norm(name, y):
    y = y - y.mean(-1, keepdims=True)
    y = y / np.sqrt(np.square(y).mean(-1, keepdims=True) + 1e-5)
    return y * take(f"{name}.weight") + take(f"{name}.bias")

  def linear(name, y):
    return y @ take(f"{name}.weight").T + take(f"{name}.bias")

  kernel = take("embeddings.patch_embedding.weight")
  patches = x.astype(np.float64).reshape(4, 8, 4, 8, 3)
  patches = np.einsum("iajbc,dcab->ijd", patches, kernel).reshape(16, 32)
  y = np.concatenate([take("embeddings.class_embedding")[None], patches])
  y = norm("pre_layrnorm", y + take("embeddings.position_embedding.weight"))
  for i in range(2):
    layer = f"encoder.layers.{i}"
    z = norm(f"{layer}.layer_norm1", y)
    q, k, v = (
      linear(f"{layer}.self_attn.{n}_proj", z).reshape(17, 4, 8) for n in "qkv"
    )
    scores = np.einsum("qhk,shk->hqs", q, k) / np.sqrt(8)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    z = np.einsum("hqs,shk->qhk", weights, v).reshape(17, 32)
    y = y + linear(f"{layer}.self_attn.out_proj", z)
    z = linear(f"{layer}.mlp.fc1", norm(f"{layer}.layer_norm2", y))
    z = z / (1 + np.exp(-1.702 * z))
    y = y + linear(f"{layer}.mlp.fc2", z)
  out = norm("post_layernorm", y[0]) @ tensors["visual_projection.weight"].T
  return out / np.linalg.norm(out)


def test_equals_the_transformer_in_numpy(tmp_path):
  network = clip.Clip.load(write_folder(tmp_path / "clip"))
  images = pictures()
  found = network(images)
  prepared = clip.preprocess(images, 32)
  for embedding, image in zip(found, prepared):
    expected = forward(random_tensors(), image)
    np.testing.assert_allclose(embedding, expected, atol=1e-5)
  np.testing.assert_allclose(np.sum(found * found, 1), 1.0)


def test_missing_and_damaged_files_are_named(tmp_path):
  folder = write_folder(tmp_path / "clip")
  tensors = random_tensors()
  del tensors["vision_model.encoder.layers.1.mlp.fc2.bias"]
  safetensors_numpy.save_file(tensors, folder / "model.safetensors")
  with pytest.raises(ValueError, match="lack .*layers.1.mlp.fc2.bias"):
    clip.Clip.load(folder)
  (folder / "config.json").write_text("{")
  with pytest.raises(ValueError, match="config.json is not a readable JSON"):
    clip.Clip.load(folder)


def test_equals_transformers(tmp_path):
  transformers = pytest.importorskip(
    "transformers", reason="needs the extra `test-torch`"
  )
  torch = pytest.importorskip("torch", reason="needs the extra `test-torch`")
  torch.manual_seed(0)
  config = transformers.CLIPVisionConfig(**CONFIG)
  model = transformers.CLIPVisionModelWithProjection(config).eval()
  model.save_pretrained(tmp_path / "clip")
  images = pictures()
  # The processor by PIL; the one by torchvision rounds otherwise.
  kind = getattr(
    transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor
  )
  processor = kind(
    size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
  )
  values = processor(images=list(images), return_tensors="np")["pixel_values"]
  prepared = clip.preprocess(images, 32).transpose(0, 3, 1, 2)
  np.testing.assert_allclose(prepared, np.asarray(values), atol=1e-6)
  with torch.no_grad():
    pixels = torch.from_numpy(prepared)
    expected = model(pixel_values=pixels).image_embeds.numpy()
  expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  found = clip.Clip.load(tmp_path / "clip")(images)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  # A picture with itself.
  np.testing.assert_allclose(np.sum(found * found, 1), 1.0, atol=1e-6)
