"""PyTorch's zip archives: .ckpt, .pt, .pth and .bin, without PyTorch.

An archive contains NAME/data.pkl, which lists the tensors, and an uncompressed
NAME/data/KEY with the data of each storage. `torch_pickle` reads the list
without running code; data are read directly from the archive, and their
checksums are verified.
"""

import pathlib
import struct
import zipfile
import zlib

import numpy as np

from sculpt4d_jax.weights.tensor_files import tensor_file
from sculpt4d_jax.weights.tensor_files import torch_pickle

CheckpointError = tensor_file.CheckpointError

_ZIP = b"PK\x03\x04"
# Start of files by PyTorch before 1.6: a pickled magic number.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LOCAL_HEADER = 30


class TorchFile(tensor_file.TensorFile):
  """A PyTorch checkpoint; nested dictionaries become dotted names."""

  def __init__(self, path: pathlib.Path):
    """Reads the list of tensors.

    Raises:
      CheckpointError: The file is truncated, of another format, or contains
        code.
    """
    _check_kind(path)
    self.path = path
    try:
      with zipfile.ZipFile(path) as archive:
        self._entries = {entry.filename: entry for entry in archive.infolist()}
        self._root = self._find_root(path)
        listing = self._small(archive, "data.pkl", torch_pickle.MAX_BYTES)
        order = self._small(archive, "byteorder", 64, b"little")
    except CheckpointError:
      raise
    # Raised by zipfile for other files, and for features that PyTorch does not
    # use: encryption, other compression methods.
    except (
      zipfile.BadZipFile,
      EOFError,
      zlib.error,
      struct.error,
      OSError,
      RuntimeError,
      ValueError,
    ) as error:
      # A file that is missing or may not be read: the system says so.
      if isinstance(error, OSError) and error.filename:
        raise
      raise CheckpointError(
        f"{path} is truncated or damaged: {error}. Download or copy it again."
      ) from error
    self._byte_order = "<" if order.strip() == b"little" else ">"
    tree = torch_pickle.load(listing, str(path))
    self._stored = torch_pickle.tensors(tree, str(path))
    # All at once, before a conversion has worked for an hour.
    self._check_storages(path)
    super().__init__(
      path,
      {
        name: tensor_file.TensorInfo(tensor.shape, tensor.storage.dtype)
        for name, tensor in self._stored.items()
      },
    )

  def read(self, name: str) -> np.ndarray:
    """Reads a tensor, a read-only view with the strides of the file.

    Raises:
      CheckpointError: The file is damaged.
    """
    tensor = self._stored[name]
    dtype = tensor_file.to_dtype(tensor.storage.dtype)
    entry = self._entries[self._key(tensor.storage)]
    start = tensor.offset * dtype.itemsize
    count = tensor.extent * dtype.itemsize
    content = self._content(entry, name, start, count)
    flat = np.frombuffer(content, _with_order(dtype, self._byte_order))
    if not flat.dtype.isnative:
      flat = flat.astype(dtype)
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    if not flat.size:
      return np.empty(tensor.shape, dtype)
    # Within `flat`: `torch_pickle` refuses views that leave their storage.
    return np.lib.stride_tricks.as_strided(
      flat, tensor.shape, strides, writeable=False
    )

  def _find_root(self, path: pathlib.Path) -> str:
    roots = [
      name.removesuffix("data.pkl")
      for name in self._entries
      if name == "data.pkl" or name.endswith("/data.pkl")
    ]
    if any(name.endswith("/constants.pkl") for name in self._entries):
      raise CheckpointError(
        f"{path} was refused: it is a TorchScript program, not a file of"
        " weights."
      )
    if len(roots) != 1:
      raise CheckpointError(
        f"{path} is a zip archive, but no PyTorch checkpoint: expected one"
        f" data.pkl in it, found {len(roots)}."
      )
    return roots[0]

  def _small(
    self,
    archive: zipfile.ZipFile,
    name: str,
    limit: int,
    default: bytes | None = None,
  ) -> bytes:
    entry = self._entries.get(self._root + name)
    if entry is None:
      return default
    if entry.file_size > limit:
      raise CheckpointError(
        f"{archive.filename}: {name} has {entry.file_size} bytes; no"
        " checkpoint needs so many."
      )
    if entry.compress_type != zipfile.ZIP_STORED:
      return archive.read(entry)
    return bytes(self._content(entry, name, 0, entry.file_size))

  def _content(
    self, entry: zipfile.ZipInfo, name: str, start: int, count: int
  ) -> bytearray:
    """A part of an entry; for a complete entry the checksum is verified."""
    # zipfile would read the entry from its start, and a tensor may be a small
    # part at the end of a storage that many share.
    content = tensor_file.read_bytes(
      self.path, self._data_offset(entry) + start, count
    )
    # A part has no checksum. Zero means that PyTorch was configured to omit
    # checksums.
    is_checked = count == entry.file_size and entry.CRC
    if is_checked and zlib.crc32(content) != entry.CRC:
      raise CheckpointError(
        f"{self.path} is damaged: the check sum of {name!r} does not fit its"
        " content. Download or copy it again."
      )
    return content

  def _key(self, storage: torch_pickle.Storage) -> str:
    return f"{self._root}data/{storage.key}"

  def _check_storages(self, path: pathlib.Path) -> None:
    problems = []
    for name, tensor in self._stored.items():
      entry = self._entries.get(self._key(tensor.storage))
      size = tensor_file.to_dtype(tensor.storage.dtype).itemsize
      size *= tensor.storage.size
      if entry is None:
        problems.append(f"the numbers of {name!r} are missing")
      elif entry.compress_type != zipfile.ZIP_STORED:
        problems.append(f"{name!r} is compressed, which PyTorch never does")
      elif entry.file_size != size:
        problems.append(
          f"{name!r} has {entry.file_size} bytes instead of {size}"
        )
    if problems:
      raise CheckpointError(
        f"{path} is damaged: {'; '.join(problems[:5])}"
        f"{f'; and {len(problems) - 5} more' if len(problems) > 5 else ''}."
        " Download or copy it again."
      )

  def _data_offset(self, entry: zipfile.ZipInfo) -> int:
    """Offset of an entry's bytes; its local header may be padded."""
    # PyTorch aligns data by filling the extra field of the local header, whose
    # length the central directory does not know:
    #
    #   [ 26 bytes | name length | extra length | name | extra | data ]
    header = tensor_file.read_bytes(
      self.path, entry.header_offset, _LOCAL_HEADER
    )
    if header[:4] != _ZIP:
      raise CheckpointError(
        f"{self.path} is damaged: no entry begins at byte"
        f" {entry.header_offset}. Download or copy it again."
      )
    name, extra = struct.unpack_from("<HH", header, 26)
    return entry.header_offset + _LOCAL_HEADER + name + extra


def _check_kind(path: pathlib.Path) -> None:
  with open(path, "rb") as file:
    start = file.read(64)
  if start[:4] == _ZIP:
    return
  if start.startswith(_LEGACY):
    raise CheckpointError(
      f"{path} is in the format of PyTorch before 1.6. Save it again with a"
      " newer one: torch.save(torch.load(FILE, weights_only=True), NEW)."
    )
  if start.startswith(b"version https://git-lfs"):
    raise CheckpointError(
      f"{path} is a pointer of Git LFS, not the weights: run git lfs pull."
    )
  if not start:
    raise CheckpointError(f"{path} is empty. Download or copy it again.")
  if start[:1] == b"\x80":
    raise CheckpointError(
      f"{path} was refused: it is a plain pickle, which may run code, and not"
      " the archive that torch.save writes."
    )
  raise CheckpointError(
    f"{path} is no PyTorch checkpoint: expected the zip archive that"
    " torch.save writes. If it was downloaded, download it again."
  )


def _with_order(dtype: np.dtype, order: str) -> np.dtype:
  # The byte order of ml_dtypes' types cannot be set; files are little-endian.
  return dtype if dtype.kind == "V" else dtype.newbyteorder(order)
