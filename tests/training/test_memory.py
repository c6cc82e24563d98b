"""Out of memory: recognised in every wording, explained, and no result of the run."""

import errno
import json
import resource
from pathlib import Path

import pytest
import torch
from tiny import after_step, directory_of, run

from lcm.errors import UserError
from lcm.training import checkpoint
from lcm.training.memory import is_out_of_memory, memory_explained

OUT = [
    MemoryError(),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("could not create a memory object"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),  # AcceleratorError
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", OUT, ids=lambda error: str(error)[:30])
def test_every_wording_is_explained(error):
    assert is_out_of_memory(error)
    words = r"out of memory on device=cuda:1: lower schedule\.batch_size"
    with pytest.raises(UserError, match=words) as caught, memory_explained("cuda:1"):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), OSError(errno.EIO, "I/O error"), ValueError("memory")]
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, memory_explained("cpu"):
        raise error
    assert caught.value is error


def use_up():
    """Let this process have no more memory than it has, and ask for some."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used, used))
    torch.empty(2**28)


def test_it_stops_a_run_and_is_no_result(tiny, tmp_path):
    from lcm.reporting.runs import collect

    config = tiny(f"runs={tmp_path}/runs", "checkpoint.every=2 steps")
    ended = run(tmp_path, config, after_step(4, use_up))
    assert ended.code == 2 and ended.err.startswith("error: out of memory on device=cpu: "), ended.err
    assert "Traceback" not in ended.err and "what was saved is intact" in ended.err
    state = json.loads((directory_of(config) / "run.json").read_text())
    assert state["state"] == "stopped" and state["message"].startswith("out of memory")
    summary = collect(tmp_path / "runs", tmp_path / "results")
    assert (len(summary.runs), len(summary.damaged), len(summary.unfinished)) == (0, 0, 1)
    assert run(tmp_path, config).code == 0  # with its memory back


def test_a_checkpoint_for_which_memory_lacks_is_not_damaged(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, {"model": {}})
    monkeypatch.setattr(torch, "load", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        checkpoint.newest(tmp_path, set_aside=True)
    assert [file.name for file in tmp_path.iterdir()] == [checkpoint.NAME]
