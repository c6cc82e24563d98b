"""A signal at any moment: saved within one step, exit code 75, and the continued run ends with the
same bytes.
"""

import json
import multiprocessing
import os
import signal
import time

import pytest
import tiny as setting
from tiny import PHOTOGRAPHS, after_step, directory_of, place_of, state_of

STEPS = 6  # an epoch of the tiny setting
REFERENCE = ["schedule.epochs=2", *PHOTOGRAPHS]


@pytest.fixture
def config(tiny, tmp_path):
    """A function: the config of this module's run, with a number of loader workers."""
    return lambda workers=0: tiny(f"runs={tmp_path}", *REFERENCE, f"data.workers={workers}")


def signal_in(kind, call, *numbers):
    """Let the process's whole group get signals in the `call`-th training or test step."""
    return after_step(call, lambda: [os.killpg(0, number) for number in numbers], kind)


@pytest.mark.parametrize(
    "number, kind, call, place, workers",
    [
        (signal.SIGTERM, "train", STEPS + 2, (2, 2), (2, 0)),
        (signal.SIGINT, "train", STEPS + 2, (2, 2), (2, 4)),
        (signal.SIGUSR1, "train", STEPS + 2, (2, 2), (0, 2)),
        (signal.SIGHUP, "train", STEPS + 2, (2, 2), (0, 0)),
        (signal.SIGTERM, "test", 1, (1, STEPS), (0, 0)),  # in an evaluation, which is done again
        (signal.SIGINT, "test", 3 + 2, (2, STEPS), (2, 0)),
        (signal.SIGTERM, "test", 3, (2, 0), (0, 0)),  # after one: its epoch is recorded first
    ],
)
def test_saved_within_one_step_and_continued_exactly(
    config, ends, finishes_exactly, number, kind, call, place, workers
):
    """Then with another number of workers."""
    first, then = map(config, workers)
    ended = ends(first, 75, prepare=signal_in(kind, call, number))
    epoch, index = place
    message = f"{number.name}: saved after step {index} of epoch {epoch}"
    assert ended.err == f"stopped by {message}; the same command continues\n"
    assert place_of(first) == place
    assert (state_of(first)["state"], state_of(first)["message"]) == ("stopped", message)
    finishes_exactly(then, f"continuing  from epoch {epoch}, step {index}")
    lines = (directory_of(first) / "metrics.jsonl").read_text().splitlines()
    rows = map(json.loads, lines)
    # the time of training, 8 images a step, is a part of the time of the run
    assert all(0 < 8 * STEPS / row["images_per_second"] <= row["seconds"] for row in rows)


def test_after_the_last_evaluation_there_is_nothing_left_to_stop(config, finishes_exactly):
    finishes_exactly(config(), prepare=signal_in("test", 6, signal.SIGTERM))
    assert state_of(config())["interruptions"] == 0


def test_a_loader_worker_that_dies_is_named(config, ends, finishes_exactly):
    """As the kernel kills one when memory runs out."""

    def kill_a_worker():
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)

    words = "error: a loader worker died or hangs, most often because memory"
    ends(config(2), 2, words, prepare=after_step(7, kill_a_worker))
    finishes_exactly(config())


def test_while_data_are_read_it_ends_at_once(config, ends):
    """Also where other code turns the signal's exception into its own."""

    def reading(**keys):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        finally:
            raise OSError("not read")

    started = time.monotonic()
    ended = ends(config(), 75, prepare=lambda: setattr(setting, "few_photographs", reading))
    assert ended.err == "stopped by SIGINT: there was nothing to save; the same command continues\n"
    assert time.monotonic() - started < 30 and not (directory_of(config()) / "run.json").exists()


def test_a_second_interrupt_ends_at_once_and_loses_nothing_that_was_saved(
    config, ends, finishes_exactly
):
    twice = signal_in("train", STEPS + 2, signal.SIGINT, signal.SIGINT)
    ends(config(), 75, "a second SIGINT: at once", prepare=twice)
    assert place_of(config()) == (2, 0) and state_of(config())["state"] == "stopped"
    finishes_exactly(config())


def test_an_ignored_signal_stays_ignored(config, finishes_exactly):
    """nohup python train.py ..."""

    def prepare():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal_in("train", 2, signal.SIGHUP)()

    finishes_exactly(config(), prepare=prepare)
