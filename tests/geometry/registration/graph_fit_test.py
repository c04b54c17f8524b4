"""The graph's fit takes no more steps than lower its cost."""

import dataclasses

import numpy as np
import pytest

from sculpt4d_jax.geometry.registration import frames as frames_lib
from sculpt4d_jax.geometry.registration import graph as graph_lib
from sculpt4d_jax.geometry.registration import graph_fit
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.geometry.registration import surfaces
from tests.geometry.registration import shapes

SETTINGS = settings_lib.GraphSettings(num_nodes=12, num_samples=300)
ALL_STEPS = sum(each.max_steps for each in settings_lib.ROUNDS)


def _fit(monkeypatch, min_gain):
  """Fits a bar to itself turned; returns steps and the largest error."""
  bar = shapes.box((1.6, 0.4, 0.3), (12, 4, 4))
  turned = dataclasses.replace(
    bar, vertices=bar.vertices @ shapes.turn(0.15).T.astype(np.float32)
  )
  settings = dataclasses.replace(SETTINGS, min_gain=min_gain, tolerance=0.0)
  frames = frames_lib.Frames.of([bar, turned], settings)
  first, second = frames.meshes
  graph = graph_lib.Graph(
    surfaces.Model.of(first.vertices, first.faces), settings
  )
  fitter = graph_fit.GraphFit.of(graph, settings, np.random.default_rng(0))
  steps = []
  step = graph_fit.GraphFit._step
  monkeypatch.setattr(
    graph_fit.GraphFit,
    "_step",
    lambda self, *args: steps.append(None) or step(self, *args),
  )
  rest = graph_lib.Pose.at_rest(graph.num_nodes)
  moved = graph.blend(fitter.fit(frames.targets[1], rest))
  errors = np.linalg.norm(moved - second.vertices, axis=1)
  return len(steps), errors.max()


def test_a_round_ends_when_its_cost_stops_falling(monkeypatch):
  num_steps, error = _fit(monkeypatch, SETTINGS.min_gain)
  assert num_steps <= ALL_STEPS / 2
  # All steps come no closer; the box's longest side is 2.
  _, best = _fit(monkeypatch, -np.inf)
  assert error < best + 0.01


def test_without_that_limit_all_steps_are_taken(monkeypatch):
  num_steps, _ = _fit(monkeypatch, -np.inf)
  assert num_steps == ALL_STEPS


@pytest.mark.parametrize("gate", [0.1, 0.3])
def test_a_lost_match_costs_as_much_as_one_at_the_gate(gate):
  fitter = graph_fit.GraphFit(None, SETTINGS, np.arange(1), None, None)
  normal = np.array([[0.0, 0.0, 1.0]])
  at_gate = graph_fit.Matches(
    np.array([0]), gate * normal, normal, np.ones(1), 0
  )
  nothing = np.zeros((0, 3))
  lost = graph_fit.Matches(np.zeros(0, int), nothing, nothing, np.zeros(0), 1)
  # (1 + 0.3) gate^2 / (1 + 1), as the robust scale is the gate.
  assert fitter._cost(at_gate, gate, 0.3) == pytest.approx(0.65 * gate**2)
  assert fitter._cost(lost, gate, 0.3) == pytest.approx(0.65 * gate**2)
