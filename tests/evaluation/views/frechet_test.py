import numpy as np
import pytest
from scipy import linalg

from sculpt4d_jax.evaluation.views import frechet


def by_square_root(a, b):
  """The formula as in the paper, with scipy's square root of a matrix."""
  covariances = [np.cov(x, rowvar=False) for x in (a, b)]
  root = linalg.sqrtm(covariances[0] @ covariances[1])
  shift = np.square(a.mean(0) - b.mean(0)).sum()
  traces = np.trace(covariances[0]) + np.trace(covariances[1])
  return shift + traces - 2 * np.trace(np.real(root))


def sets(num_a, num_b, num_features):
  rng = np.random.default_rng(0)
  mix = rng.normal(size=(num_features, num_features))
  return rng.normal(size=(num_a, num_features)) @ mix, 0.5 + rng.normal(
    size=(num_b, num_features)
  )


def test_equals_the_square_root_where_there_are_many_samples():
  a, b = sets(300, 200, 12)
  expected = by_square_root(a, b)
  assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_equals_the_eigenvalues_where_there_are_few_samples():
  # The trace of the root is the sum of the roots of the eigenvalues of Ca Cb.
  a, b = sets(6, 9, 40)
  ca, cb = (np.cov(x, rowvar=False) for x in (a, b))
  values = np.linalg.eigvals(ca @ cb).real.clip(0)
  expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ca)
  expected += np.trace(cb) - 2 * np.sqrt(values).sum()
  assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)
  assert frechet.rank(a, b) == 5


def test_equal_sets_and_shifted_sets():
  a, _ = sets(30, 2, 10)
  assert frechet.frechet_distance(a, a) == pytest.approx(0.0, abs=1e-6)
  assert frechet.frechet_distance(a, a + 0.3) == pytest.approx(10 * 0.3**2)


def test_single_samples_are_refused():
  a, b = sets(1, 4, 3)
  with pytest.raises(ValueError, match="two samples a set, got 1 and 4"):
    frechet.frechet_distance(a, b)


def test_single_clip_distance_by_hand():
  a, b = np.array([0.0, 0.0, 3.0, 3.0]), np.array([1.0, 1.0, 1.0, 1.0])
  # Squares 1 + 1 + 4 + 4; the standard deviation of a is sqrt 3.
  assert frechet.single_clip_distance(a, b) == pytest.approx(10 + 3)
  assert frechet.single_clip_distance(a, a) == 0.0
  with pytest.raises(ValueError, match="two vectors"):
    frechet.single_clip_distance(a, b[:2])


@pytest.mark.parametrize("num_features", [12, 60])
def test_equals_torchmetrics(num_features):
  torch = pytest.importorskip("torch", reason="needs PyTorch")
  package = pytest.importorskip(
    "torchmetrics.image.fid", reason="needs torchmetrics"
  )
  a, b = sets(40, 50, num_features)
  statistics = []
  for rows in (a, b):
    rows = torch.from_numpy(rows)
    statistics += [rows.mean(0), torch.cov(rows.T)]
  expected = float(package._compute_fid(*statistics))
  # More features than rows: its eigenvalues of a singular product are rounded.
  tolerance = 1e-6 if num_features == 12 else 1e-4
  assert frechet.frechet_distance(a, b) == pytest.approx(
    expected, rel=tolerance
  )
