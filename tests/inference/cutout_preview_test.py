import numpy as np
from PIL import Image

from sculpt4d_jax.inference import cutout_preview
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import run_log


def test_frames_stand_above_what_the_model_sees(tmp_path):
  frames = np.full((3, 40, 60, 3), 255, np.uint8)
  frames[:, 10:30, 20:40] = (200, 30, 20)
  log = run_log.RunLog(progress=False)
  clip = pipeline.read_clip(frames, log, num_frames=3, image_size=32)
  path = cutout_preview.write(tmp_path / "new", clip)
  picture = np.asarray(Image.open(path)).astype(int)
  assert picture.shape == (2 * 224, 3 * 224, 3)
  red = (picture[..., 0] > 150) & (picture[..., 1] < 90)
  above, below = red[:224].sum(), red[224:].sum()
  # The object fills a ninth of its frame's width, and most of its crop.
  assert 0 < above < below
