"""Known frames: from files, and through the sampler, with random weights."""

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import placement as placement_lib
from sculpt4d_jax.inference import known
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.io.meshes import glb
from tests.inference import small_models
from tests.integration import micro

FRAMES = 3
SIZES = dict(num_uniform=24, num_sharp=8)


@pytest.fixture(scope="module")
def model():
  return small_models.random_model()


def box(scale=0.5, shift=0.0):
  loaded = trimesh.creation.box((2 * scale,) * 3)
  return mesh_lib.TriangleMesh(loaded.vertices + shift, loaded.faces)


def write(path, mesh):
  trimesh.Trimesh(mesh.vertices, mesh.faces, process=False).export(path)
  return known.parse([f"0:{path}"], FRAMES)


@pytest.mark.parametrize("mode", ["path", "clean"])
def test_known_frames_are_returned_and_change_the_others(model, mode):
  config = model_lib.SamplingConfig(
    **micro.get_config().sampling.to_dict() | dict(known=mode, solver="ab2")
  )
  side = model.encoder_config.image_size
  images = np.random.default_rng(0).integers(
    0, 256, (FRAMES, side, side, 3), np.uint8
  )
  shape = model.vae_config.num_latents, model.vae_config.latent_channels
  given = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
  one = model.sample(images, config, known_frames={0: given[0]})
  two = model.sample(images, config, known_frames={0: given[1]})
  np.testing.assert_array_equal(one[0], given[0])
  np.testing.assert_array_equal(two[0], given[1])
  assert np.abs(one[1:] - two[1:]).max() > 1e-4
  assert np.isfinite(one).all()


def test_frames_of_another_clip_or_model_are_refused(model):
  shape = model.vae_config.num_latents, model.vae_config.latent_channels
  with pytest.raises(ValueError, match="frames, which are 0 to 2"):
    model._known({3: np.zeros(shape)}, (FRAMES, *shape))
  with pytest.raises(ValueError, match="this model's are"):
    model._known({0: np.zeros((2, 2))}, (FRAMES, *shape))


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".obj"])
def test_meshes_become_latents(model, tmp_path, suffix):
  files = write(tmp_path / f"box{suffix}", box())
  latents = known.load(files, model, **SIZES)
  shape = model.vae_config.num_latents, model.vae_config.latent_channels
  assert latents.keys() == {0} and latents[0].shape == shape
  again = known.load(files, model, **SIZES)
  np.testing.assert_array_equal(latents[0], again[0])
  bigger = known.load(
    write(tmp_path / f"big{suffix}", box(0.9)), model, **SIZES
  )
  assert np.abs(bigger[0] - latents[0]).max() > 1e-3


def test_a_mesh_is_placed_as_its_clip_is(model, tmp_path):
  placement = placement_lib.Placement(np.eye(3), np.full(3, 0.4))
  low = write(tmp_path / "low.ply", box())
  high = write(tmp_path / "high.ply", box(shift=0.4))
  np.testing.assert_allclose(
    known.load(low, model, **SIZES, placement=placement)[0],
    known.load(high, model, **SIZES)[0],
    atol=1e-5,
  )


def test_a_frame_of_an_animation(tmp_path):
  meshes = [box(0.3), box(0.6)]
  glb.write_animated_glb(tmp_path / "a.glb", meshes, 8.0)
  files = known.parse(
    [f"0:{tmp_path}/a.glb@1", f"1:{tmp_path}/a.glb", f"2:{tmp_path}/a.glb@0"],
    FRAMES,
  )
  sizes = [known.read_mesh(file).vertices.max() for file in files]
  np.testing.assert_allclose(sizes, [0.6, 0.6, 0.3], rtol=1e-6)


@pytest.mark.parametrize(
  "mesh, reason",
  [
    (box(1.5), r"beyond the clip's cube \[-1, 1\]\^3"),
    (box(0.5, shift=np.array([0, 0.7, 0])), "beyond the clip's cube"),
  ],
)
def test_meshes_out_of_the_cube_are_refused(tmp_path, mesh, reason):
  (file,) = write(tmp_path / "mesh.ply", mesh)
  with pytest.raises(ValueError, match=reason):
    known.read_mesh(file)


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".obj", ".npz"])
def test_damaged_files_are_refused(model, tmp_path, suffix):
  path = tmp_path / f"bad{suffix}"
  path.write_bytes(b"not this\n" * 20)
  files = known.parse([f"0:{path}"], FRAMES)
  with pytest.raises(ValueError, match="bad"):
    known.load(files, model, **SIZES)


def test_latents_come_back(model, tmp_path):
  vae = model.vae_config
  shape = FRAMES, vae.num_latents, vae.latent_channels
  latents = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  path = tmp_path / "latents.npz"
  known.write_latents(path, latents, vae.scale_factor)
  files = known.parse([f"0:{path}@2", f"1:{path}"], FRAMES)
  loaded = known.load(files, model, **SIZES)
  np.testing.assert_array_equal(loaded[0], latents[2])
  np.testing.assert_array_equal(loaded[1], latents[1])
  with pytest.raises(ValueError, match="has 3 frames"):
    known.load(known.parse([f"0:{path}@7"], FRAMES), model, **SIZES)
  known.write_latents(path, latents, 2 * vae.scale_factor)
  with pytest.raises(ValueError, match="another training"):
    known.load(files, model, **SIZES)
  known.write_latents(path, latents[:, :-1], vae.scale_factor)
  with pytest.raises(ValueError, match="this model's are"):
    known.load(files, model, **SIZES)
  np.savez(path, latents=np.full(shape, np.nan), scale_factor=vae.scale_factor)
  with pytest.raises(ValueError, match="not finite"):
    known.load(files, model, **SIZES)


@pytest.mark.parametrize(
  "texts, reason",
  [
    (["mesh.glb"], "expected INDEX:FILE"),
    (["x:mesh.glb"], "expected INDEX:FILE"),
    (["9:a.ply"], "frames are 0 to 2"),
    (["0:a.stl"], "expected a file of"),
    (["0:missing.ply"], "no file missing.ply"),
  ],
)
def test_other_texts_are_refused(texts, reason):
  with pytest.raises(ValueError, match=reason):
    known.parse(texts, FRAMES)


def test_a_frame_is_given_once(tmp_path):
  path = tmp_path / "a.ply"
  path.write_text("")
  with pytest.raises(ValueError, match="given twice"):
    known.parse([f"0:{path}"] * 2, FRAMES)
