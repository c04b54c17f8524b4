"""Retries of a store's operations, and errors that are not worth one.

The packages of the clouds report a refusal in many ways: as Python's own
errors, as an `OSError` whose text begins with "Forbidden", or as an answer with
an HTTP status. `retry` raises a `StoreError` for them at once, and repeats
everything else.
"""

from collections.abc import Callable
import errno
import random
import time
from typing import Any, TypeVar

from absl import logging

T = TypeVar("T")

PATIENCE = 900.0  # Seconds of retries.
_FIRST_PAUSE, _LAST_PAUSE = 0.5, 30.0
# Class names, because the packages that define them may not be installed.
_NO_CREDENTIALS = frozenset(
  {
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "RefreshError",
  }
)
_FINAL_NAMES = frozenset({"ParamValidationError"})
_FINAL_KINDS = (
  PermissionError,
  FileExistsError,
  IsADirectoryError,
  NotADirectoryError,
  TypeError,
  AttributeError,
  NotImplementedError,
  EOFError,
)
_AGAIN_STATUS = frozenset({408, 429})  # HTTP status below 500.
# Amazon's names of errors that a second attempt may not meet: answers to an
# upload that arrived in part, and to too many requests.
_AGAIN_CODES = frozenset(
  {
    "BadDigest",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeTooSkewed",
    "SlowDown",
    "Throttling",
  }
)
# How gcsfs begins its texts for the statuses 403 and 400.
_FORBIDDEN, _BAD_REQUEST = "Forbidden: ", "Bad Request: "


class StoreError(OSError):
  """A store cannot be used; the message says which and why.

  Like every OSError it takes a number, a reason and a path, or a message alone.
  """

  def __str__(self) -> str:
    if self.filename is None:
      return super().__str__()
    return f"{self.filename}: {self.strerror}"


def retry(operation: Callable[[], T], what: str) -> T:
  """Calls an operation of a store until it succeeds or patience ends.

  Args:
    operation: Operation that may be repeated.
    what: The store's path, for messages.

  Raises:
    StoreError: It failed for `PATIENCE` seconds, or would fail again.
    FileNotFoundError: There is no such object.
  """
  began, pause = time.monotonic(), _FIRST_PAUSE
  while True:
    try:
      return operation()
    except Exception as error:
      if isinstance(error, (FileNotFoundError, ImportError)):
        raise
      if isinstance(error, StoreError):
        raise
      if _is_final(error):
        raise _refusal(error, what) from error
      if time.monotonic() - began + pause > PATIENCE:
        raise StoreError(
          errno.EIO,
          f"it could not be reached for {PATIENCE / 60:.0f} minutes:"
          f" {_reason(error)}",
          what,
        ) from error
      if time.monotonic() - began > 2.0:  # Single failures are not reported.
        logging.warning(
          "%s: %s; trying again in %.0f s.", what, _reason(error), pause
        )
    time.sleep(pause * random.uniform(0.7, 1.3))
    pause = min(2 * pause, _LAST_PAUSE)


def _refusal(error: Exception, what: str) -> StoreError:
  """The error for a refusal, with what a user can do about it."""
  if _names(error) & _NO_CREDENTIALS or _status(error) == 401:
    return StoreError(
      errno.EACCES,
      f"no valid credentials ({_reason(error)}). Log in as the cloud's own"
      " tools do (gcloud auth application-default login, aws configure), or"
      " use a machine with a service account",
      what,
    )
  if isinstance(error, PermissionError) or _status(error) == 403:
    return StoreError(errno.EACCES, f"no permission ({_reason(error)})", what)
  return StoreError(errno.EIO, _reason(error), what)


def _is_final(error: Exception) -> bool:
  """Whether a retry would fail in the same way."""
  if isinstance(error, _FINAL_KINDS):
    return True
  if _names(error) & (_NO_CREDENTIALS | _FINAL_NAMES):
    return True
  status = _status(error)
  return status is not None and 400 <= status < 500 and not _is_passing(error)


def _is_passing(error: Exception) -> bool:
  code = _amazon(error).get("Error", {}).get("Code")
  return code in _AGAIN_CODES or _status(error) in _AGAIN_STATUS


def _names(error: Exception) -> set[str]:
  return {kind.__name__ for kind in type(error).__mro__}


def _status(error: Exception) -> int | None:
  """The HTTP status behind an error, if it is known."""
  status = _amazon(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
  status = status or getattr(error, "code", None)
  if isinstance(status, int):
    return status
  for text, known in ((_FORBIDDEN, 403), (_BAD_REQUEST, 400)):
    if str(error).startswith(text):
      return known
  return None


def _amazon(error: Exception) -> dict[str, Any]:
  """The answer of S3 in an error, or in the one that it was made from."""
  for each in (error, error.__cause__, error.__context__):
    response = getattr(each, "response", None)
    if isinstance(response, dict):
      return response
  return {}


def _reason(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [type(error).__name__]
  if lines[0].startswith((_FORBIDDEN, _BAD_REQUEST)) and len(lines) > 1:
    lines = lines[1:]  # The first one has the address of the request.
  text = " ".join(line.strip() for line in lines)
  return f"{type(error).__name__}: {text}"[:300]
