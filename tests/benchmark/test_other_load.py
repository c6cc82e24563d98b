"""The machine's load: work of others, own work and what a virtual machine's host withholds are told apart."""

import os

import pytest

from lcm.training import load

TICK = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function (moment, seconds of user, system, idle, disk, irq, steal, own seconds): what Load then reads."""
    monkeypatch.setattr(load, "STAT", str(tmp_path / "stat"))

    def at(moment, user=0.0, system=0.0, idle=0.0, disk=0.0, irq=0.0, steal=0.0, own=(0.0, 0.0, 0.0, 0.0)):
        fields = [int(seconds * TICK) for seconds in (user, 0.0, system, idle, disk, irq, 0.0, steal, 0.0, 0.0)]
        (tmp_path / "stat").write_text(f"cpu  {' '.join(map(str, fields))}\ncpu0 1 1 1\n")
        monkeypatch.setattr(load.time, "monotonic", lambda: moment)
        monkeypatch.setattr(load.os, "times", lambda: (*own, moment))

    return at


def test_others_are_all_work_less_ones_own_and_that_of_ended_children(machine):
    machine(100, user=50, system=5, idle=400)
    started = load.Load()
    machine(110, user=62, system=8, idle=405, own=(2.0, 1.0, 3.0, 1.0))  # 15 seconds of work in 10, 7 of them one's own
    assert started.others() == pytest.approx(0.8)


def test_time_that_the_host_withholds_is_nobodys_work_here(machine):
    machine(100)
    started = load.Load()
    machine(110, idle=5, disk=2, steal=6, user=4, own=(4.0, 0.0, 0.0, 0.0))
    assert started.others() == 0
    assert started.withheld() == pytest.approx(0.6)


def test_a_moment_is_too_short_and_a_machine_without_proc_unknown(machine, monkeypatch):
    machine(100)
    started = load.Load()
    machine(100.1, user=5, steal=5)
    assert started.others() == started.withheld() == 0
    monkeypatch.setattr(load, "STAT", "/nowhere")
    assert load.Load().others() == started.others() == 0


def test_this_machine():
    assert load.Load().start is None or len(load.Load().start) == 4
