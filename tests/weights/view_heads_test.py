"""Tests files of view heads."""

from flax import nnx
import jax
import numpy as np
import pytest

from sculpt4d_jax.models import view_head
from sculpt4d_jax.weights import view_heads

_CONFIG = view_head.ViewHeadConfig(
  num_tokens=5, token_width=6, token_features=3, width=8, num_members=2
)


def _head(seed: int = 0) -> view_head.ViewHead:
  return view_head.ViewHead(_CONFIG, rngs=nnx.Rngs(seed))


def test_file_round_trip(tmp_path):
  head = _head(seed=1)
  path = view_heads.save(tmp_path, head, {"errors": [0.1]})
  assert path.parent == tmp_path
  loaded = view_heads.load(tmp_path)
  assert loaded.config == _CONFIG
  for ours, theirs in zip(
    jax.tree.leaves(nnx.state(head)), jax.tree.leaves(nnx.state(loaded))
  ):
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_a_folder_without_a_head_has_none(tmp_path):
  assert view_heads.load(tmp_path) is None


def test_a_damaged_file_is_an_error(tmp_path):
  (tmp_path / view_heads.FILE).write_bytes(b"nothing")
  with pytest.raises(ValueError, match=view_heads.FILE):
    view_heads.load(tmp_path)
