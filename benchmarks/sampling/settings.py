"""Parses settings of the sampler written in one line."""

import ast
from typing import Any

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import sampling


def parse(text: str, fields: dict[str, Any]) -> sampling.SamplingConfig:
  """Parses "fast", "solver=ab2 num_steps=9" or both, separated by blanks.

  Args:
    text: Names of presets and fields with their values.
    fields: Values of the fields that the text does not mention.

  Raises:
    ValueError: A field or preset is unknown, or a value out of range.
  """
  fields = dict(fields)
  for word in text.split():
    name, equals, value = word.partition("=")
    if not equals:
      fields |= sampling.preset(name)
    elif name not in fields:
      raise UserError(f"{word!r}: config.sampling has no field {name!r}.")
    else:
      fields[name] = _value(value)
  return sampling.SamplingConfig(**fields)


def _value(text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text  # A word.
