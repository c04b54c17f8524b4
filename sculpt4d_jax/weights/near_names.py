"""Suggests similar names for names that were not found."""

from collections.abc import Iterable, Mapping, Sequence
import difflib
import re

# Number of candidates that are compared letter by letter, which is slow: those
# that share most components with the name.
_COMPARED = 24


def suggest(
  names: Sequence[str], candidates: Iterable[str]
) -> Mapping[str, str]:
  """For each name " (nearest: a, b)", or "" if nothing is near."""
  pool = list(candidates)
  parts = [set(re.split(r"[._\[\],]", candidate)) for candidate in pool]
  result = {}
  for name in names:
    own = set(re.split(r"[._\[\],]", name))
    order = sorted(range(len(pool)), key=lambda i: -len(own & parts[i]))
    compared = [pool[i] for i in order[:_COMPARED]]
    near = difflib.get_close_matches(name, compared, n=2, cutoff=0.7)
    result[name] = f" (nearest: {', '.join(near)})" if near else ""
  return result
