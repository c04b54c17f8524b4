import numpy as np

from sculpt4d_jax.io.matting import foreground
from sculpt4d_jax.io.matting import plausibility
from sculpt4d_jax.io.video import reader
from tests.io.matting import foreground_test as made


def texts(alpha):
  return " ".join(finding.text for finding in plausibility.examine(alpha))


def test_a_sound_mask_raises_no_doubt():
  alpha = np.rint(255 * made.discs()).astype(np.uint8)
  assert not plausibility.examine(alpha)
  assert not plausibility.examine(np.zeros_like(alpha))


def test_doubts_name_what_is_wrong():
  full = np.full((4, 50, 60), 255, np.uint8)
  assert "covers 100%" in texts(full) and "all round" in texts(full)
  ring = full.copy()
  ring[:, 10:-10, 10:-10] = 0
  assert "all round" in texts(ring)
  flicker = np.zeros_like(full)
  flicker[::2, 10:20, 10:20] = 255
  flicker[1::2, 10:30, 10:30] = 255
  assert "flickers" in texts(flicker)
  assert "half transparent" in texts(full // 2)


def test_a_doubtful_cut_out_is_never_passed_in_silence(caplog):
  """A frame that the object fills: returned unchanged, with a warning."""
  frames = np.zeros((3, 60, 60, 4), np.uint8)
  frames[:, 2:-2, 2:-2] = (200, 60, 40, 255)
  result = foreground.extract(reader.read_frames(frames))
  assert result.confidence < 0.5
  assert "covers" in caplog.text
