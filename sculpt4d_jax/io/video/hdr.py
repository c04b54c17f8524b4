"""Maps high dynamic range (PQ, HLG) to sRGB.

Reference white, the level of white paper in HDR productions, becomes white: 203
cd/m² for PQ, 75 % of the signal for HLG. Darker colours keep their linear
light; brighter ones (lamps, highlights) are compressed smoothly towards white,
with all channels scaled alike to keep the hue. Colours outside the gamut of
BT.709 are clipped.

HLG is mapped by scene light, which a standard camera would have recorded,
rather than by display light.

Sources: ITU-R BT.2100 (transfer functions), BT.2408 (reference white),
BT.2087 (primaries); IEC 61966-2-1 (sRGB).
"""

import numpy as np

PQ, HLG = 16, 18  # FFmpeg's numbers of the transfer functions.
TRANSFERS = (PQ, HLG)
BT2020_PRIMARIES = 9

_WHITE_PQ = 203.0  # cd/m².
_WHITE_HLG = 0.75  # Share of the signal.
_PEAK_PQ = 10000.0
_TO_BT709 = np.array(
  [
    [1.6605, -0.5876, -0.0728],
    [-0.1246, 1.1329, -0.0083],
    [-0.0182, -0.1006, 1.1187],
  ],
  np.float32,
)
_KNEE = 0.95  # Share of white; brighter light is compressed.


def to_srgb(pixels: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
  """Maps a picture to sRGB.

  Args:
    pixels: uint16 [..., 3], full range, of the signal.
    transfer: `PQ` or `HLG`.
    primaries: FFmpeg's number; others than BT.2020's are kept.

  Returns:
    uint8 [..., 3].
  """
  light = _light_table(transfer)[pixels]
  if primaries == BT2020_PRIMARIES:
    light = np.maximum(light @ _TO_BT709.T, 0)
  brightest = light.max(axis=-1, keepdims=True)
  excess = np.maximum(brightest - _KNEE, 0) / (1 - _KNEE)
  kept = np.minimum(brightest, _KNEE) + (1 - _KNEE) * (1 - np.exp(-excess))
  light = light * (kept / np.maximum(brightest, 1e-6))
  return np.rint(255 * _srgb(np.clip(light, 0, 1))).astype(np.uint8)


def _light_table(transfer: int) -> np.ndarray:
  """Linear light of every 16-bit signal, reference white being 1."""
  signal = np.linspace(0, 1, 65536)
  if transfer == PQ:
    return (_pq_light(signal) / _WHITE_PQ).astype(np.float32)
  white = _hlg_light(np.array(_WHITE_HLG))
  return (_hlg_light(signal) / white).astype(np.float32)


def _pq_light(signal: np.ndarray) -> np.ndarray:
  """Light of a display, cd/m²."""
  m1, m2 = 2610 / 16384, 2523 / 32
  c1, c2, c3 = 3424 / 4096, 2413 / 128, 2392 / 128
  root = signal ** (1 / m2)
  return _PEAK_PQ * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def _hlg_light(signal: np.ndarray) -> np.ndarray:
  """Light of the scene, up to 1."""
  a, b, c = 0.17883277, 0.28466892, 0.55991073
  bright = (np.exp((signal - c) / a) + b) / 12
  return np.where(signal <= 0.5, signal**2 / 3, bright)


def _srgb(light: np.ndarray) -> np.ndarray:
  bright = 1.055 * light ** (1 / 2.4) - 0.055
  return np.where(light <= 0.0031308, 12.92 * light, bright)
