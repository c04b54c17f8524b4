r"""The paper's per-frame baselines, at the released size.

  python -m launch.sample --config=configs/baselines.py:hunyuan3d \
      --checkpoint=weights/hunyuan3d --input=clip.mp4 --output=out

  hunyuan3d         Hunyuan3D: each frame alone, with independent noise
  hunyuan3d_shared  Hunyuan3D*: each frame alone, one noise for all of them

Neither has temporal attention. A checkpoint of Hunyuan3D 2.1 is complete; one
of the 4D model is read without its temporal layers. The paper's figures for
Hunyuan3D (Table A3): LPIPS 0.131, CLIP 0.803, FVD 1276.2, 24 minutes a
sequence; they are not measured here.
"""

import ml_collections

from sculpt4d_jax.configs import base

_NOISES = {"hunyuan3d": "independent", "hunyuan3d_shared": "shared"}


def get_config(baseline: str = "hunyuan3d") -> ml_collections.ConfigDict:
  """Returns a baseline by name."""
  return apply(base.get_config(), baseline)


def apply(
  config: ml_collections.ConfigDict, baseline: str
) -> ml_collections.ConfigDict:
  """Changes a preset of any size to a per-frame baseline."""
  if baseline not in _NOISES:
    raise ValueError(
      f"Unknown baseline {baseline!r}; choose one of {sorted(_NOISES)}."
    )
  config.name = f"{config.name}_{baseline}"
  config.model.dit.temporal_mode = "none"
  config.sampling.temporal_mode = "none"
  config.sampling.noise = _NOISES[baseline]
  return config
