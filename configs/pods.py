r"""The released size on slices of TPUs and on GPUs.

  python -m launch.train --config=configs/pods.py:v5p-64 --workdir=$WORKDIR
  python -m launch.train --config=configs/pods.py:v5p-64-vae --stages=data,vae \
      --workdir=$WORKDIR
  python -m launch.compile_check --config=configs/pods.py:v5p-64 \
      --topology=v5p:4x4x4
  python -m launch.compile_check --config=configs/pods.py:v5p-64-vae \
      --topology=v5p:4x4x4 --what=train_vae

Parameters are split over all chips and frames over `context`, so a chip has few
frames for any batch. None of these was trained; docs/pods.md has the compiler's
figures.

Names ending in -vae are for training the autoencoder. Its frames are
independent, so clips are split over all chips; activations of layers are
recomputed in the backward pass.

  v5p-64    v5p:4x4x4, 64 chips (Google's name: v5p-128, which counts cores)
  v6e-256   v6e:16x16
  v5e-64    v5e:8x8
  gpu-8     one machine with 8 GPUs of 80 GB or more
"""

import ml_collections

from sculpt4d_jax.configs import base

_MESHES = {
  "v5p-64": dict(fsdp=16, context=4),
  "v6e-256": dict(fsdp=16, context=16),
  "v5e-64": dict(fsdp=8, context=8),
  "gpu-8": dict(fsdp=8, context=1),
}
# What there is room for, and pays; docs/pods.md has the accounts.
_REMAT_POLICIES = {
  "v5p-64": "keep_products",
  "v6e-256": "keep_attention",
  "v5e-64": "keep_temporal",
}
_VAE = "-vae"


def get_config(name: str = "v5p-64") -> ml_collections.ConfigDict:
  """Returns the released size with a mesh by name."""
  slice_name = name.removesuffix(_VAE)
  if slice_name not in _MESHES:
    raise ValueError(
      f"Unknown slice {name!r}; choose one of {list(_MESHES)}, with {_VAE!r}"
      " behind it to train the autoencoder."
    )
  config = base.get_config()
  config.name = f"sculpt4d_{name}"
  config.mesh.update(_MESHES[slice_name])
  if slice_name in _REMAT_POLICIES:
    config.model.dit.remat_policy = _REMAT_POLICIES[slice_name]
  if name != slice_name:
    _train_vae(config)
  return config


def _train_vae(config: ml_collections.ConfigDict) -> None:
  """Splits clips over all chips: a multiple of the chips and of 32."""
  num_chips = config.mesh.fsdp * config.mesh.context
  config.mesh.update(dict(fsdp=num_chips, context=1))
  config.vae_training.batch_size = max(32, num_chips)
  config.model.vae.remat_policy = "full"
