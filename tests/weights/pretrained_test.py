"""Made-up checkpoints of many sizes, against a NumPy evaluation of them."""

import dataclasses
import json
import pathlib

from flax import nnx
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import tiny
from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.models import image_encoder
from sculpt4d_jax.models import networks
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.weights import checkpoint_sizes
from sculpt4d_jax.weights import export as weight_export
from sculpt4d_jax.weights import model_folders
from sculpt4d_jax.weights import pretrained
from sculpt4d_jax.weights import rule_files
from sculpt4d_jax.weights import rules as weight_rules
from sculpt4d_jax.weights.tensor_files import open_file
from tests.weights import hunyuan_checkpoints as checkpoints
from tests.weights import hunyuan_reference as reference

DIT = checkpoints.DiTSizes(
  depth=3, width=16, heads=2, channels=4, context=12, num_moe=1, experts=3
)
VAE = checkpoints.VAESizes(
  width=16, heads=2, channels=4, encoder_layers=1, decoder_layers=2, freqs=3
)
VIT = checkpoints.ViTSizes(width=12, layers=2, heads=3, image=28, patch=7)
TOLERANCE = 2e-5


def dit_config(s, **changes):
  values = dict(
    depth=s.depth,
    width=s.width,
    num_heads=s.heads,
    latent_channels=s.channels,
    context_width=s.context,
    mlp_ratio=s.mlp_ratio,
    num_moe_blocks=s.num_moe,
    num_experts=s.experts,
    num_experts_per_token=s.top_k,
    temporal_block_size=2,
  )
  return dit_lib.DiTConfig(**(values | changes))


def vae_config(s, **changes):
  values = dict(
    width=s.width,
    num_heads=s.heads,
    latent_channels=s.channels,
    num_encoder_layers=s.encoder_layers,
    num_decoder_layers=s.decoder_layers,
    num_freqs=s.freqs,
    point_feats=s.point_feats,
    num_latents=6,
  )
  return shape_vae.ShapeVAEConfig(**(values | changes))


def vit_config(s):
  return image_encoder.ImageEncoderConfig(
    width=s.width,
    num_layers=s.layers,
    num_heads=s.heads,
    image_size=s.image,
    patch_size=s.patch,
    mlp_ratio=s.mlp_ratio,
  )


CONFIGS = dict(
  dit=dit_config(DIT), vae=vae_config(VAE), image_encoder=vit_config(VIT)
)


def write_checkpoint(path, *, seed=0, dtype="float16", change=lambda s: s):
  """A file with all three networks; `change` edits its tensors."""
  shapes = checkpoints.whole(DIT, VAE, VIT)
  tensors = change(checkpoints.state(shapes, seed, dtype))
  shapes = {name: array.shape for name, array in tensors.items()}
  checkpoints.write_torch(path, shapes, tensors.items(), dtype=dtype)
  return tensors


def convert(
  path, folder, configs=None, *, dtype="float32", overwrite=False, **options
):
  conversion = pretrained.plan_conversion(
    [open_file.open_file(path)], configs or CONFIGS, **options
  )
  pretrained.write(conversion, folder, dtype=dtype, overwrite=overwrite)
  return conversion


def load(folder, name, config, **options):
  kind = {
    "dit": dit_lib.DiT,
    "vae": shape_vae.ShapeVAE,
    "image_encoder": image_encoder.ImageEncoder,
  }[name]
  abstract = nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))
  graphdef, params = nnx.split(abstract)
  params, _ = model_folders.load(folder, name, params, config, **options)
  return nnx.merge(graphdef, params)


def getter(tensors, prefix):
  return lambda name: tensors[prefix + name].astype(np.float32)


def random(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape, np.float32)


def assert_close(actual, expected, tolerance=TOLERANCE):
  scale = max(1.0, float(np.abs(expected).max()))
  np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
  """A converted checkpoint in float32, and the tensors it was made of."""
  folder = tmp_path_factory.mktemp("checkpoint")
  tensors = write_checkpoint(folder / "model.fp16.ckpt")
  convert(folder / "model.fp16.ckpt", folder / "out")
  return folder / "out", tensors


def check_dit(tmp_path, s, seed):
  """Converts a DiT of these sizes and compares one evaluation."""
  tensors = checkpoints.state(checkpoints.dit_shapes(s), seed, "float32")
  path = tmp_path / "dit.ckpt"
  shapes = {name: array.shape for name, array in tensors.items()}
  checkpoints.write_torch(path, shapes, tensors.items(), dtype="float32")
  config = dit_config(s)
  convert(path, tmp_path / "out", {"dit": config})
  model = load(tmp_path / "out", "dit", config)
  x, context = random(2, 6, s.channels, seed=1), random(2, 5, s.context, seed=2)
  time = np.array([0.3, 0.9], np.float32)
  expected = reference.dit(getter(tensors, ""), s, x, time, context)
  out = nnx.jit(lambda m, *inputs: m(*inputs).velocity)(
    model, jnp.asarray(x)[:, None], jnp.asarray(time), context[:, None]
  )
  assert_close(out[:, 0], expected)


@pytest.mark.parametrize(
  "changes",
  [
    dict(depth=4, num_moe=2, heads=4, experts=2, top_k=1),  # Even depth.
    dict(depth=2, num_moe=0, width=24, heads=3, context=8),  # No experts.
    dict(depth=1, num_moe=1, experts=5, top_k=3, heads=1, channels=3),
  ],
  ids=["even", "dense", "single"],
)
def test_dit_of_any_size(tmp_path, changes):
  check_dit(tmp_path, dataclasses.replace(DIT, **changes), seed=7)


@pytest.mark.sweep
@pytest.mark.slow  # Compiles a network for each.
@pytest.mark.parametrize("seed", range(12))
def test_dit_of_random_sizes(tmp_path, seed):
  rng = np.random.default_rng(seed)
  heads = int(rng.integers(1, 5))
  depth = int(rng.integers(1, 9))
  experts = int(rng.integers(1, 7))
  sizes = checkpoints.DiTSizes(
    depth=depth,
    width=heads * 2 * int(rng.integers(2, 9)),
    heads=heads,
    channels=int(rng.integers(1, 9)),
    context=int(rng.integers(1, 20)),
    num_moe=int(rng.integers(0, depth + 1)),
    experts=experts,
    top_k=int(rng.integers(1, experts + 1)),
    mlp_ratio=int(rng.integers(1, 5)),
  )
  check_dit(tmp_path, sizes, seed)


@pytest.mark.parametrize(
  "changes", [{}, dict(heads=4, freqs=8, encoder_layers=2, point_feats=3)]
)
def test_vae_of_any_size(tmp_path, changes):
  s = dataclasses.replace(VAE, **changes)
  tensors = checkpoints.state(checkpoints.vae_shapes(s), 3)
  path = tmp_path / "vae.pt"
  shapes = {name: array.shape for name, array in tensors.items()}
  checkpoints.write_torch(path, shapes, tensors.items())
  config = vae_config(s)
  convert(path, tmp_path / "out", {"vae": config})
  vae = load(tmp_path / "out", "vae", config)
  get = getter(tensors, "")
  rows = random(2, 40, 3 + s.point_feats, seed=1)
  rows[:, 30:, -1] = 1  # Sharp-edge points.
  rows[:, :30, -1] = 0
  queries = rows[:, [1, 5, 9, 31, 35, 39]]
  posterior = nnx.jit(lambda m, *a: m.encode(*a))(vae, rows, queries)
  mean, log_variance = np.split(
    reference.vae_encode(get, s, rows, queries), 2, -1
  )
  assert_close(posterior.mean, mean)
  assert_close(posterior.log_variance, np.clip(log_variance, -30, 20))
  latents, points = random(2, 6, s.channels), random(2, 9, 3, seed=4)
  field = nnx.jit(lambda m, z, p: m.query_field(m.decode(z), p))(
    vae, latents, points
  )
  assert_close(field, reference.vae_field(get, s, latents, points))


@pytest.mark.parametrize("changes", [{}, dict(heads=2, patch=14, layers=1)])
def test_image_encoder_of_any_size(tmp_path, changes):
  s = dataclasses.replace(VIT, **changes)
  tensors = checkpoints.state(checkpoints.vit_shapes(s), 5)
  path = tmp_path / "pytorch_model.bin"
  shapes = {name: array.shape for name, array in tensors.items()}
  checkpoints.write_torch(path, shapes, tensors.items())
  config = vit_config(s)
  convert(path, tmp_path / "out", {"image_encoder": config})
  encoder = load(tmp_path / "out", "image_encoder", config)
  images = np.tanh(random(2, s.image, s.image, 3))
  pixels = image_encoder.to_pixels(
    images, s.image, config.pixel_mean, config.pixel_std
  )
  expected = reference.vit(
    getter(tensors, ""), s, np.moveaxis(np.asarray(pixels), -1, 1)
  )
  assert_close(nnx.jit(lambda m, x: m(x))(encoder, images), expected)


def test_one_file_fills_all_networks(converted):
  folder, tensors = converted
  description = json.loads((folder / "sculpt4d.json").read_text())
  assert list(description["parts"]) == ["dit", "vae", "image_encoder"]
  dit = load(folder, "dit", CONFIGS["dit"])
  x, context = random(1, 6, 4), random(1, 5, 12, seed=2)
  time = np.array([0.4], np.float32)
  expected = reference.dit(getter(tensors, "model."), DIT, x, time, context)
  frames = lambda a: jnp.broadcast_to(a, (1, 3, *a.shape[1:]))
  out = nnx.jit(lambda m, *a: m(*a).velocity)(
    dit, frames(x), jnp.asarray(time), frames(context)
  )
  # Temporal attention starts from an output of zero: all frames are the same.
  for frame in range(3):
    assert_close(out[0, frame], expected[0])


def test_orbax_itself_restores_the_result(converted):
  folder, tensors = converted
  restored = ocp.StandardCheckpointer().restore((folder / "vae").absolute())
  np.testing.assert_array_equal(
    restored["latents_proj.kernel"],
    tensors["vae.post_kl.weight"].T.astype(np.float32),
  )
  assert len(restored) == len(model_folders.open_parts(folder)["vae"].shapes)


def test_temporal_attention_is_initialised_and_reported(tmp_path):
  path = tmp_path / "a.ckpt"
  write_checkpoint(path)
  conversion = convert(path, tmp_path / "out", seed=3)
  lines = "\n".join(conversion.describe())
  assert "stages.0.temporal_attention.out.kernel" in lines
  assert "initialised with zeros" in lines
  assert "output projection" in "\n".join(conversion.summary())
  dit = load(tmp_path / "out", "dit", CONFIGS["dit"])
  params = weight_rules.params_by_path(dit)
  for path_, value in params.items():
    if ".temporal_attention.query.kernel" in path_:
      assert np.abs(value).max() > 0.01
    if ".temporal_attention.out." in path_:
      assert not np.asarray(value).any()
  other = tmp_path / "other"
  convert(path, other, seed=4)
  again = weight_rules.params_by_path(load(other, "dit", CONFIGS["dit"]))
  name = "stages.0.temporal_attention.query.kernel"
  assert not np.array_equal(params[name], again[name])
  np.testing.assert_array_equal(
    params["final_linear.kernel"], again["final_linear.kernel"]
  )


def test_a_per_frame_model_takes_no_temporal_layers(converted):
  folder, _ = converted
  config = dataclasses.replace(CONFIGS["dit"], temporal_mode="none")
  dit = load(folder, "dit", config)
  assert not any("temporal" in p for p in weight_rules.param_shapes(dit))


def test_dry_run_names_every_tensor(tmp_path):
  tensors = write_checkpoint(tmp_path / "a.ckpt")
  conversion = pretrained.plan_conversion(
    [open_file.open_file(tmp_path / "a.ckpt")], CONFIGS
  )
  lines = list(conversion.describe())
  for name in tensors:
    assert any(line.startswith(f"  {name} ") for line in lines), name
  assert any(
    "model.blocks.0.attn1.to_q.weight float16 [16, 16] -> "
    "stages.0.spatial_attention.query.kernel[0] [16, 2, 8]"
    in line
    and "regroup rows head by head" in line
    for line in lines
  )


def test_bfloat16_is_rounded_once(tmp_path):
  tensors = write_checkpoint(tmp_path / "a.ckpt")
  convert(tmp_path / "a.ckpt", tmp_path / "out", dtype="bfloat16")
  vae = load(tmp_path / "out", "vae", CONFIGS["vae"])
  kernel = vae.latents_proj.kernel[...]
  assert kernel.dtype == jnp.bfloat16
  expected = tensors["vae.post_kl.weight"].T.astype(jnp.bfloat16)
  np.testing.assert_array_equal(kernel, expected)
  vae = load(tmp_path / "out", "vae", CONFIGS["vae"], dtype="float32")
  assert vae.latents_proj.kernel[...].dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_there_and_back(tmp_path, dtype):
  shapes = checkpoints.whole(DIT, VAE, VIT)
  kind = jnp.bfloat16 if dtype == "bfloat16" else dtype
  tensors = checkpoints.state(shapes, 1, kind)
  path = tmp_path / "a.ckpt"
  checkpoints.write_torch(path, shapes, tensors.items(), dtype=dtype)
  convert(path, tmp_path / "out")
  back = tmp_path / "back.safetensors"
  weight_export.export(tmp_path / "out", back, with_temporal=False)
  file = open_file.open_file(back)
  assert file.tensors.keys() == tensors.keys()
  for name, tensor in tensors.items():
    array = file.read(name)
    assert array.dtype == np.float32
    if not name.endswith("mask_token"):
      np.testing.assert_array_equal(array, tensor.astype(np.float32), name)
  # What was exported is a checkpoint like any other.
  conversion = convert(back, tmp_path / "again")
  assert "dit" in {part.name for part in conversion.parts}


def test_temporal_attention_goes_there_and_back(tmp_path, converted):
  folder, _ = converted
  path = tmp_path / "ours.safetensors"
  names = weight_export.export(folder, path)
  assert "model.blocks.2.attn_temporal.to_q.weight" in names
  conversion = convert(path, tmp_path / "again")
  assert not any(part.plan.unfilled for part in conversion.parts)
  old, new = (
    weight_rules.params_by_path(load(f, "dit", CONFIGS["dit"]))
    for f in (folder, tmp_path / "again")
  )
  for name, value in old.items():
    np.testing.assert_array_equal(value, new[name], err_msg=name)


def test_shipped_weights_go_there_and_back(tmp_path):
  """The small model through the published names, scale of latents included."""
  folder = pathlib.Path(__file__).resolve().parents[2] / "weights" / "tiny"
  path = tmp_path / "tiny.safetensors"
  weight_export.export(folder, path)
  configs = {
    name: kind[1](**tiny.get_config().model[name])
    for name, kind in networks.KINDS.items()
  }
  convert(path, tmp_path / "out", configs)
  old = model_folders.open_parts(folder)
  new = model_folders.open_parts(tmp_path / "out")
  for name, part in old.items():
    assert part.shapes == new[name].shapes
    for key in part.shapes:
      np.testing.assert_array_equal(
        part.read(key).astype(np.float32), new[name].read(key), err_msg=key
      )
  scale = old["vae"].details["scale_factor"]
  assert new["vae"].details["scale_factor"] == scale


def test_sizes_are_read_off_the_shapes():
  for part, shapes, config in (
    ("dit", checkpoints.dit_shapes(DIT), CONFIGS["dit"]),
    ("vae", checkpoints.vae_shapes(VAE), CONFIGS["vae"]),
    ("image_encoder", checkpoints.vit_shapes(VIT), CONFIGS["image_encoder"]),
  ):
    tensors = {n: np.broadcast_to(0, s) for n, s in shapes.items()}
    for field, value in checkpoint_sizes.infer(part, tensors).items():
      assert getattr(config, field) == value, field
    assert checkpoint_sizes.differences(part, tensors, config) == ""
  released = checkpoint_sizes.infer(
    "dit",
    {
      n: np.broadcast_to(0, s)
      for n, s in checkpoints.dit_shapes(checkpoints.DiTSizes()).items()
    },
  )
  assert released["depth"] == 21 and released["num_heads"] == 16
  assert released["num_moe_blocks"] == 6 and released["num_experts"] == 8


def test_a_wrong_size_is_told_with_the_flags_that_set_it_right(tmp_path):
  write_checkpoint(tmp_path / "a.ckpt")
  configs = CONFIGS | {"dit": dataclasses.replace(CONFIGS["dit"], depth=5)}
  with pytest.raises(ValueError, match=r"model\.dit\.depth=3"):
    pretrained.plan_conversion(
      [open_file.open_file(tmp_path / "a.ckpt")], configs
    )


def test_config_files_beside_the_weights_are_compared(tmp_path):
  path = tmp_path / "a.ckpt"
  write_checkpoint(path)
  (tmp_path / "config.yaml").write_text("model:\n  params:\n    moe_top_k: 1\n")
  file = open_file.open_file(path)
  with pytest.raises(ValueError, match="num_experts_per_token is 1 there"):
    pretrained.plan_conversion([file], CONFIGS)
  (tmp_path / "config.yaml").unlink()
  (tmp_path / "config.json").write_text('{"num_attention_heads": 6}')
  with pytest.raises(ValueError, match="num_heads is 6 there"):
    pretrained.plan_conversion([file], CONFIGS)


def test_rules_of_a_user(tmp_path):
  """Prefixes, renames, ignored names and own rules, in JSON and TOML."""

  def change(tensors):
    renamed = {}
    for name, tensor in tensors.items():
      name = name.replace("model.x_embedder", "model.embed_latents")
      renamed[name.replace("vae.", "autoencoder/", 1)] = tensor
    renamed["model.ema_decay"] = np.ones((1,), np.float16)
    return renamed

  path = tmp_path / "a.ckpt"
  write_checkpoint(path, change=change)
  content = {
    "rules": [
      {
        "part": "dit",
        "sources": "embed_latents.weight",
        "targets": "latent_embedding.kernel",
        "transform": "linear",
      },
      {
        "part": "dit",
        "sources": "embed_latents.bias",
        "targets": "latent_embedding.bias",
      },
    ],
    "rename": [{"from": "^autoencoder/", "to": "vae."}],
    "ignore": ["ema_decay"],
  }
  rules = tmp_path / "rules.json"
  rules.write_text(json.dumps(content))
  convert(path, tmp_path / "out", rules=rule_files.read(rules))
  load(tmp_path / "out", "dit", CONFIGS["dit"])
  toml = tmp_path / "rules.toml"
  toml.write_text('ignore = ["x"]\n[[rename]]\nfrom = "a"\nto = "b"\n')
  assert rule_files.read(toml).rename("cat") == "cbt"
  for text, reason in (
    ("{", "no valid JSON"),
    ('{"rule": []}', "unknown"),
    ('{"rules": [{"part": "dit"}]}', "lacks"),
    (
      '{"rules": [{"part": "dit", "sources": "a", "targets": "b",'
      ' "transform": "magic"}]}',
      "magic",
    ),
  ):
    rules.write_text(text)
    with pytest.raises(ValueError, match=reason):
      rule_files.read(rules)
