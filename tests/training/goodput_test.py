"""Shares of a run's time by what it is spent on."""

import time

import numpy as np

from sculpt4d_jax.training import goodput


def test_shares_of_a_clock_worked_by_hand(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  run = goodput.Goodput(began=90.0)  # 10 s of imports.
  with run.spending("restore"):
    now[0] += 5.0
  for _ in range(2):
    with run.step():
      with run.spending("data"):
        now[0] += 2.0
      now[0] += 8.0
      with run.spending("save"):
        now[0] += 1.0
  now[0] += 3.0
  shares = run.shares()
  np.testing.assert_allclose(sum(shares.values()), 1.0)
  expected = {
    "goodput": 16,
    "badput/start": 10,
    "badput/restore": 5,
    "badput/data": 4,
    "badput/save": 2,
    "badput/other": 3,
    "badput/eval": 0,
    "badput/compile": 0,
  }
  assert set(shares) == set(expected)
  for name, seconds in expected.items():
    np.testing.assert_allclose(shares[name], seconds / 40.0)


def test_a_second_stage_counts_from_the_end_of_the_first(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  monkeypatch.setattr(goodput, "_ENDS", [])
  first = goodput.Goodput(began=90.0)
  now[0] += 3600.0
  first.end()
  now[0] += 6.0  # Its weights are written, latents are encoded.
  second = goodput.Goodput()
  with second.step():
    now[0] += 4.0
  shares = second.shares()
  np.testing.assert_allclose(shares["badput/start"], 0.6)
  np.testing.assert_allclose(shares["goodput"], 0.4)


def test_this_process_started_a_while_ago():
  age = time.monotonic() - goodput.process_start()
  assert 0 <= age < 24 * 3600
