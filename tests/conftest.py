"""Shared by all tests: few threads, no bars, and the `gpu` marker skipped where there is no GPU."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the suite runs beside other work

import pytest
import torch

# A suite started with nohup, or in the background of a script, ignores these; its processes are to
# obey them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser):
    parser.addoption("--as-root", action="store_true", help="start SLURM on this machine, as root")


def pytest_configure(config):
    """Hide GPUs from all tests but `pytest -m gpu`: most tests train in forked processes, and what
    is forked from a process that has looked for a GPU cannot use one, or train at all.
    """
    if "gpu" not in config.option.markexpr:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and -m gpu"))


@pytest.fixture(scope="session", autouse=True)
def autograd_can_fork():
    """The first backward pass of a process starts a thread for each device that there is, and a
    process with such threads cannot fork one that trains. A FakeTensorMode pretends to have devices
    that are not there: so here is the first one."""
    torch.ones(1, requires_grad=True).backward()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny setting (tests/helpers/tiny.py) for a module: from overrides to a config."""
    import tiny

    import lcm.config.compose

    before = lcm.config.compose.CONFIGS
    folder = tmp_path_factory.mktemp("tiny")
    tiny.use(folder)
    tiny.warm_up(folder)
    yield tiny.compose
    lcm.config.compose.use_configs(before)
