"""HDR signals against published values of BT.2100 and BT.2408."""

import numpy as np
import pytest

from sculpt4d_jax.io.video import hdr

BT709_PRIMARIES = 1


def grey(signal, transfer):
  pixels = np.full((1, 3), round(65535 * signal), np.uint16)
  return hdr.to_srgb(pixels, transfer, hdr.BT2020_PRIMARIES)[0].tolist()


@pytest.mark.parametrize(
  "transfer, signal",
  # BT.2408, table 1: reference white of 203 cd/m² is at 58 % of PQ and 75 % of
  # HLG.
  [(hdr.PQ, 0.58), (hdr.HLG, 0.75)],
)
def test_reference_white_is_white(transfer, signal):
  assert min(grey(signal, transfer)) >= 251
  assert grey(0, transfer) == [0, 0, 0]
  assert grey(1, transfer) == [255, 255, 255]


@pytest.mark.parametrize(
  "transfer, signal, light",
  [
    # BT.2408, table 1: a grey card of 18 % reflects 26 cd/m²: 38 % of both.
    (hdr.PQ, 0.38, 26 / 203),
    (hdr.HLG, 0.5, (0.5**2 / 3) / 0.2650),  # By the formula of BT.2100.
  ],
)
def test_light_below_white_is_kept(transfer, signal, light):
  expected = 255 * (1.055 * light ** (1 / 2.4) - 0.055)
  assert grey(signal, transfer)[0] == pytest.approx(expected, abs=3)


def test_more_signal_is_never_darker():
  ramp = np.repeat(np.arange(0, 65536, 64, dtype=np.uint16)[:, None], 3, axis=1)
  for transfer in hdr.TRANSFERS:
    mapped = hdr.to_srgb(ramp, transfer, hdr.BT2020_PRIMARIES).astype(int)
    assert (np.diff(mapped[:, 0]) >= 0).all()


def test_bright_colours_keep_their_hue():
  # Six times the light of reference white, red twice as strong as green.
  signal = np.array([[0.776, 0.7, 0.0]])
  pixels = np.rint(65535 * signal).astype(np.uint16)
  red, green, blue = hdr.to_srgb(pixels, hdr.PQ, BT709_PRIMARIES)[0]
  assert red == 255 and 150 < green < 220 and blue == 0


def test_primaries_of_bt709_are_not_changed():
  pixels = np.array([[30000, 20000, 10000]], np.uint16)
  kept = hdr.to_srgb(pixels, hdr.HLG, BT709_PRIMARIES)[0].astype(int)
  mapped = hdr.to_srgb(pixels, hdr.HLG, hdr.BT2020_PRIMARIES)[0].astype(int)
  assert mapped[0] > kept[0] and mapped[2] < kept[2]  # The wider gamut's red.
