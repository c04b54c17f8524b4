"""Settings that save memory change nothing; converted checkpoints sample."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import baselines
from sculpt4d_jax.geometry import placement as placement_lib
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.models import networks
from sculpt4d_jax.models import streaming
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights import pretrained
from sculpt4d_jax.weights.tensor_files import open_file
from tests.integration import micro
from tests.weights import hunyuan_checkpoints as checkpoints

FRAMES = 3


def sizes(config):
  """A micro preset as the sizes of a released checkpoint."""
  d, v, e = (config.model[n] for n in ("dit", "vae", "image_encoder"))
  return (
    checkpoints.DiTSizes(
      depth=d.depth,
      width=d.width,
      heads=d.num_heads,
      channels=d.latent_channels,
      context=d.context_width,
      num_moe=d.num_moe_blocks,
      experts=d.num_experts,
    ),
    checkpoints.VAESizes(
      width=v.width,
      heads=v.num_heads,
      channels=v.latent_channels,
      encoder_layers=v.num_encoder_layers,
      decoder_layers=v.num_decoder_layers,
      freqs=v.num_freqs,
      point_feats=v.point_feats,
    ),
    checkpoints.ViTSizes(
      width=e.width,
      layers=e.num_layers,
      heads=e.num_heads,
      image=e.image_size,
      patch=e.patch_size,
    ),
  )


def get_config():
  config = micro.get_config()
  config.model.vae.field_mlp_ratio = 4  # As released.
  return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A converted checkpoint of the micro size, in bfloat16."""
  place = tmp_path_factory.mktemp("converted")
  shapes = checkpoints.whole(*sizes(get_config()))
  path = place / "model.ckpt"
  checkpoints.write_torch(path, shapes, checkpoints.values(shapes))
  configs = {
    name: kind[1](**get_config().model[name])
    for name, kind in networks.KINDS.items()
  }
  pretrained.write(
    pretrained.plan_conversion([open_file.open_file(path)], configs),
    place / "weights",
  )
  return place / "weights"


@pytest.fixture(scope="module")
def model(folder):
  return model_lib.Sculpt4D.load(
    preset_lib.from_config(get_config()).model, folder
  )


def sampling(**changes):
  values = get_config().sampling.to_dict() | dict(num_frames=FRAMES)
  return model_lib.SamplingConfig(**(values | changes))


@pytest.fixture(scope="module")
def images():
  side = get_config().model.image_encoder.image_size
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (FRAMES, side, side, 3), np.uint8)


@pytest.fixture(scope="module")
def latents(model, images):
  return model.sample(images, sampling())


@pytest.mark.parametrize(
  "changes",
  [
    dict(guidance_in_turns=True),
    pytest.param(
      dict(guidance_in_turns=True, cache_context=False),
      marks=pytest.mark.slow,  # Compiles the sampler once more.
    ),
  ],
)
def test_less_memory_same_latents(model, images, latents, changes):
  other = model.sample(images, sampling(**changes))
  np.testing.assert_allclose(other, latents, atol=2e-5)


def test_temperature_scales_the_noise(model, images):
  context = model.encode(images)[None]
  noise = np.asarray(model.draw_noise(0, FRAMES))[None]
  np.testing.assert_array_equal(
    model.denoise(context, noise, sampling(temperature=0.5)),
    model.denoise(context, 0.5 * noise, sampling()),
  )


def test_seeds_agree_without_noise(model, images, latents):
  first, second = (
    model.sample(images, sampling(temperature=0.0, seed=seed))
    for seed in (1, 2)
  )
  np.testing.assert_array_equal(first, second)
  assert np.abs(first - latents).max() > 0.01


def test_offloaded_networks_stay_on_the_host(folder, images, latents):
  model = model_lib.Sculpt4D.load(
    preset_lib.from_config(get_config()).model,
    folder,
    sampling=sampling(offload=True),
  )
  on_host = lambda tree: all(
    isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree)
  )
  assert on_host(model._vae) and on_host(model._encoder)
  assert not on_host(model._dit)
  again = model.sample(images, sampling())
  np.testing.assert_allclose(again, latents, atol=1e-6)
  values = model.field(latents[0])(np.zeros((4, 3), np.float32))
  assert np.isfinite(values).all()
  # All frames share one copy, which the next clip's denoising does not keep.
  placed = model._placed_vae
  model.field(latents[1])
  assert model._placed_vae is placed and not on_host(placed)
  model.sample(images, sampling())
  assert model._placed_vae is None


def test_streamed_layers_stay_on_the_host(folder, images, latents):
  model = model_lib.Sculpt4D.load(
    preset_lib.from_config(get_config()).model,
    folder,
    sampling=sampling(stream_layers=True),
  )
  kinds = lambda: {
    streaming.is_streamed(path): leaf.sharding.memory_kind
    for path, leaf in jax.tree_util.tree_leaves_with_path(model._dit)
  }
  assert kinds() == {True: "pinned_host", False: "device"}
  # The placement, not the field, decides.
  again = model.sample(images, sampling(skips_on_host=True))
  np.testing.assert_allclose(again, latents, atol=2e-5)
  model.set_weights(model._encoder, jax.device_get(model._dit))
  assert kinds() == {True: "pinned_host", False: "device"}


def test_eight_bit_weights_are_those_that_were_loaded(
  model, folder, images, latents
):
  with pytest.raises(ValueError, match="load the model with sampling.weights"):
    model.sample(images, sampling(weights="int8"))
  packed = model_lib.Sculpt4D.load(
    preset_lib.from_config(get_config()).model,
    folder,
    sampling=sampling(weights="int8"),
  )
  difference = np.abs(packed.sample(images, sampling(weights="int8")) - latents)
  assert 0 < difference.mean() < 0.05 * np.abs(latents).mean()


def test_frames_are_encoded_a_few_at_a_time(model, images, monkeypatch):
  encode = jax.jit(model._encode_impl)
  whole = encode(model._encoder, images)
  monkeypatch.setattr(model_lib, "FRAMES_AT_A_TIME", 2)
  chunked = jax.jit(lambda *a: model._encode_impl(*a))(model._encoder, images)
  np.testing.assert_allclose(whole, chunked, atol=2e-5)


def test_parameters_come_in_bfloat16_or_float32(folder, model):
  assert {leaf.dtype.name for leaf in jax.tree.leaves(model._dit)} == {
    "bfloat16"
  }
  wide = model_lib.Sculpt4D.load(
    preset_lib.from_config(get_config()).model, folder, dtype="float32"
  )
  assert {leaf.dtype.name for leaf in jax.tree.leaves(wide._vae)} == {"float32"}


@pytest.mark.parametrize(
  "name",
  [
    "hunyuan3d_shared",
    pytest.param("hunyuan3d", marks=pytest.mark.slow),  # Compiles again.
  ],
)
def test_baselines_sample_each_frame_alone(folder, images, name):
  config = baselines.apply(get_config(), name)
  model = model_lib.Sculpt4D.load(preset_lib.from_config(config).model, folder)
  options = preset_lib.from_config(config).sampling
  clip = model.sample(images, options)
  same = model.sample(np.repeat(images[:1], FRAMES, 0), options)
  # Other frames change nothing in the first one.
  np.testing.assert_allclose(clip[0], same[0], atol=2e-5)
  shared = np.allclose(same[0], same[1], atol=2e-5)
  assert shared == (name == "hunyuan3d_shared")


def test_baselines_by_name():
  config = baselines.get_config("hunyuan3d_shared")
  assert config.sampling.noise == "shared"
  assert config.model.dit.temporal_mode == "none"
  with pytest.raises(ValueError, match="Unknown baseline"):
    baselines.get_config("l4gm")


def test_frames_meshed_together_equal_single_ones(model, latents):
  config = pipeline.SurfaceConfig(
    **(get_config().surface.to_dict() | dict(frames_at_a_time=2, level=0.0))
  )
  assert config.num_workers == 2
  done = []
  meshes, counts = pipeline.extract_meshes(
    model, latents, config, lambda: done.append(1)
  )
  single = [pipeline.extract_mesh(model, frame, config) for frame in latents]
  assert len(meshes) == len(done) == FRAMES
  assert counts == [count for _, count in single]
  for found, (expected, _) in zip(meshes, single):
    np.testing.assert_array_equal(found.vertices, expected.vertices)
    np.testing.assert_array_equal(found.faces, expected.faces)


def test_meshes_are_set_upright(model, latents):
  quarter = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
  placement = placement_lib.in_picture(quarter, np.array([0.1, 0.2]))
  config = pipeline.SurfaceConfig(
    **(get_config().surface.to_dict() | dict(level=0.0))
  )
  placed, _ = pipeline.extract_meshes(model, latents, config)
  upright, _ = pipeline.extract_meshes(model, latents, config, placed=placement)
  for found, expected in zip(upright, placed):
    seen = placement.mesh(found)
    np.testing.assert_allclose(seen.vertices, expected.vertices, atol=1e-5)
    np.testing.assert_array_equal(found.faces, expected.faces)


def test_another_size_is_refused(folder):
  config = get_config()
  config.model.vae.num_heads = 4
  with pytest.raises(model_files.ModelFileError, match="num_heads: the file"):
    model_lib.Sculpt4D.load(preset_lib.from_config(config).model, folder)


def test_a_damaged_conversion_is_refused(folder, tmp_path):
  import shutil

  broken = tmp_path / "broken"
  shutil.copytree(folder, broken)
  (broken / "vae" / "latents_proj.bias" / "0").unlink()
  with pytest.raises(ValueError, match="latents_proj.bias"):
    model_lib.Sculpt4D.load(preset_lib.from_config(get_config()).model, broken)
  shutil.rmtree(broken / "vae")
  with pytest.raises(ValueError, match="holds no leaves"):
    model_lib.Sculpt4D.load(preset_lib.from_config(get_config()).model, broken)
  (broken / "sculpt4d.json").write_text("{}")
  with pytest.raises(model_files.ModelFileError, match="expected format"):
    model_lib.Sculpt4D.load(preset_lib.from_config(get_config()).model, broken)


def test_a_missing_network_is_told(folder, tmp_path):
  import json
  import shutil

  shutil.copytree(folder, tmp_path / "part")
  path = tmp_path / "part" / "sculpt4d.json"
  content = json.loads(path.read_text())
  del content["parts"]["vae"]
  path.write_text(json.dumps(content))
  with pytest.raises(
    model_files.ModelFileError, match="has no vae, only image_encoder, dit"
  ):
    model_lib.Sculpt4D.load(
      preset_lib.from_config(get_config()).model, tmp_path / "part"
    )


@pytest.mark.parametrize("grid", ["exact", "dense", "flashvdm"])
def test_surfaces_of_named_grids(grid):
  ball = lambda p: (0.5 - np.linalg.norm(p, axis=-1)) / 0.05
  config = pipeline.SurfaceConfig(
    **(get_config().surface.to_dict() | dict(grid=grid, band=4.0, level=0.0))
  )
  field = pipeline.evaluate_grid(ball, config)
  inside = field.values[field.evaluated] > 0
  assert inside.any() and not inside.all()
  with pytest.raises(ValueError, match="grid='fine'"):
    dataclasses.replace(config, grid="fine")
