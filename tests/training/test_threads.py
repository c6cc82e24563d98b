"""threads=auto: from affinity, quota and OMP_NUM_THREADS alone, so that a run's bits do not depend on the moment."""

import pytest
import torch

from lcm.training import device


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that says how many processors there are, and how this process has run and waited so far (ns)."""
    before = torch.get_num_threads()

    def with_processors(count, ran=10**9, waited=0, omp=None):
        monkeypatch.setattr(device, "available_processors", lambda: count)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if omp is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", omp)
        (tmp_path / "schedstat").write_text(f"{ran} {waited} 295\n")
        monkeypatch.setattr(device, "share_waited", lambda: share_waited(tmp_path / "schedstat"))

    share_waited = device.share_waited
    yield with_processors
    torch.set_num_threads(before)


@pytest.mark.parametrize("waited, warned", [(0, False), (2 * 10**8, False), (3 * 10**8, True), (10**10, True)])
def test_the_same_number_on_a_busy_machine_with_a_warning(machine, waited, warned):
    said = []
    machine(2, waited=waited)
    assert device.set_threads("auto", said.append) == torch.get_num_threads() == 2
    assert [line.startswith("warning: other programs keep the processors busy") for line in said] == [True] * warned


@pytest.mark.parametrize("omp, threads", [(None, 8), ("3", 3), ("64", 8), ("0", 1), ("4,2", 8)])
def test_omp_num_threads_is_an_upper_bound(machine, omp, threads):
    machine(8, omp=omp)
    assert device.set_threads("auto") == torch.get_num_threads() == threads


def test_a_number_is_taken_as_it_is(machine):
    machine(8, omp="2")
    assert device.set_threads(3) == torch.get_num_threads() == 3


def test_affinity_and_quota(monkeypatch, tmp_path):
    def opened(path):
        assert path == "/sys/fs/cgroup/cpu.max"
        return real_open(tmp_path / "cpu.max")

    real_open = open
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda process: set(range(6)))
    monkeypatch.setattr(device, "open", opened, raising=False)
    for content, processors in {"max 100000": 6, "250000 100000": 2, "50000 100000": 1, "900000 100000": 6}.items():
        (tmp_path / "cpu.max").write_text(content + "\n")
        assert device.available_processors() == processors


def test_what_linux_does_not_tell_is_no_waiting(tmp_path):
    assert device.share_waited(tmp_path / "nowhere") == 0
    (tmp_path / "schedstat").write_text("0 0 0\n")
    assert device.share_waited(tmp_path / "schedstat") == 0
    assert 0 <= device.share_waited() <= 1
