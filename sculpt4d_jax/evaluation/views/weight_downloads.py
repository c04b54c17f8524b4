"""Downloads weights of picture networks, only when asked to.

  vgg16.pth               by torchvision, from its own address
  clip-vit-base-patch32/  by huggingface_hub

Their libraries know the addresses and check the files. The other weights have
no library that downloads only them: LPIPS's heads are in the package `lpips`,
and I3D, CLIP ViT-bigG-14 (10 GB) and DreamSim are fetched by hand.
"""

from collections.abc import Callable
import os
import pathlib
import tempfile

from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation.views import weight_files
from sculpt4d_jax.io import paths
from sculpt4d_jax.io import staged

PathLike = str | os.PathLike

_CLIP = "openai/clip-vit-base-patch32"
_CLIP_FILES = ("config.json", "model.safetensors", "pytorch_model.bin")


def download(folder: PathLike) -> list[str]:
  """Downloads what is missing in a folder and can be downloaded.

  Args:
    folder: Folder of weights; it is made.

  Returns:
    Keys of the networks whose weights were downloaded.

  Raises:
    UserError: A download failed.
    ImportError: A library is missing; the message names it.
  """
  folder = paths.on_disk(folder, "the folder of weights")
  folder.mkdir(parents=True, exist_ok=True)
  done = []
  for key, fetch in _FETCH.items():
    try:
      weight_files.find(folder, key)
    except weight_files.MissingWeights:
      fetch(folder / weight_files.FILES[key].name)
      done.append(key)
  return done


def _vgg16(target: pathlib.Path) -> None:
  try:
    import torch
    from torchvision import models
  except ImportError as error:
    raise MissingPackageError(
      f"--download of {target.name} needs torchvision: pip install"
      " 'sculpt4d-jax[views]'."
    ) from error
  url = models.VGG16_Weights.IMAGENET1K_V1.url
  # The file's name ends with the first digits of its SHA-256.
  digits = pathlib.PurePosixPath(url).stem.rpartition("-")[2]
  with tempfile.TemporaryDirectory(dir=target.parent) as place:
    part = pathlib.Path(place) / target.name
    try:
      torch.hub.download_url_to_file(url, str(part), hash_prefix=digits)
    except (OSError, RuntimeError) as error:
      raise UserError(f"The download of {url} failed: {error}.") from error
    part.replace(target)


def _clip_b32(target: pathlib.Path) -> None:
  try:
    import huggingface_hub
  except ImportError as error:
    raise MissingPackageError(
      f"--download of {target.name} needs huggingface_hub (the extra 'hub')."
    ) from error
  with staged.staged_folder(target) as place:
    try:
      huggingface_hub.snapshot_download(
        _CLIP, allow_patterns=list(_CLIP_FILES), local_dir=place
      )
    except Exception as error:  # Its errors have many classes.
      raise UserError(f"The download of {_CLIP} failed: {error}.") from error


_FETCH: dict[str, Callable[[pathlib.Path], None]] = {
  "vgg16": _vgg16,
  "clip_b32": _clip_b32,
}
