"""What a user's terminal does to a run: a reader that goes away ends nothing."""

import os
import subprocess
import sys

from prove_resume import compare_runs
from tiny import ROOT, Process, directory_of, run, train_as_main


def test_a_reader_that_goes_away_ends_nothing(tiny, tmp_path):
    """python train.py | head -1, or a terminal that is closed: the prints have nowhere to go, the run goes on."""
    config, heard = (tiny(f"runs={tmp_path}/{name}", "progress=bar") for name in ("unheard", "heard"))
    assert run(tmp_path, heard).code == 0

    def train_unheard():
        from lcm import cli as launch

        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os.close(reader)  # from now on every write fails
        sys.stdout, sys.stderr = launch.SurvivingStream(sys.stdout), launch.SurvivingStream(sys.stderr)
        train_as_main(config)

    assert Process(tmp_path, train_unheard).wait().code == 0
    assert compare_runs(directory_of(heard), directory_of(config)) == []


def test_the_real_command_into_a_closed_pipe(tmp_path):
    started = subprocess.Popen(
        [sys.executable, "train.py", "seed=-1", f"runs={tmp_path}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    started.stdout.close()
    started.stderr.close()
    assert started.wait(120) == 2
