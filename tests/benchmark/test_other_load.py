"""The machine's load: the work of other programs and this process's own are told apart."""

import os

import pytest
from benchmark import other_load
from benchmark.other_load import others, work

TICK = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def at(tmp_path, monkeypatch):
    """A function (moment, seconds of work and of rest, own seconds): sets what is read then."""
    monkeypatch.setattr(other_load, "STAT", str(tmp_path / "stat"))

    def read(moment, user=0.0, system=0.0, idle=0.0, disk=0.0, irq=0.0, steal=0.0, own=(0.0, 0.0, 0.0, 0.0)):
        fields = [int(seconds * TICK) for seconds in (user, 0.0, system, idle, disk, irq, 0.0, steal, 0.0, 0.0)]
        (tmp_path / "stat").write_text(f"cpu  {' '.join(map(str, fields))}\ncpu0 1 1 1\n")
        monkeypatch.setattr(other_load.time, "monotonic", lambda: moment)
        monkeypatch.setattr(other_load.os, "times", lambda: (*own, moment))
        return work()

    return read


def test_others_are_all_work_less_ones_own_and_that_of_children(at):
    start = at(100, user=50, system=5, idle=400)
    at(110, user=62, system=8, idle=405, own=(2.0, 1.0, 3.0, 1.0))  # 15 seconds of work in 10, 7 of them one's own
    assert others(start) == pytest.approx(0.8)
    assert others(start, children=5.0) == pytest.approx(0.3)


def test_time_that_is_idle_or_that_the_host_withholds_is_no_work(at):
    start = at(100)
    at(110, idle=5, disk=2, steal=6, irq=3, user=4, own=(4.0, 0.0, 0.0, 0.0))
    assert others(start) == pytest.approx(0.3)


def test_a_moment_is_too_short_and_a_machine_without_proc_unknown(at, monkeypatch):
    start = at(100)
    at(100.1, user=5)
    assert others(start) == 0
    at(101, user=5)
    assert others(start) == 5
    monkeypatch.setattr(other_load, "STAT", "/nowhere")
    assert work() is None and others(start) == others(None) == 0
