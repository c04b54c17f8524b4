import numpy as np
from PIL import Image
import pytest

from sculpt4d_jax.inference import clip_input
from sculpt4d_jax.io.video.frames import InputError

RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)


def test_paths_stay_paths(tmp_path):
  assert clip_input.as_source(tmp_path) == tmp_path


def test_floating_point_in_the_unit_interval_becomes_bytes():
  clip = np.zeros((2, 4, 6, 3), np.float32)
  clip[1] = 1.0
  clip[0, 0, 0] = 0.5
  made = clip_input.as_source(clip)
  assert made.dtype == np.uint8
  assert made[0, 0, 0].tolist() == [128] * 3 and (made[1] == 255).all()


def test_one_picture_is_a_clip_of_one_frame():
  assert clip_input.as_source(RED).shape == (1, 4, 6, 3)
  assert clip_input.as_source(Image.fromarray(RED)).shape == (1, 4, 6, 4)


def test_a_list_mixes_arrays_pictures_and_paths(tmp_path):
  Image.fromarray(RED).save(tmp_path / "red.png")
  transparent = np.dstack([RED, np.zeros((4, 6), np.uint8)])
  clip = clip_input.as_source(
    [RED, Image.fromarray(RED), tmp_path / "red.png", transparent]
  )
  assert clip.shape == (4, 4, 6, 4)
  assert clip[:3].reshape(-1, 4).tolist() == [[255, 0, 0, 255]] * 72
  assert (clip[3, ..., 3] == 0).all()


@pytest.mark.parametrize(
  "clip, message",
  [
    ([], "no pictures"),
    ([RED, RED[:3]], "must have one size"),
    ([RED[..., 0]], "Picture 0 of the list has shape"),
    (["nothing.png"], "nothing.png is no picture"),
    (np.full((1, 4, 4, 3), 2.0), "must be in"),
    (np.full((1, 4, 4, 3), np.nan), "NaN"),
  ],
)
def test_what_is_no_clip_is_refused(clip, message):
  with pytest.raises(InputError, match=message):
    clip_input.as_source(clip)
