"""Numbers of posteriors among those of their clip."""

from sculpt4d_jax.data.loading import precomputed


def test_parts_of_posteriors_are_numbered_by_variant():
  contents = {"views": [0, 2], "mirrors": 2, "choices": 3}
  numbers = [
    precomputed.posterior_part(contents, view, mirrored, choice)
    for view in (0, 2)
    for mirrored in (False, True)
    for choice in range(3)
  ]
  assert numbers == list(range(12))
  same = contents | {"views": []}
  assert precomputed.posterior_part(same, 2, True, 1) == 4
