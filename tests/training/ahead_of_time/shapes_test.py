"""Shapes of a step that is only compiled."""

import jax
import pytest

from sculpt4d_jax import partitioning
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.ahead_of_time import report
from sculpt4d_jax.training.ahead_of_time import shapes
from tests.integration import micro


def _preset(num_frames):
  config = micro.get_config()
  config.dit_training.num_frames = num_frames
  return preset_lib.from_config(config)


@pytest.mark.parametrize(("num_frames", "taken"), [(0, 3), (2, 2)])
def test_a_step_has_the_frames_that_the_training_takes(num_frames, taken):
  preset = _preset(num_frames)
  mesh = partitioning.make_mesh(preset.mesh, jax.devices()[:1])
  with partitioning.use_mesh(mesh):
    _, (_, batch, _) = shapes.dit_training_step(preset, mesh)
  clips = preset.dit_training.task.batch_size
  assert {x.shape[:2] for x in batch.values()} == {(clips, taken)}


def test_fewer_frames_are_fewer_operations():
  whole, part = (report.model_flops(_preset(n), "train", 1) for n in (0, 1))
  assert part["model"] < whole["model"] / 2
