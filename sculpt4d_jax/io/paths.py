"""Paths of files and of objects in buckets.

`of` turns a user's text into a path: `pathlib.Path` for a file system, and
`StorePath` for `gs://bucket/name` and `s3://bucket/name`. A `StorePath` has the
part of pathlib's interface that this project uses. It is not `os.PathLike`, so
functions that only support file systems reject it at once.

A store differs from a file system in three ways that matter to callers:

  An object is written atomically and replaces an older one in one step.
  A folder is only a common prefix of names: it is neither made nor renamed, and
  its objects appear one by one. The file that marks a folder as complete is
  therefore written last.
  A store may be unavailable for a while: every operation is retried, with
  growing pauses (`retries.py`).

Stores are accessed through fsspec by the packages gcsfs and s3fs, which find
credentials in the way of their cloud; this module reads none.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
import datetime
import errno
import fnmatch
import functools
import io
import os
import pathlib
import posixpath
import re
import types
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import retries

if TYPE_CHECKING:
  import fsspec

T = TypeVar("T")
LocalPath = pathlib.Path
StoreError = retries.StoreError

# Package and extra for each kind of store.
STORES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
_AT_ONCE = 16  # Objects that are removed at once.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
# What is no path of a machine, although nothing forbids it there.
_NEARLY = re.compile(rf"\s*({'|'.join(STORES)}):", re.IGNORECASE)
# The clouds' rules are narrower; what they refuse, they explain.
_BUCKET = re.compile(r"[A-Za-z0-9._-]+")


def of(path: Any) -> Any:
  """The path for a user's text.

  Args:
    path: A file, a folder, or a `gs://` or `s3://` URL; a path stays the same.

  Returns:
    `pathlib.Path` or `StorePath`.

  Raises:
    ValueError: The URL is of another kind, or has no bucket, or it was turned
      into a `pathlib.Path`, which takes a slash away.
  """
  if isinstance(path, StorePath):
    return path
  text = os.fspath(path)
  if isinstance(path, pathlib.Path):
    if _NEARLY.match(path.parts[0] if path.parts else ""):
      raise UserError(
        f"{text} was a URL; give it as text, since pathlib.Path changes it."
      )
    return path
  scheme = _SCHEME.match(text)
  if scheme is not None and scheme[1] == "file":
    return pathlib.Path(re.sub("^file:(//)?", "", text))
  # Without this, a misspelt URL would become a folder called "gs:".
  if scheme is None and not _NEARLY.match(text):
    return pathlib.Path(text)
  return StorePath(text)


def on_disk(path: Any, name: str) -> pathlib.Path:
  """The path for a user's text that must be on a disk.

  Args:
    path: A file or a folder.
    name: Name for the message, for instance of a flag.

  Raises:
    ValueError: It is a URL.
  """
  path = of(path)
  if isinstance(path, StorePath):
    raise UserError(f"{name}={path} must be on a disk, not in a bucket.")
  return path


def is_remote(path: Any) -> bool:
  """Whether a path is in a store."""
  return isinstance(of(path), StorePath)


@functools.total_ordering
class StorePath:
  """An object of a store, or the beginning of the names of some objects."""

  def __init__(self, url: str):
    scheme, separator, rest = url.partition("://")
    if scheme not in STORES or not separator:
      known = " and ".join(f"{name}://BUCKET/..." for name in STORES)
      raise UserError(
        f"{url}: expected a path on this machine, or {known} in a store."
      )
    # As pathlib has it, except that ".." would be a folder of that name.
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    if not parts or not rest.split("/")[0]:
      raise UserError(f"{url} names no bucket: expected {scheme}://BUCKET/...")
    if not _BUCKET.fullmatch(parts[0]):
      raise UserError(
        f"{url}: {parts[0]!r} cannot be a bucket's name, which has letters,"
        " digits, dots, dashes and underscores."
      )
    if ".." in parts:
      raise UserError(f"{url}: a store has no folder '..'.")
    self.scheme = scheme
    self.bucket = parts[0]
    self._parts = tuple(parts)

  @property
  def key(self) -> str:
    """Bucket and name, as fsspec expects them."""
    return "/".join(self._parts)

  @property
  def object_name(self) -> str:
    """The name in the bucket."""
    return "/".join(self._parts[1:])

  def __str__(self) -> str:
    return f"{self.scheme}://{self.key}"

  def __repr__(self) -> str:
    return f"StorePath({str(self)!r})"

  def __eq__(self, other: object) -> bool:
    return isinstance(other, StorePath) and str(self) == str(other)

  def __lt__(self, other: "StorePath") -> bool:
    return str(self) < str(other)

  def __hash__(self) -> int:
    return hash(str(self))

  def __truediv__(self, name: str | pathlib.PurePath) -> "StorePath":
    return StorePath(f"{self}/{pathlib.PurePath(name).as_posix()}")

  @property
  def name(self) -> str:
    """The last part; the bucket where the path is a whole bucket."""
    return self._parts[-1]

  @property
  def suffix(self) -> str:
    """The ending of the name with its dot, or ""."""
    return posixpath.splitext(self.name)[1]

  @property
  def stem(self) -> str:
    """The name without its suffix."""
    return posixpath.splitext(self.name)[0]

  @property
  def parent(self) -> "StorePath":
    """The path one level up; the parent of a bucket is the bucket."""
    return StorePath(
      f"{self.scheme}://{'/'.join(self._parts[:-1] or self._parts)}"
    )

  def with_name(self, name: str) -> "StorePath":
    """The path with another last part."""
    return self.parent / name

  def relative_to(self, other: "StorePath") -> pathlib.PurePosixPath:
    """The names that lead from `other` to this path.

    Raises:
      ValueError: This path is not below `other`.
    """
    return pathlib.PurePosixPath(self.key).relative_to(other.key)

  def as_posix(self) -> str:
    """The URL, which has forward slashes already."""
    return str(self)

  def absolute(self) -> "StorePath":
    """This path: there is no current folder in a store."""
    return self

  def info(self) -> dict[str, Any] | None:
    """The store's metadata of an object or folder; None if there is none."""
    try:
      return self._try(lambda fs: fs.info(self.key))
    except FileNotFoundError:
      return None

  def exists(self) -> bool:
    """Whether an object has this name, or names begin with it and a slash."""
    return self.info() is not None

  def is_file(self) -> bool:
    """Whether an object has this name."""
    return (self.info() or {}).get("type") == "file"

  def is_dir(self) -> bool:
    """Whether objects exist below this name."""
    return (self.info() or {}).get("type") == "directory"

  def stat(self) -> types.SimpleNamespace:
    """The size and the time of the last write: `st_size`, `st_mtime_ns`."""
    info = self.info()
    if info is None:
      raise FileNotFoundError(2, "No such object", str(self))
    written = info.get("LastModified") or info.get("updated")
    if isinstance(written, str):
      written = datetime.datetime.fromisoformat(written)
    nanoseconds = int(written.timestamp() * 1e6) * 1000 if written else 0
    return types.SimpleNamespace(
      st_size=int(info["size"] or 0), st_mtime_ns=nanoseconds
    )

  def check_is_object(self) -> None:
    """Raises UserError if the path names a bucket, which holds no bytes."""
    if not self.object_name:
      raise UserError(f"{self} is a bucket; name an object in it: {self}/NAME.")

  def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
    """Does nothing: a store has no folders."""
    del parents, exist_ok

  def read_bytes(self) -> bytes:
    """The complete object.

    Raises:
      FileNotFoundError: There is no such object.
      StoreError: The store cannot be used.
    """
    return self._try(lambda fs: fs.cat_file(self.key))

  def read_text(self) -> str:
    """The complete object, decoded as UTF-8; errors as in `read_bytes`."""
    return self.read_bytes().decode()

  def read_range(self, begin: int, end: int) -> bytes:
    """The bytes from `begin` to `end`.

    Raises:
      StoreError: The object is shorter, or the store cannot be used.
    """

    def read(fs: "fsspec.AbstractFileSystem") -> bytes:
      content = fs.cat_file(self.key, start=begin, end=end)
      if len(content) != end - begin:
        size = int(fs.info(self.key)["size"])
        if size < end:  # Not a short answer: the object was replaced.
          raise EOFError(f"it has {size} bytes, and {end} were expected")
        raise OSError(f"received {len(content)} of {end - begin} bytes")
      return content

    return self._try(read)

  def open(self, mode: str = "rb") -> BinaryIO:
    """Opens the complete object for reading."""
    if mode != "rb":
      raise UserError(f"mode={mode!r}: an object is opened with 'rb' alone.")
    return io.BytesIO(self.read_bytes())

  def write_bytes(self, content: bytes) -> None:
    """Writes the object in one step and checks the size that arrived.

    Raises:
      StoreError: There is no such bucket, or it may not be written to.
    """

    def write(fs: "fsspec.AbstractFileSystem") -> None:
      fs.pipe_file(self.key, content)
      self._check_size(fs, len(content))

    self._write(write)

  def write_text(self, text: str) -> None:
    """Writes text as UTF-8; see `write_bytes`."""
    self.write_bytes(text.encode())

  def upload(self, file: pathlib.Path) -> dict[str, Any]:
    """Makes the object from a file; errors as in `write_bytes`.

    Returns:
      The store's metadata of the object.
    """
    size = file.stat().st_size

    def write(fs: "fsspec.AbstractFileSystem") -> dict[str, Any]:
      fs.put_file(os.fspath(file), self.key)
      return self._check_size(fs, size)

    return self._write(write)

  def download(self, file: pathlib.Path) -> None:
    """Copies the object into a file, which is replaced atomically."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}-{os.getpid()}-{id(self):x}")
    try:

      def read(fs: "fsspec.AbstractFileSystem") -> None:
        fs.get_file(self.key, os.fspath(temporary))
        size = int(fs.info(self.key)["size"])
        if temporary.stat().st_size != size:
          raise OSError(f"received {temporary.stat().st_size} of {size} bytes")

      self._try(read)
      os.replace(temporary, file)
    finally:
      temporary.unlink(missing_ok=True)

  def unlink(self, missing_ok: bool = False) -> None:
    """Removes the object.

    Raises:
      FileNotFoundError: There is none, and `missing_ok` is false.
    """
    try:
      self._try(lambda fs: fs.rm_file(self.key))
    except FileNotFoundError:
      if not missing_ok:
        raise

  def rmtree(self) -> None:
    """Removes all objects whose names begin with this one and a slash."""
    found = [path for path, _ in self.walk()]
    with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
      list(pool.map(lambda path: path.unlink(missing_ok=True), found))

  def walk(self) -> list[tuple["StorePath", dict[str, Any]]]:
    """All objects below this one, with the store's metadata."""
    try:
      found = self._try(lambda fs: fs.find(self.key, detail=True))
    except FileNotFoundError:
      return []
    return [
      (path, info)
      for key, info in sorted(found.items())
      # Objects whose names end with a slash are folders, made by a console.
      if info.get("type") == "file"
      and not key.endswith("/")
      and (path := self._of_key(key)) not in (None, self)
    ]

  def iterdir(self) -> Iterator["StorePath"]:
    """Objects and folders one level below; none where nothing exists."""
    try:
      found = self._try(lambda fs: fs.ls(self.key, detail=True))
    except FileNotFoundError:
      return
    for info in found:
      path = self._of_key(info["name"])
      if path not in (None, self):
        yield path

  def glob(self, pattern: str) -> Iterator["StorePath"]:
    """Paths below this one whose relative names match, level by level."""
    first, _, rest = pattern.partition("/")
    for path in self.iterdir():
      if fnmatch.fnmatchcase(path.name, first):
        if rest:
          yield from path.glob(rest)
        else:
          yield path

  def _of_key(self, key: str) -> "StorePath | None":
    """The path of a listed object; None for names that no path has."""
    try:
      return StorePath(f"{self.scheme}://{key.strip('/')}")
    except UserError:  # Of another program: "a/../b".
      return None

  def _check_size(
    self, fs: "fsspec.AbstractFileSystem", size: int
  ) -> dict[str, Any]:
    info = fs.info(self.key)
    if int(info["size"]) != size:
      raise OSError(f"{info['size']} of {size} bytes arrived")
    return info

  def _write(self, operation: Callable[["fsspec.AbstractFileSystem"], T]) -> T:
    self.check_is_object()
    try:
      return self._try(operation)
    except FileNotFoundError as error:
      raise StoreError(
        errno.ENOENT,
        f"the store does not find it; is there a bucket {self.bucket}?",
        str(self),
      ) from error

  def _try(self, operation: Callable[["fsspec.AbstractFileSystem"], T]) -> T:
    try:
      return retries.retry(
        lambda: operation(file_system(self.scheme)), str(self)
      )
    except FileNotFoundError as error:
      # The packages name the address of the request, if anything.
      raise FileNotFoundError(
        errno.ENOENT, "No such object", str(self)
      ) from error


PathLike = str | os.PathLike | StorePath


def file_system(scheme: str) -> Any:
  """Fsspec's file system for a kind of store, one per process.

  Raises:
    ImportError: The package of this kind of store is not installed.
  """
  package, extra = STORES[scheme]
  # gcsfs would query every bucket's type from another service, for which not
  # every account has permission.
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  try:
    import fsspec

    options: dict[str, Any] = dict(use_listings_cache=False)
    if scheme == "gs" and os.environ.get("STORAGE_EMULATOR_HOST"):
      options["token"] = "anon"  # An emulator needs no credentials.
    return fsspec.filesystem(scheme, **options)
  except ImportError as error:
    raise MissingPackageError(
      f"{scheme}:// needs the package {package}: pip install"
      f" 'sculpt4d-jax[{extra}]' or pip install {package}."
    ) from error


def kvstore(path: Any) -> dict[str, Any]:
  """TensorStore's specification of a path, in a store or on a disk."""
  path = of(path)
  if not isinstance(path, StorePath):
    return {"driver": "file", "path": f"{path.absolute()}/"}
  spec: dict[str, Any] = {
    "driver": "gcs" if path.scheme == "gs" else "s3",
    "bucket": path.bucket,
    "path": f"{path.object_name}/",
  }
  if path.scheme == "gs" and os.environ.get("STORAGE_EMULATOR_HOST"):
    host = os.environ["STORAGE_EMULATOR_HOST"]
    os.environ.setdefault(
      "TENSORSTORE_GCS_HTTP_URL",
      host if "://" in host else f"http://{host}",
    )
    os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "emulator")
  if path.scheme == "s3" and (endpoint := _s3_endpoint()):
    spec["endpoint"] = endpoint
    spec["aws_region"] = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
  return spec


def _s3_endpoint() -> str | None:
  """The address of another store than Amazon's, as Amazon's library reads it."""
  names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
  return next((os.environ[n] for n in names if os.environ.get(n)), None)
