"""Traced programs, to count what they do."""

from collections.abc import Iterator

import jax
from jax.extend import core


def operations(program: core.Jaxpr) -> Iterator[core.JaxprEqn]:
  """All operations of a program and of all that it calls, loops once.

  The insides of Pallas kernels are left out.
  """
  for operation in program.eqns:
    yield operation
    if operation.primitive.name == "pallas_call":
      continue
    for value in jax.tree.leaves(list(operation.params.values())):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from operations(inner)
