"""The image encoder against Hugging Face's DINOv2, saved as it saves it."""

from flax import nnx
import numpy as np
import pytest

from sculpt4d_jax.models import image_encoder
from sculpt4d_jax.weights import export as weight_export
from sculpt4d_jax.weights import model_folders
from sculpt4d_jax.weights import pretrained
from sculpt4d_jax.weights.tensor_files import open_file

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip(
  "transformers", reason="transformers is not installed"
)

SIZES = [
  dict(width=24, layers=2, heads=3, patch=7, image=42, ratio=4),
  dict(width=32, layers=3, heads=2, patch=14, image=56, ratio=2),
  # Heads and depth of base and giant, narrow.
  dict(width=48, layers=12, heads=12, patch=14, image=28, ratio=4),
]


def make(sizes, seed=0):
  """A random DINOv2 of transformers, nothing in it zero or one."""
  torch.manual_seed(seed)
  config = transformers.Dinov2Config(
    hidden_size=sizes["width"],
    num_hidden_layers=sizes["layers"],
    num_attention_heads=sizes["heads"],
    patch_size=sizes["patch"],
    image_size=sizes["image"],
    mlp_ratio=sizes["ratio"],
  )
  model = transformers.Dinov2Model(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  return model


def encoder_config(sizes):
  return image_encoder.ImageEncoderConfig(
    image_size=sizes["image"],
    patch_size=sizes["patch"],
    width=sizes["width"],
    num_layers=sizes["layers"],
    num_heads=sizes["heads"],
    mlp_ratio=sizes["ratio"],
  )


def convert(folder, output, config):
  files = [open_file.open_file(path) for path in open_file.find_files(folder)]
  conversion = pretrained.plan_conversion(files, {"image_encoder": config})
  pretrained.write(conversion, output, dtype="float32")
  abstract = nnx.eval_shape(
    lambda: image_encoder.ImageEncoder(config, rngs=nnx.Rngs(0))
  )
  graphdef, state = nnx.split(abstract)
  state, _ = model_folders.load(output, "image_encoder", state, config)
  return nnx.merge(graphdef, state)


@pytest.mark.parametrize("layout", ["safetensors", "shards", "bin"])
@pytest.mark.parametrize("sizes", SIZES, ids=["wide", "low", "deep"])
def test_equals_transformers(tmp_path, sizes, layout):
  model, folder = make(sizes), tmp_path / "hub"
  if layout == "bin":
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    model.config.save_pretrained(folder)
  else:
    shard = "20KB" if layout == "shards" else "5GB"
    model.save_pretrained(folder, max_shard_size=shard)
  assert (folder / "model.safetensors.index.json").exists() == (
    layout == "shards"
  )
  config = encoder_config(sizes)
  encoder = convert(folder, tmp_path / "out", config)
  images = (
    np.random.default_rng(0)
    .uniform(-1, 1, (2, sizes["image"], sizes["image"], 3))
    .astype(np.float32)
  )
  pixels = np.asarray(
    image_encoder.to_pixels(
      images, sizes["image"], config.pixel_mean, config.pixel_std
    )
  )
  with torch.no_grad():
    expected = model(
      torch.from_numpy(np.moveaxis(pixels, -1, 1).copy())
    ).last_hidden_state.numpy()
  actual = nnx.jit(lambda m, x: m(x))(encoder, images)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * scale)


def test_transformers_loads_what_is_exported(tmp_path):
  """Work done here can go back."""
  sizes = SIZES[0]
  model = make(sizes)
  model.save_pretrained(tmp_path / "hub")
  convert(tmp_path / "hub", tmp_path / "out", encoder_config(sizes))
  path = tmp_path / "back.safetensors"
  weight_export.export(tmp_path / "out", path)
  file = open_file.open_file(path)
  prefix = weight_export.PREFIXES["image_encoder"]
  assert all(name.startswith(prefix) for name in file.tensors)
  again = transformers.Dinov2Model(model.config).eval()
  state = {
    name.removeprefix(prefix): torch.from_numpy(file.read(name).copy())
    for name in file.tensors
  }
  if any(".q_proj." in name for name in again.state_dict()):
    # Version 5 has new names; exports have those that Hunyuan3D 2.1 stores.
    for old, new in (
      ("attention.attention.query", "attention.q_proj"),
      ("attention.attention.key", "attention.k_proj"),
      ("attention.attention.value", "attention.v_proj"),
      ("attention.output.dense", "attention.o_proj"),
    ):
      state = {name.replace(old, new): t for name, t in state.items()}
  again.load_state_dict(state)
  pixels = torch.randn(1, 3, sizes["image"], sizes["image"])
  with torch.no_grad():
    np.testing.assert_allclose(
      again(pixels).last_hidden_state, model(pixels).last_hidden_state
    )
