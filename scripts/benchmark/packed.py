"""The part `packed`, for a GPU: several runs at once."""

import contextlib
import os
import subprocess
import tempfile
from unittest import mock

from benchmark.sides import Side, take_turns
from benchmark.table import summarise

RUNS = (1, 2, 4)


def packed(options):
    """Images/s of all runs together over those of one alone, with and without NVIDIA's MPS."""
    for network in options.networks:
        yield together(options, network, "taking turns")
        try:
            with multi_process_service():
                yield together(options, network, "MPS")
        except (OSError, subprocess.CalledProcessError) as error:
            row = {"network": network, "attention": "none", "what": "packed", "variant": "MPS"}
            yield [row | {"remark": f"not on this machine: {error}"}]


def together(options, network, how):
    spec = {"network": network, "steps": options.steps}
    sides = [
        Side(options, "epoch", f"fp32 captured, {runs} at once, {how}", runs=runs, **spec)
        for runs in RUNS
    ]
    for side in sides:
        side.base = sides[0]
    return summarise(take_turns("packed", sides, options), "packed")


@contextlib.contextmanager
def multi_process_service():
    """NVIDIA's MPS for processes that begin in it: kernels of several processes run at once instead of in turns."""
    control = ["nvidia-cuda-mps-control"]
    with tempfile.TemporaryDirectory() as folder:
        environment = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        with mock.patch.dict(os.environ, environment):
            subprocess.run([*control, "-d"], check=True, capture_output=True)
            try:
                yield
            finally:
                subprocess.run(control, input="quit\n", text=True, capture_output=True)
