"""The paper's tables at a small size: every row has weights that fit."""

import pytest

from configs import tiny
from sculpt4d_jax.training import paper_tables


@pytest.mark.slow  # Samples a clip with two variants.
def test_per_frame_baselines_take_the_models_weights(tmp_path):
  request = paper_tables.Request(
    table="A3",
    config=tiny.get_config(),
    folder=tmp_path,
    command="",
    seeds=(0,),
    num_clips=1,
    protocol="project",
    variants=("hunyuan3d", "ours"),
  )
  text = paper_tables.reproduce(request).split("## Seconds")[0]
  rows = [line.split("|") for line in text.splitlines()]
  jitter = {row[1].strip(): row[6] for row in rows if len(row) == 8}
  # Without temporal attention and with a noise for each frame.
  assert float(jitter["hunyuan3d"].split("[")[0]) > 1.5 * float(
    jitter["ours"].split("[")[0]
  )
