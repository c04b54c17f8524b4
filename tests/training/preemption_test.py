"""SIGTERM is handled once; then the previous handler is restored."""

import signal
import threading

import pytest

from sculpt4d_jax.training import preemption


def _raise_exit(signum, unused_frame):
  raise SystemExit(128 + signum)


def test_the_first_signal_is_noted_and_the_second_ends():
  before = signal.signal(signal.SIGTERM, _raise_exit)
  try:
    with preemption.Notice() as one:
      assert not one.came()
      signal.raise_signal(signal.SIGTERM)
      assert one.came()
      with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is _raise_exit
  finally:
    signal.signal(signal.SIGTERM, before)


def test_outside_of_the_main_thread_nothing_is_touched():
  before = signal.getsignal(signal.SIGTERM)
  seen = []

  def enter():
    with preemption.Notice() as one:
      seen.append((one.came(), signal.getsignal(signal.SIGTERM)))

  thread = threading.Thread(target=enter)
  thread.start()
  thread.join()
  assert seen == [(False, before)]
