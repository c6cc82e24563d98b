"""Signals in the middle of a run: the first one counts, and only a second SIGINT ends at once."""

import os
import signal

import pytest

from lcm.errors import Stopped
from lcm.training.signals import StopRequest


def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)


def test_the_first_signal_counts():
    """SIGUSR1 says that a job's time is up; the SIGTERM that follows must not make another reason
    of it.
    """
    stop = StopRequest()
    with stop.listening(), stop.patient():
        send(signal.SIGUSR1, signal.SIGTERM)
        assert stop.requested == "SIGUSR1"
        send(signal.SIGINT)  # the first one
        assert stop.requested == "SIGUSR1"
        with pytest.raises(Stopped, match="a second SIGINT") as stopped:
            send(signal.SIGINT)
    assert stopped.value.signal == "SIGINT"


def test_a_worker_remembers_between_runs_and_ends_the_next_at_once():
    stop = StopRequest()
    with stop.listening(), stop.patient():
        with stop.impatient(), stop.listening() as same, same.patient():
            send(signal.SIGTERM)
            assert stop.requested == "SIGTERM"
        with pytest.raises(Stopped, match="SIGTERM: there was nothing to save"), stop.impatient():
            pytest.fail("the next run began")


def test_at_any_other_time_it_ends_at_once():
    stop = StopRequest()
    with pytest.raises(Stopped, match="SIGTERM: there was nothing to save"), stop.listening():
        send(signal.SIGTERM)
    assert stop.at_once
