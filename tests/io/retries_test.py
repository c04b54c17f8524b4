"""Which errors of a store are worth a second attempt, and what is said."""

import errno
import pickle
import re

import pytest

from sculpt4d_jax.io import retries


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
  monkeypatch.setattr(retries, "PATIENCE", 0.0)


def _message(error):
  def fail():
    calls.append(1)
    raise error

  calls = []
  with pytest.raises(retries.StoreError) as caught:
    retries.retry(fail, "gs://b/x")
  assert len(calls) == 1
  return str(caught.value)


class _HttpError(Exception):  # As gcsfs has it.
  def __init__(self, code):
    self.code = code
    super().__init__(f"refused, {code}")


class _ClientError(Exception):  # As botocore has it.
  def __init__(self, status, code):
    self.response = {
      "Error": {"Code": code, "Message": "m"},
      "ResponseMetadata": {"HTTPStatusCode": status},
    }
    super().__init__(f"An error occurred ({code})")


def _translated(status, code):
  """As s3fs raises it."""
  error = OSError(errno.EIO, code)
  error.__cause__ = _ClientError(status, code)
  return error


class NoCredentialsError(Exception):
  """As botocore calls it."""


@pytest.mark.parametrize(
  "error,text",
  [
    (PermissionError("no"), "no permission.*no"),
    # The first line is an address that the user has never seen.
    (OSError("Forbidden: http://x/o\nu lacks y"), r"no permission \(.*u lacks"),
    (ValueError("Bad Request: http://x/o\ninvalid name"), "invalid name"),
    (_HttpError(403), "no permission"),
    (_HttpError(401), "no valid credentials.*gcloud auth"),
    (NoCredentialsError("none"), "no valid credentials"),
    (_translated(400, "InvalidArgument"), "InvalidArgument"),
  ],
)
def test_refusals_are_told_with_the_path(error, text):
  message = _message(error)
  assert message.startswith("gs://b/x: ")
  assert re.search(text, message), message


@pytest.mark.parametrize(
  "error",
  [
    _HttpError(503),
    _HttpError(429),
    _translated(400, "IncompleteBody"),
    _translated(503, "SlowDown"),
    ConnectionResetError("reset"),
    TimeoutError(),
  ],
)
def test_what_may_pass_is_tried_again(error, monkeypatch):
  monkeypatch.setattr(retries, "PATIENCE", 60.0)
  monkeypatch.setattr(retries, "_FIRST_PAUSE", 0.0)
  answers = [error, error, None]

  def work():
    answer = answers.pop(0)
    if answer is not None:
      raise answer
    return "done"

  assert retries.retry(work, "s3://b/x") == "done"


def test_an_object_that_is_missing_is_no_failure_of_the_store():
  def fail():
    raise FileNotFoundError("x")

  with pytest.raises(FileNotFoundError):
    retries.retry(fail, "gs://b/x")


def test_the_error_passes_between_processes():
  error = retries.StoreError(errno.EACCES, "no permission", "gs://b/x")
  assert str(pickle.loads(pickle.dumps(error))) == "gs://b/x: no permission"
  assert str(retries.StoreError("two words")) == "two words"
