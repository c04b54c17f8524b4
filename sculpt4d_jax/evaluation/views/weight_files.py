"""Local weight files of the networks that compare pictures.

Nothing is downloaded here (see `weight_downloads`). A folder is searched for
the names below. Files that are found are reported with size and SHA-256,
because scores depend on the weights. A metric whose file is missing is
undefined, with a note.
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import importlib.util
import os
import pathlib

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import paths

PathLike = str | os.PathLike

_CHUNK = 1 << 20


class MissingWeights(UserError):
  """A network's file was not found."""


@dataclasses.dataclass(frozen=True)
class WeightFile:
  """A file or a folder that a network is read from.

  Attributes:
    key: Name of the network.
    name: Name in the folder of weights; .safetensors is accepted too.
    purpose: Description of the network.
  """

  key: str
  name: str
  purpose: str


FILES = {
  entry.key: entry
  for entry in (
    WeightFile("vgg16", "vgg16.pth", "torchvision's VGG16 of LPIPS"),
    WeightFile("lpips_heads", "lpips_vgg.pth", "linear heads v0.1 of LPIPS"),
    WeightFile("clip_b32", "clip-vit-base-patch32", "CLIP ViT-B/32"),
    WeightFile("clip_bigg", "open_clip_bigg14.bin", "CLIP ViT-bigG-14"),
    WeightFile("dreamsim", "dreamsim", "DreamSim's ensemble"),
    WeightFile("i3d", "i3d_torchscript.pt", "I3D of StyleGAN-V"),
  )
}


def find(folder: PathLike | None, key: str) -> pathlib.Path:
  """The path of a network's weights.

  Raises:
    MissingWeights: It is not in the folder; the message names the file.
  """
  entry = FILES[key]
  if folder is not None:
    path = paths.on_disk(folder, "the folder of weights") / entry.name
    for candidate in (path, path.with_suffix(".safetensors")):
      if candidate.exists():
        return candidate
  if key == "lpips_heads":
    path = _installed_heads()
    if path is not None:
      return path
  where = f"not in {folder}" if folder else "no folder of weights was given"
  raise MissingWeights(f"no weights: {entry.name} ({entry.purpose}), {where}")


def found(folder: PathLike | None) -> dict[str, dict[str, object]]:
  """Path, bytes and SHA-256 of every network found, by its key."""
  report = {}
  for key in FILES:
    try:
      path = find(folder, key)
    except MissingWeights:
      continue
    size, digest = _digest(path)
    report[key] = {"file": path.name, "bytes": size, "sha256": digest}
  return report


def describe(
  folder: PathLike | None, report: Mapping[str, Mapping[str, object]]
) -> str:
  """A line for each file that was looked for; `report` is of `found`."""
  lines = [f"Weights looked for in {folder or 'no folder (--weights)'}:"]
  for key, entry in FILES.items():
    what = f"  {entry.name:<24} {entry.purpose:<30} "
    if key in report:
      row = report[key]
      lines.append(f"{what}{row['bytes']:,} bytes, SHA-256 {row['sha256']}")
    else:
      lines.append(f"{what}missing")
  return "\n".join(lines)


def _installed_heads() -> pathlib.Path | None:
  """The heads that the package lpips carries, without importing it."""
  try:
    spec = importlib.util.find_spec("lpips")
  except (ImportError, ValueError):
    return None
  if spec is None or spec.origin is None:
    return None
  path = pathlib.Path(spec.origin).parent / "weights" / "v0.1" / "vgg.pth"
  return path if path.is_file() else None


@functools.lru_cache(maxsize=32)
def _digest(path: pathlib.Path) -> tuple[int, str]:
  digest, size = hashlib.sha256(), 0
  files = [path]
  if path.is_dir():
    files = sorted(file for file in path.rglob("*") if file.is_file())
  for file in files:
    if path.is_dir():
      digest.update(str(file.relative_to(path)).encode() + b"\0")
    with open(file, "rb") as stream:
      while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
  return size, digest.hexdigest()
