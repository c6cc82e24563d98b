"""Out of memory: recognised in every wording, explained, and no result of the run."""

import errno
import resource
from pathlib import Path

import pytest
import torch
from tiny import after_step, state_of

from lcm.errors import UserError
from lcm.training.out_of_memory import explained

OUT = [
    MemoryError(),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory"
    ),
    RuntimeError("could not create a memory object"),
    RuntimeError("std::bad_alloc"),
    # An AcceleratorError.
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]
OTHERS = [RuntimeError("shape mismatch"), OSError(errno.EIO, "I/O error"), ValueError("memory")]


@pytest.mark.parametrize("error", OUT + OTHERS, ids=lambda error: str(error)[:30])
def test_every_wording_is_explained_and_other_errors_pass(error):
    found = explained(error, "cuda:1")
    if error in OUT:
        assert isinstance(found, UserError) and found.__cause__ is error
        assert str(found).startswith("out of memory on device=cuda:1: lower schedule.batch_size")
    else:
        assert found is error


def use_up():
    """Let this process have no more memory than it has, and ask for some."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used, used))
    torch.empty(2**28)


def test_it_stops_a_run_and_is_no_result(tiny, ends, tmp_path):
    from lcm.reporting.runs import collect

    config = tiny(f"runs={tmp_path}/runs", "checkpoint.every=2 steps")
    ends(
        config,
        2,
        "error: out of memory on device=cpu: ",
        "what was saved is intact",
        prepare=after_step(4, use_up),
    )
    assert state_of(config)["state"] == "stopped" and state_of(config)["message"].startswith(
        "out of memory"
    )
    summary = collect(tmp_path / "runs", tmp_path / "results")
    assert (len(summary.runs), len(summary.damaged), len(summary.unfinished)) == (0, 0, 1)
    ends(config, 0)  # with its memory back
