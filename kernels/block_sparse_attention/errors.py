"""Errors whose message is for the caller.

Attributes:
  is_for_user: True: a program may print the message without a traceback.
"""


class RequestError(ValueError):
  """An argument is wrong, or does not fit another one."""

  is_for_user = True


class NotServedError(RequestError, NotImplementedError):
  """The call is valid, but this backend has no kernel for it."""


class MissingPackageError(RequestError, ImportError):
  """A package that the backend needs is not installed."""
