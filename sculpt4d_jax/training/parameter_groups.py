"""Groups of parameters, for norms, learning rates and freezing."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError

Array = array_types.Array

# The first mark in a parameter's path decides; embeddings and norms are
# "other".
_MARKS = (
  ("image_encoder", "image_encoder"),
  ("field_head", "field_head"),
  ("temporal", "temporal"),
  ("router", "router"),
  ("experts", "experts"),
  ("attention", "attention"),
  ("mlp", "mlp"),
  ("shared_expert", "mlp"),
  ("skip_linear", "skip"),
)
GROUPS = tuple(dict.fromkeys(group for _, group in _MARKS)) + ("other",)
# Everything but the temporal layers.
BASE = "base"
_NOT_BASE = ("temporal",)


def group_of(path: tuple[Any, ...]) -> str:
  """The group of the parameter at a path of a tree."""
  return group_named(jax.tree_util.keystr(path))


def group_named(name: str) -> str:
  """The group of the parameter with this name, which contains its path."""
  return next((group for mark, group in _MARKS if mark in name), "other")


def as_names(names: Any) -> tuple[str, ...]:
  """Names of groups, checked.

  Raises:
    ValueError: A string is given instead of a tuple, or a name is unknown.
  """
  word = names if isinstance(names, str) else "".join(names)
  if isinstance(names, str) or (
    len(word) == len(names) > 1 and word in {*GROUPS, BASE}
  ):
    # A string would be iterated letter by letter.
    raise UserError(
      f"frozen={word} must be a tuple of groups, also for a single one: write"
      f" optimizer.frozen=('{word}',)."
    )
  check_names(tuple(names))
  return tuple(names)


def check_names(names: tuple[str, ...]) -> None:
  """Raises ValueError for a name that is neither a group nor "base"."""
  unknown = set(names) - {*GROUPS, BASE}
  if unknown:
    raise UserError(
      f"Unknown groups of parameters {sorted(unknown)}; choose among"
      f" {[*GROUPS, BASE]}, where {BASE!r} is everything but the temporal"
      " layers."
    )


def is_frozen(group: str, frozen: tuple[str, ...]) -> bool:
  """Whether a group is among the frozen ones, or part of a frozen base."""
  return group in frozen or (BASE in frozen and group not in _NOT_BASE)


def label(tree: Any, of_group: Callable[[str], str]) -> Any:
  """A tree of labels, one for each parameter."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: of_group(group_of(path)), tree
  )


def norms(tree: Any) -> dict[str, Array]:
  """Norm of every group that has parameters."""
  members = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    members.setdefault(group_of(path), []).append(leaf)
  return {group: optax.tree.norm(leaves) for group, leaves in members.items()}
