"""A signal at any moment: saved within one step, exit code 75, and the continued run ends with the same bytes."""

import json
import os
import signal
import time

import pytest
from tiny import after_step, directory_of, run

from lcm.training import checkpoint

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STEPS = 6  # an epoch of the tiny setting
TWO = "schedule.epochs=2"
REFERENCE = [TWO]


def signal_in(step, call, *numbers, group=True):
    """Arrange that the process's whole group gets signals while `step` (TrainStep, TestStep) is called for the `call`-th time."""

    def send():
        for number in numbers:
            os.killpg(0, number) if group else os.kill(os.getpid(), number)

    return after_step(call, send, step)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("phase", ["training", "evaluation"])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_saved_within_one_step_and_continued_exactly(tiny, finishes_exactly, tmp_path, number, phase, workers):
    config = tiny(f"runs={tmp_path}", TWO, f"data.workers={workers}")
    # training: in step 2 of epoch 2; evaluation: in the second of the three batches after epoch 2
    where = ("TrainStep", STEPS + 2) if phase == "training" else ("TestStep", 3 + 2)
    ended = run(tmp_path, config, signal_in(*where, number))
    assert ended.code == 75, ended.err
    index = 2 if phase == "training" else STEPS
    assert ended.err == f"stopped by {number.name}: saved after step {index} of epoch 2; the same command continues\n"
    directory = directory_of(config)
    saved = checkpoint.read(directory / checkpoint.NAME)
    assert (saved["epoch"], saved["index"]) == (2, index)
    state = json.loads((directory / "run.json").read_text())
    assert (state["state"], state["message"]) == ("stopped", f"{number.name}: saved after step {index} of epoch 2")
    ended = finishes_exactly(config)
    assert f"continuing  from epoch 2, step {index}" in ended.out


def test_while_data_are_read_it_ends_at_once(tiny, tmp_path):
    def prepare():
        import tiny

        def slow(self, **keys):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

        tiny.FewDigits.__init__ = slow

    config = tiny(f"runs={tmp_path}", TWO)
    started = time.monotonic()
    ended = run(tmp_path, config, prepare)
    assert ended.code == 75 and ended.err.startswith("stopped by SIGINT: nothing was in progress"), ended.err
    assert time.monotonic() - started < 30
    assert not (directory_of(config) / "run.json").exists()


def test_a_signal_that_other_code_swallows_is_still_seen(tiny, tmp_path):
    def prepare():
        import tiny

        original = tiny.FewDigits.__init__

        def swallowing(self, **keys):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(1)
            except BaseException:
                pass
            original(self, **keys)

        tiny.FewDigits.__init__ = swallowing

    ended = run(tmp_path, tiny(f"runs={tmp_path}", TWO), prepare)
    assert ended.code == 75 and "epoch   1/2" not in ended.out
    assert ended.err == "stopped by SIGTERM: nothing was in progress that is not saved; the same command continues\n"


def test_a_second_interrupt_ends_at_once_and_loses_nothing_that_was_saved(tiny, finishes_exactly, tmp_path):
    config = tiny(f"runs={tmp_path}", TWO)
    ended = run(tmp_path, config, signal_in("TrainStep", STEPS + 2, signal.SIGINT, signal.SIGINT))
    assert ended.code == 75 and "a second SIGINT: at once" in ended.err and "Traceback" not in ended.err
    saved = checkpoint.read(directory_of(config) / checkpoint.NAME)
    assert (saved["epoch"], saved["index"]) == (2, 0)
    assert json.loads((directory_of(config) / "run.json").read_text())["state"] == "stopped"
    finishes_exactly(config)


def test_an_ignored_signal_stays_ignored(tiny, finishes_exactly, tmp_path):
    """nohup python train.py ..."""
    config = tiny(f"runs={tmp_path}", TWO)

    def prepare():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal_in("TrainStep", 2, signal.SIGHUP)()

    finishes_exactly(config, prepare)
