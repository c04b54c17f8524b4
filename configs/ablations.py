r"""The paper's variants of temporal attention, at the released size.

  python -m launch.train --config=configs/ablations.py:no_anchor ...

Variants (Table A1 of the paper; PFLOPs a 16-frame sample, its figures):

  no_anchor      A  no first-frame anchor                         169.8
  fixed_stride   B  stride 4 at every distance                    167.1
  aggressive     C  strides 1, 2, 4, 8, 16, 32                    145.0
  conservative   D  strides 1, 1, 2, 2, 4, 4                      233.6
  full           E  full attention, in training and sampling      425.7
  ours           F  the released model                            186.3
  ours_full         trained as F, sampled with full attention     425.7
  token             every token sees itself in all frames
  per_frame         no temporal attention
"""

import ml_collections

from sculpt4d_jax.configs import base


def get_config(variant: str = "ours") -> ml_collections.ConfigDict:
  """Returns a variant by name."""
  return apply(base.get_config(), variant)


def apply(
  config: ml_collections.ConfigDict, variant: str
) -> ml_collections.ConfigDict:
  """Changes a preset of any size to a variant."""
  if variant not in _VARIANTS:
    raise ValueError(
      f"Unknown variant {variant!r}; choose one of {sorted(_VARIANTS)}."
    )
  _VARIANTS[variant](config)
  config.name = f"{config.name}_{variant}"
  return config


def _schedule(*strides: int):
  def change(config: ml_collections.ConfigDict):
    config.model.dit.temporal_schedule = strides

  return change


def _no_anchor(config: ml_collections.ConfigDict):
  config.model.dit.temporal_anchor_frames = ()


def _trained_mode(mode: str):
  def change(config: ml_collections.ConfigDict):
    config.model.dit.temporal_mode = mode
    config.sampling.temporal_mode = mode

  return change


def _ours_full(config: ml_collections.ConfigDict):
  config.sampling.temporal_mode = "full"


_VARIANTS = {
  "no_anchor": _no_anchor,
  "fixed_stride": _schedule(4),
  "aggressive": _schedule(1, 2, 4, 8, 16, 32),
  "conservative": _schedule(1, 1, 2, 2, 4, 4),
  "full": _trained_mode("full"),
  "ours": lambda config: None,
  "ours_full": _ours_full,
  "token": _trained_mode("token"),
  "per_frame": _trained_mode("none"),
}
