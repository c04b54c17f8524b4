"""Errors whose message is for the user.

What the caller can mend is raised as a `UserError`: a missing file, a value
out of its range, a package that is not installed. Programs print its message
and end with exit code 2 (`cli/manners.py`). Every other exception is a bug of
this project, and keeps its traceback.

The message says what was expected, what was found and what to do.
"""


class UserError(ValueError):
  """What was asked for cannot be done, and the caller can mend it.

  Attributes:
    is_for_user: True. Programs look for this attribute, since kernels have
      their own error classes that mean the same.
  """

  is_for_user = True


class MissingPackageError(UserError, ImportError):
  """An optional package is not installed; the message names its extra."""
