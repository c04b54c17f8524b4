"""What is said at the end of a run."""

import pytest

from sculpt4d_jax.training.stages import runner


@pytest.mark.parametrize(
  ("stages", "said"),
  [
    (["data"], "no weights were made"),
    (["data", "pictures"], "no weights were made"),
    (["data", "vae"], "The autoencoder's weights are in run/weights"),
    (["vae", "dit"], "The weights are in run/weights."),
    (["distill"], "The weights are in run/weights."),
  ],
)
def test_results_are_where_the_stages_put_them(stages, said):
  assert said in runner.describe_results("run", stages)
