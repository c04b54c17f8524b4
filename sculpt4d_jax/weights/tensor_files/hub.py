"""Finds a checkpoint: a local path, or a repository to download.

Downloads go through `huggingface_hub`, with its cache, its progress bars and
its offline mode (HF_HUB_OFFLINE=1 or `offline=True`).
"""

import pathlib
import re

from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.weights.tensor_files import open_file
from sculpt4d_jax.weights.tensor_files import tensor_file

CheckpointError = tensor_file.CheckpointError

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
# Files needed from known repositories; the DiT's checkpoint also contains the
# VAE and the image encoder.
_PATTERNS = {
  "tencent/Hunyuan3D-2.1": ("hunyuan3d-dit-v2-1/*",),
  "facebook/dinov2-large": ("model.safetensors", "config.json"),
}
_ANY = ("*.safetensors", "*.ckpt", "*.pt", "*.pth", "*.bin", "*.json", "*.yaml")


def resolve(
  source: str,
  *,
  revision: str | None = None,
  cache: str | None = None,
  offline: bool = False,
) -> list[pathlib.Path]:
  """The checkpoint files of a file, a folder or a repository.

  Args:
    source: A path, or OWNER/NAME on Hugging Face. An existing path has
      priority.
    revision: Branch, tag or commit of a repository.
    cache: Folder of downloads; None is huggingface_hub's default.
    offline: Only uses earlier downloads.

  Raises:
    CheckpointError: Nothing is found, or a download failed.
    ImportError: huggingface_hub is needed and missing.
  """
  path = local_copies.fetch(source).expanduser()
  if path.is_dir():
    return open_file.find_files(path)
  if path.exists() or path.is_symlink():
    return [path]
  if not _REPO.fullmatch(source):
    raise CheckpointError(
      f"There is no file or folder {source}; a repository of Hugging Face is"
      " written OWNER/NAME."
    )
  folder = _download(source, revision, cache, offline)
  _check_finished(folder, source)
  return open_file.find_files(folder)


def _download(
  repo: str, revision: str | None, cache: str | None, offline: bool
) -> pathlib.Path:
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError as error:
    raise MissingPackageError(
      f"{repo} is neither a file nor a folder here; to download it from"
      " Hugging Face, pip install huggingface_hub (the extra 'hub')."
    ) from error
  patterns = _PATTERNS.get(repo, _ANY)
  try:
    folder = huggingface_hub.snapshot_download(
      repo,
      revision=revision,
      cache_dir=cache,
      allow_patterns=list(patterns),
      local_files_only=offline,
    )
  except errors.LocalEntryNotFoundError as error:
    raise CheckpointError(
      f"{repo} is not in the cache of downloads, and there is no connection"
      " or --offline was given. Download it once with a connection."
    ) from error
  except errors.GatedRepoError as error:
    raise CheckpointError(
      f"{repo} wants its terms to be accepted: do so at"
      f" https://huggingface.co/{repo} and log in with `hf auth login`."
    ) from error
  except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as e:
    raise CheckpointError(f"Hugging Face has no {repo}: {e}.") from e
  except errors.HfHubHTTPError as error:
    raise CheckpointError(
      f"The download of {repo} failed: {error}. Run it again; it resumes"
      " where it stopped."
    ) from error
  return pathlib.Path(folder)


def _check_finished(folder: pathlib.Path, repo: str) -> None:
  """Rejects unfinished files, which a cache keeps next to finished ones."""
  blobs = folder.parents[1] / "blobs"
  unfinished = sorted(blobs.glob("*.incomplete")) if blobs.is_dir() else []
  if unfinished:
    raise CheckpointError(
      f"The download of {repo} into {folder.parents[1]} was not finished:"
      f" {len(unfinished)} files are incomplete. Run it again with a"
      " connection; it resumes where it stopped."
    )
