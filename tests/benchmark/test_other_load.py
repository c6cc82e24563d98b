"""The machine's load: the work of other programs and this process's own are told apart."""

import os

import pytest
from benchmark import other_load
from benchmark.other_load import Load

TICK = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function (moment, seconds of user, system, idle, disk, irq, steal, own seconds): what Load then reads."""
    monkeypatch.setattr(other_load, "STAT", str(tmp_path / "stat"))

    def at(moment, user=0.0, system=0.0, idle=0.0, disk=0.0, irq=0.0, steal=0.0, own=(0.0, 0.0, 0.0, 0.0)):
        fields = [int(seconds * TICK) for seconds in (user, 0.0, system, idle, disk, irq, 0.0, steal, 0.0, 0.0)]
        (tmp_path / "stat").write_text(f"cpu  {' '.join(map(str, fields))}\ncpu0 1 1 1\n")
        monkeypatch.setattr(other_load.time, "monotonic", lambda: moment)
        monkeypatch.setattr(other_load.os, "times", lambda: (*own, moment))

    return at


def test_others_are_all_work_less_ones_own_and_that_of_children(machine):
    machine(100, user=50, system=5, idle=400)
    started = Load()
    machine(110, user=62, system=8, idle=405, own=(2.0, 1.0, 3.0, 1.0))  # 15 seconds of work in 10, 7 of them one's own
    assert started.others() == pytest.approx(0.8)
    assert started.others(children=5.0) == pytest.approx(0.3)


def test_time_that_is_idle_or_that_the_host_withholds_is_no_work(machine):
    machine(100)
    started = Load()
    machine(110, idle=5, disk=2, steal=6, user=4, own=(4.0, 0.0, 0.0, 0.0))
    assert started.others() == 0
    machine(110, irq=3, user=4, own=(4.0, 0.0, 0.0, 0.0))
    assert started.others() == pytest.approx(0.3)


def test_a_moment_is_too_short_and_a_machine_without_proc_unknown(machine, monkeypatch):
    machine(100)
    started = Load()
    machine(100.1, user=5)
    assert started.others() == 0
    machine(101, user=5)
    assert started.others() == 5
    monkeypatch.setattr(other_load, "STAT", "/nowhere")
    assert Load().others() == started.others() == 0
