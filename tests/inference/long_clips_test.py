"""Long clips window by window, with random weights at micro size."""

import dataclasses
import itertools

import numpy as np
import pytest

from sculpt4d_jax.diffusion import known_frames
from sculpt4d_jax.diffusion import windows as windows_lib
from sculpt4d_jax.inference import long_clips
from sculpt4d_jax.inference import model as model_lib
from tests.inference import small_models
from tests.integration import micro

WINDOWS = windows_lib.Windows(4, 2)
BLENDED = windows_lib.Windows(4, 2, blend=1)
FRAMES = 9  # Windows at 0, 2, 4 and, moved back, 5.


@pytest.fixture(scope="module")
def model():
  return small_models.random_model()


@pytest.fixture(scope="module")
def images(model):
  side = model.encoder_config.image_size
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (FRAMES, side, side, 3), np.uint8)


def config(**changes):
  fields = micro.get_config().sampling.to_dict() | dict(solver="ab2")
  return model_lib.SamplingConfig(**fields | changes)


@pytest.fixture(scope="module")
def whole(model, images):
  return long_clips.sample(model, images, config(), WINDOWS)


def folder(path, images, windows=WINDOWS, **changes):
  identity = long_clips.identity(config(**changes), windows, images)
  return long_clips.WindowFolder(path, identity)


def test_windows_are_new_frames_in_order(model, images, whole):
  stretches = list(long_clips.stream(model, images, config(), WINDOWS))
  assert [s.first for s in stretches] == [0, 4, 6, 8]
  assert [len(s.latents) for s in stretches] == [4, 2, 2, 1]
  together = np.concatenate([s.latents for s in stretches])
  np.testing.assert_array_equal(together, whole)
  assert np.isfinite(whole).all()


def test_a_window_sees_the_frames_before(model, images, whole):
  changed = images.copy()
  changed[:4] = 255 - changed[:4]
  other = long_clips.sample(model, changed, config(), WINDOWS)
  assert np.abs(other[4:6] - whole[4:6]).max() > 1e-5
  # Frames of other windows' futures change nothing.
  changed = images.copy()
  changed[6:] = 255 - changed[6:]
  other = long_clips.sample(model, changed, config(), WINDOWS)
  np.testing.assert_array_equal(other[:6], whole[:6])


def test_a_window_is_sampled_with_known_frames(model, images, whole):
  """The second window, by the sampler itself."""
  noise = long_clips.frame_noise(model, config(), range(2, 6))
  is_known = np.array([[True, True, False, False]])
  data = np.where(is_known[0, :, None, None], whole[2:6], 0)[None]
  latents = model.denoise(
    model.encode(images[2:6])[None],
    noise[None],
    config(),
    known=known_frames.KnownFrames(is_known, data),
  )[0]
  np.testing.assert_array_equal(latents, whole[2:6])


def test_blended_frames_pass_from_one_window_to_the_next(model, images, whole):
  """The first two windows, by the sampler itself; 3 and 5 are blended."""
  stretches = list(long_clips.stream(model, images, config(), BLENDED))
  assert [s.first for s in stretches] == [0, 3, 5, 7, 8]
  assert [len(s.latents) for s in stretches] == [3, 2, 2, 1, 1]
  found = np.concatenate([s.latents for s in stretches])
  np.testing.assert_array_equal(found[:3], whole[:3])
  noise = long_clips.frame_noise(model, config(), range(2, 6))
  known = known_frames.KnownFrames(
    np.array([[True, False, False, False]]),
    np.where(np.arange(4)[:, None, None] < 2, whole[2:6], 0)[None],
    np.array([[0, 0.5, 0, 0]], np.float32),
  )
  own = model.denoise(
    model.encode(images[2:6])[None], noise[None], config(), known=known
  )[0]
  np.testing.assert_array_equal(found[3:5], own[1:3])
  assert np.abs(own[1] - whole[3]).max() > 1e-4
  together = long_clips.sample(model, images, config(), BLENDED)
  np.testing.assert_array_equal(together, found)


def test_frames_after_a_blend_see_it(model, images):
  """Other latents in the blended frame change the new frames of its window."""
  samples = []
  for value in (0.0, 1.0):
    noise = long_clips.frame_noise(model, config(), range(4))
    data = np.full(noise.shape, value, np.float32)
    known = known_frames.KnownFrames(
      np.zeros((1, 4), bool),
      data[None],
      np.array([[0.75, 0, 0, 0]], np.float32),
    )
    context = model.encode(images[:4])[None]
    samples.append(
      model.denoise(context, noise[None], config(), known=known)[0]
    )
  change = samples[1] - samples[0]
  # Three quarters are the data's; the rest only moves by what frames see.
  np.testing.assert_allclose(change[0].mean(), 0.75, atol=0.1)
  assert np.abs(change[1:]).max() > 1e-5


@pytest.mark.parametrize("num_frames", [1, 2, 4, 5])
def test_blends_of_short_clips_give_every_frame_once(model, images, num_frames):
  windows = windows_lib.Windows(4, 3, blend=3)
  counts = []
  result = long_clips.sample(
    model, images[:num_frames], config(), windows, on_window=counts.append
  )
  assert len(result) == num_frames and np.isfinite(result).all()
  assert counts[-1] == len(windows.starts(num_frames))


@pytest.mark.parametrize("finished", range(4))
@pytest.mark.parametrize("windows", [WINDOWS, BLENDED], ids=["cut", "blended"])
def test_interrupted_runs_resume_to_the_same_bytes(
  model, images, tmp_path, windows, finished
):
  whole = long_clips.sample(model, images, config(), windows)
  own = lambda: folder(tmp_path, images, windows)
  stretches = long_clips.stream(model, images, config(), windows, folder=own())
  for _ in itertools.islice(stretches, finished):
    pass
  made = sorted(path.name for path in tmp_path.glob("*.npz"))
  assert len(made) == finished
  again = long_clips.sample(model, images, config(), windows, folder=own())
  np.testing.assert_array_equal(again, whole)


def test_other_settings_do_not_take_windows(model, images, tmp_path):
  folder(tmp_path, images)
  with pytest.raises(ValueError, match="sampling.seed"):
    folder(tmp_path, images, seed=1)
  with pytest.raises(ValueError, match="pictures"):
    folder(tmp_path, 255 - images)


def test_a_damaged_window_is_named(model, images, tmp_path):
  own = folder(tmp_path, images)
  (tmp_path / "window_000000.npz").write_bytes(b"half a fi")
  with pytest.raises(ValueError, match="window_000000.npz is damaged"):
    long_clips.sample(model, images, config(), WINDOWS, folder=own)


def test_a_stream_needs_no_end(model, images, whole):
  """Of endless pictures the first windows are those of the clip."""
  endless = itertools.chain(images[:8], itertools.repeat(images[0]))
  stretches = long_clips.stream(model, endless, config(), WINDOWS)
  first = [next(stretches).latents for _ in range(3)]
  np.testing.assert_array_equal(np.concatenate(first), whole[:8])
  with pytest.raises(ValueError, match="no pictures"):
    next(long_clips.stream(model, [], config(), WINDOWS))


def test_given_frames_are_not_blended(model, images):
  latents = np.full((8, 4), 0.5, np.float32)
  result = long_clips.sample(
    model, images, config(), BLENDED, known_frames={3: latents}
  )
  np.testing.assert_array_equal(result[3], latents)


def test_given_frames_are_known_in_their_windows(model, images, whole):
  latents = np.full(whole.shape[1:], 0.5, np.float32)
  result = long_clips.sample(
    model, images, config(), WINDOWS, known_frames={5: latents}
  )
  np.testing.assert_array_equal(result[5], latents)
  np.testing.assert_array_equal(result[:4], whole[:4])
  assert np.abs(result[4] - whole[4]).max() > 1e-5


def test_noise_depends_on_seed_and_number_alone(model):
  noise = long_clips.frame_noise(model, config(), range(6))
  later = long_clips.frame_noise(model, config(), range(4, 6))
  np.testing.assert_array_equal(noise[4:], later)
  assert np.abs(noise[0] - noise[1]).max() > 0.1
  shared = long_clips.frame_noise(model, config(noise="shared"), range(6))
  np.testing.assert_array_equal(shared, shared[:1].repeat(6, 0))


@pytest.mark.parametrize("cache", [True, False])
def test_averaged_windows_of_a_whole_clip_are_the_clip(model, images, cache):
  """One window that holds everything changes nothing."""
  four, settings = images[:4], config(cache_context=cache)
  one = model.sample(four, settings, windows=dataclasses.replace(WINDOWS))
  plain = model.sample(four, settings)
  np.testing.assert_allclose(one, plain, atol=2e-5)
  long = model.sample(images, settings, windows=WINDOWS)
  assert long.shape[0] == FRAMES and np.isfinite(long).all()
