"""A signal at any moment: saved within one step, exit code 75, and the continued run ends with the
same bytes.
"""

import json
import os
import signal
import time

import pytest
import tiny as setting
from tiny import after_step, directory_of, place_of, state_of

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STEPS = 6  # an epoch of the tiny setting
TWO = "schedule.epochs=2"
REFERENCE = [TWO]


def signal_in(kind, call, *numbers):
    """Let the process's whole group get signals in the `call`-th training or test step."""
    return after_step(call, lambda: [os.killpg(0, number) for number in numbers], kind)


def before_data(act):
    """Arrange that the process calls act(), for example a signal that comes, when it starts to read
    its data.
    """

    def prepare():
        original = setting.FewDigits.__init__
        setting.FewDigits.__init__ = lambda self, **keys: (act(), original(self, **keys))[1]

    return prepare


@pytest.mark.parametrize(
    "kind, call, index, workers",
    [("train", STEPS + 2, 2, (2, 0)), ("test", 3 + 2, STEPS, (0, 4))],
)
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_saved_within_one_step_and_continued_exactly(
    tiny, ends, finishes_exactly, tmp_path, number, kind, call, index, workers
):
    """In step 2 of epoch 2, and in the second of the three test batches after it; then with another
    number of workers.
    """
    first, then = (tiny(f"runs={tmp_path}", TWO, f"data.workers={n}") for n in workers)
    ended = ends(first, 75, prepare=signal_in(kind, call, number))
    message = f"{number.name}: saved after step {index} of epoch 2"
    assert ended.err == f"stopped by {message}; the same command continues\n" and place_of(
        first
    ) == (2, index)
    assert (state_of(first)["state"], state_of(first)["message"]) == ("stopped", message)
    finishes_exactly(then, f"continuing  from epoch 2, step {index}")


def test_after_the_last_evaluation_there_is_nothing_left_to_stop(tiny, finishes_exactly, tmp_path):
    config = tiny(f"runs={tmp_path}", TWO)
    finishes_exactly(config, prepare=signal_in("test", 6, signal.SIGTERM))
    assert state_of(config)["interruptions"] == 0


def test_after_another_evaluation_the_epoch_is_recorded_first(
    tiny, ends, finishes_exactly, tmp_path
):
    config = tiny(f"runs={tmp_path}", TWO)
    ends(config, 75, "saved after step 0 of epoch 2", prepare=signal_in("test", 3, signal.SIGTERM))
    finishes_exactly(config)


def test_a_speed_is_that_of_all_its_parts(tiny, ends, tmp_path):
    """Stopped in the evaluation of epoch 1: its training is over, and was timed."""
    config = tiny(f"runs={tmp_path}", TWO)
    ends(config, 75, prepare=signal_in("test", 1, signal.SIGTERM))
    ends(config, 0)
    rows = (directory_of(config) / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(row)["images_per_second"] > 0 for row in rows)


def test_while_data_are_read_it_ends_at_once(tiny, ends, tmp_path):
    config, started = tiny(f"runs={tmp_path}", TWO), time.monotonic()
    waiting = before_data(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(60)))
    assert ends(config, 75, prepare=waiting).err.startswith(
        "stopped by SIGINT: there was nothing to save"
    )
    assert time.monotonic() - started < 30 and not (directory_of(config) / "run.json").exists()


def test_a_signal_that_other_code_swallows_is_still_seen(tiny, ends, tmp_path):
    def swallowed():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
        except BaseException:
            pass

    ended = ends(tiny(f"runs={tmp_path}", TWO), 75, prepare=before_data(swallowed))
    assert "epoch   1/2" not in ended.out
    assert (
        ended.err == "stopped by SIGTERM: there was nothing to save; the same command continues\n"
    )


def test_a_second_interrupt_ends_at_once_and_loses_nothing_that_was_saved(
    tiny, ends, finishes_exactly, tmp_path
):
    config = tiny(f"runs={tmp_path}", TWO)
    twice = signal_in("train", STEPS + 2, signal.SIGINT, signal.SIGINT)
    ends(config, 75, "a second SIGINT: at once", prepare=twice)
    assert place_of(config) == (2, 0) and state_of(config)["state"] == "stopped"
    finishes_exactly(config)


def test_an_ignored_signal_stays_ignored(tiny, finishes_exactly, tmp_path):
    """nohup python train.py ..."""

    def prepare():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal_in("train", 2, signal.SIGHUP)()

    finishes_exactly(tiny(f"runs={tmp_path}", TWO), prepare=prepare)
