"""Errors with messages for users.

Problems that the caller can fix are raised as `UserError`: a missing file, a
value out of range, a package that is not installed. Programs print its message
and end with exit code 2 (`cli/exits.py`). Every other exception is a bug of
this project, and keeps its traceback.

The message says what was expected, what was found and what to do.
"""


class UserError(ValueError):
  """A request cannot be fulfilled, and the caller can fix the cause.

  Attributes:
    is_for_user: True. Programs check this attribute, because kernels have
      separate error classes of the same meaning.
  """

  is_for_user = True


class MissingPackageError(UserError, ImportError):
  """An optional package is not installed; the message names its extra."""
