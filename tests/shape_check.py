"""A type checker for jaxtyping's import hook that looks at shapes and dtypes.

jaxtyping binds the axis letters of a call; this checks every argument, and the
result, whose annotation is a jaxtyping array or a union with one. What is not
an array (a path, a configuration) is left to the reader.
"""

from collections.abc import Callable
import functools
import inspect
import types
import typing
from typing import Any

import jaxtyping


class ShapeError(TypeError):
  """An array has not the shape or dtype that its annotation says."""


def check(function: Callable[..., Any]) -> Callable[..., Any]:
  """Wraps a function so that its annotated arrays are checked."""
  signature = inspect.signature(function)
  if not any(
    map(
      _is_about_arrays,
      (
        *(p.annotation for p in signature.parameters.values()),
        signature.return_annotation,
      ),
    )
  ):
    return function

  @functools.wraps(function)
  def checked(*args: Any, **kwargs: Any) -> Any:
    bound = signature.bind(*args, **kwargs)
    for name, value in bound.arguments.items():
      _check(value, signature.parameters[name].annotation, name)
    result = function(*args, **kwargs)
    _check(result, signature.return_annotation, "the result")
    return result

  return checked


def _check(value: Any, annotation: Any, name: str) -> None:
  if isinstance(annotation, str) or not _is_about_arrays(annotation):
    return
  if typing.get_origin(annotation) is tuple:
    kinds = typing.get_args(annotation)
    if isinstance(value, tuple) and len(value) == len(kinds):
      for part, kind in zip(value, kinds):
        _check(part, kind, name)
    return
  choices = _choices(annotation)
  if any(kind is type(None) and value is None for kind in choices):
    return
  if any(_is_array(kind) and isinstance(value, kind) for kind in choices):
    return
  if any(
    not _is_array(kind) and isinstance(kind, type) and isinstance(value, kind)
    for kind in choices
  ):
    return
  if not hasattr(value, "shape"):
    return  # A number or a pytree: no shape to speak of.
  raise ShapeError(
    f"{name}: {annotation} does not hold {value.dtype}{list(value.shape)}"
    f" of {type(value).__name__}."
  )


def _choices(annotation: Any) -> tuple[Any, ...]:
  if typing.get_origin(annotation) in (typing.Union, types.UnionType):
    return typing.get_args(annotation)
  return (annotation,)


def _is_array(annotation: Any) -> bool:
  return isinstance(annotation, type) and issubclass(
    annotation, jaxtyping.AbstractArray
  )


def _is_about_arrays(annotation: Any) -> bool:
  return _is_array(annotation) or any(
    map(_is_about_arrays, typing.get_args(annotation))
  )
