"""A clip sampled with its mirror image: symmetric, and the mean of both."""

import dataclasses

import numpy as np
import pytest

from sculpt4d_jax import errors
from sculpt4d_jax.diffusion import windows as windows_lib
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.inference import known
from sculpt4d_jax.inference import long_clips
from sculpt4d_jax.inference import mirror
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import run_log
from tests.inference import small_models
from tests.integration import micro

FRAMES = 4


@pytest.fixture(scope="module")
def model():
  return small_models.random_model()


@pytest.fixture(scope="module")
def images(model):
  side = model.encoder_config.image_size
  return np.random.default_rng(0).integers(
    0, 256, (FRAMES, side, side, 3), np.uint8
  )


def settings(**changes):
  given = micro.get_config().sampling.to_dict()
  return model_lib.SamplingConfig(**given | dict(mirror=True) | changes)


def points():
  return np.random.default_rng(1).uniform(-1, 1, (50, 3)).astype(np.float32)


def test_both_clips_are_sampled_as_without_it(model, images):
  calls = []
  latents = model.sample(images, settings(), on_step=calls.append)
  once = dataclasses.replace(settings(), mirror=False)
  np.testing.assert_array_equal(latents[:, 0], model.sample(images, once))
  flipped = model.sample(images[:, :, ::-1], once)
  np.testing.assert_array_equal(latents[:, 1], flipped)
  assert calls == list(range(1, 2 * len(once.calls) + 1))
  assert settings().num_evaluations == 2 * once.num_evaluations


def test_the_field_is_the_mean_of_both(model, images):
  own, mirrored = latents = model.sample(images, settings())[0]
  at = points()
  there = at * np.float32([-1, 1, 1])
  expected = (model.field(own)(at) + model.field(mirrored)(there)) / 2
  np.testing.assert_allclose(model.field(latents)(at), expected, atol=1e-6)


def test_the_mirrored_clip_has_the_mirrored_field(model, images):
  # Without noise, which is not mirrored.
  config = settings(temperature=0.0)
  one = model.sample(images, config)[0]
  other = model.sample(mirror.pictures(images), config)[0]
  at = points()
  np.testing.assert_allclose(
    model.field(one)(at), model.field(other)(mirror.points(at)), atol=1e-6
  )


def test_a_mirrored_mesh_faces_outwards():
  corners = np.float32([[1, 0, 0], [2, 0, 0], [1, 1, 0], [1, 0, 1]])
  faces = [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]
  mirrored = mirror.mesh(mesh_lib.TriangleMesh(corners, faces))
  np.testing.assert_array_equal(mirrored.vertices[:, 0], [-1, -2, -1, -1])

  def volume(mesh):
    return np.linalg.det(mesh.vertices[mesh.faces]).sum() / 6

  before = volume(mesh_lib.TriangleMesh(corners, faces))
  assert volume(mirrored) == pytest.approx(before) and before > 0


@pytest.mark.parametrize("kind", ["sequential", "averaged"])
def test_long_clips(model, images, tmp_path, monkeypatch, kind):
  # Random weights have no surface.
  solid = mesh_lib.TriangleMesh(np.eye(3), [[0, 1, 2]])
  monkeypatch.setattr(
    pipeline,
    "extract_meshes",
    lambda model, latents, *_: ([solid] * len(latents), [0] * len(latents)),
  )
  windows = windows_lib.Windows(size=3, overlap=2, kind=kind)
  clip = pipeline.Clip(images, None, images, None, None)
  config = settings()
  surface = pipeline.SurfaceConfig(**micro.get_config().surface.to_dict())

  def generate():
    folder = long_clips.open_folder(
      tmp_path / kind, config, windows, images, {}
    )
    return pipeline.generate(
      model,
      clip,
      config,
      surface,
      run_log.RunLog(False),
      windows=windows,
      window_folder=folder,
    ).latents

  latents = generate()
  once = dataclasses.replace(config, mirror=False)
  sample = model.sample
  if kind == "sequential":
    sample = lambda images, config, windows: long_clips.sample(
      model, images, config, windows
    )
    assert (tmp_path / kind / "mirrored" / "window_000001.npz").is_file()
  flipped = mirror.pictures(images)
  for index, pictures in enumerate((images, flipped)):
    expected = sample(pictures, once, windows=windows)
    np.testing.assert_array_equal(latents[:, index], expected)
  np.testing.assert_array_equal(generate(), latents)


def test_known_frames(model, images, tmp_path):
  first = model.sample(images, settings())
  path = tmp_path / "latents.npz"
  known.write_latents(path, first, model.vae_config.scale_factor)
  load = lambda **kwargs: known.load(
    known.parse([f"0:{path}@2"], FRAMES),
    model,
    num_uniform=24,
    num_sharp=8,
    **kwargs,
  )
  given = load(mirrored=True)
  again = model.sample(images, settings(), known_frames=given)
  np.testing.assert_array_equal(again[0], first[2])
  # A run without takes those of the clip itself.
  np.testing.assert_array_equal(load()[0], first[2, 0])
  with pytest.raises(errors.UserError, match=r"frame 0 are \(.*\): they come"):
    model.sample(images, settings(), known_frames=load())


def test_meshes_are_known_on_both_sides(model, tmp_path):
  corners = np.float32([[0.1, 0, 0], [0.8, 0, 0], [0, 0.7, 0], [0, 0, 0.6]])
  faces = [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]
  path = tmp_path / "mesh.ply"
  path.write_text(
    "ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float"
    " y\nproperty float z\nelement face 4\nproperty list uchar int"
    " vertex_indices\nend_header\n"
    + "".join(f"{x} {y} {z}\n" for x, y, z in corners)
    + "".join(f"3 {a} {b} {c}\n" for a, b, c in faces)
  )
  sizes = dict(num_uniform=24, num_sharp=8)
  files = known.parse([f"0:{path}"], FRAMES)
  pair = known.load(files, model, mirrored=True, **sizes)[0]
  alone = known.load(files, model, **sizes)[0]
  assert pair.shape == (2, *alone.shape)
  np.testing.assert_array_equal(pair[0], alone)
  assert np.abs(pair[1] - pair[0]).max() > 1e-3
