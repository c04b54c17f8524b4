from flax import nnx
import numpy as np
import pytest

from sculpt4d_jax.models import layers
from sculpt4d_jax.weights import rules as weight_rules

Rule = weight_rules.Rule


def stacked_table():
  rule = Rule("l.{i}.w", "kernel[{i}]", weight_rules.linear())
  bias = Rule("b", "bias", weight_rules.flat())
  return [rule.fill(i=0), rule.fill(i=1), bias]


SHAPES = {"kernel": (2, 3, 2, 2), "bias": (2, 2)}


def checkpoint():
  rng = np.random.default_rng(0)
  return {
    "l.0.w": rng.standard_normal((4, 3)),
    "l.1.w": rng.standard_normal((4, 3)),
    "b": np.arange(4.0),
  }


def test_fills_slots_of_a_stack():
  source = checkpoint()
  params = weight_rules.convert(stacked_table(), source, SHAPES)
  np.testing.assert_allclose(
    params["kernel"][1], source["l.1.w"].T.reshape(3, 2, 2), rtol=1e-6
  )
  np.testing.assert_array_equal(params["bias"], [[0, 1], [2, 3]])
  assert params["kernel"].dtype == np.float32


def test_export_is_the_inverse_of_convert():
  source = checkpoint()
  params = weight_rules.convert(
    stacked_table(), source, SHAPES, dtype=np.float64
  )
  back = weight_rules.export(stacked_table(), params)
  assert back.keys() == source.keys()
  for name, array in back.items():
    np.testing.assert_array_equal(array, source[name])


def test_interleaved_heads_by_hand():
  # Two heads of width 1, parts q and k: the rows are q0 k0 q1 k1.
  rows = np.array([[10.0, 11.0], [20.0, 21.0], [30.0, 31.0], [40.0, 41.0]])
  transform = weight_rules.interleaved_heads(num_sources=2)
  shapes = ((2, 2, 1), (2, 2, 1))  # [in, H, K]
  query, key = transform.forward((rows[:2], rows[2:]), shapes)
  np.testing.assert_array_equal(query[..., 0], [[10, 30], [11, 31]])
  np.testing.assert_array_equal(key[..., 0], [[20, 40], [21, 41]])
  back = transform.inverse((query, key))
  np.testing.assert_array_equal(np.concatenate(back), rows)


def test_interleaved_heads_serves_biases():
  transform = weight_rules.interleaved_heads()
  bias = np.arange(12.0)  # Two heads, three parts, width 2.
  parts = transform.forward((bias,), ((2, 2),) * 3)
  np.testing.assert_array_equal(parts[1], [[2, 3], [8, 9]])
  np.testing.assert_array_equal(transform.inverse(tuple(parts))[0], bias)


def test_all_differences_are_reported_together_with_near_names():
  source = checkpoint()
  source["l.1.ww"] = source.pop("l.1.w")
  source["b"] = np.zeros(5)
  table = stacked_table() + [Rule("l.0.w", "kernell[0]")]
  with pytest.raises(ValueError) as error:
    weight_rules.convert(table, source, SHAPES | {"gain": (3,)})
  text = str(error.value)
  assert "l.1.w (nearest: l.1.ww" in text
  assert "l.1.ww (nearest: l.1.w)" in text
  assert "kernell (nearest: kernel)" in text
  assert "\n    gain" in text  # Of the model, filled by no rule.
  assert "b -> bias" in text  # Five numbers for a shape of four.


def test_partly_filled_stack_is_an_error_even_if_optional():
  source = checkpoint()
  del source["l.1.w"]
  table = stacked_table()
  del table[1]
  with pytest.raises(ValueError, match="partly filled"):
    weight_rules.convert(table, source, SHAPES, optional=["kernel"])


def test_patterns_excuse_names_on_either_side():
  source = checkpoint() | {"mask_token": np.zeros(3)}
  params = weight_rules.convert(
    stacked_table(),
    source,
    SHAPES | {"temporal.out": (3,)},
    ignore=["mask_.*"],
    optional=[r"temporal\..*"],
  )
  assert params.keys() == SHAPES.keys()


def test_shapes_of_a_module_by_path():
  module = layers.Linear(3, (2, 2), kernel_axes=(None,) * 3, rngs=nnx.Rngs(0))
  assert weight_rules.param_shapes(module) == {
    "kernel": (3, 2, 2),
    "bias": (2, 2),
  }
