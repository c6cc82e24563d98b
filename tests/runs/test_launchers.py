"""submitit, which hydra/launcher=slurm uses: its jobs, put back into the queue when their time is
up; here with its executor for one machine.
"""

import os
import signal

import pytest
from omegaconf import OmegaConf
from processes import FAKE, GRID, ROOT, finish, start, states, sweep, trained, wait_until

from lcm.errors import SIGNALS
from lcm.runs.sweep import prepare_environment

pytest.importorskip("submitit", reason="needs the extra `slurm`")


def test_a_job_whose_time_is_up_goes_back_into_the_queue_and_continues(tmp_path):
    arguments = ["-m", "seed=0,1", "schedule.epochs=3", "runs=runs"]
    local = ["hydra/launcher=submitit_local", "device=cpu"]
    process = start(FAKE, *arguments, *local, cwd=tmp_path, FAKE_SECONDS=0.5)
    run = wait_until(lambda: [run for run in trained(tmp_path) if run.name.startswith("seed1")])[0]
    ((_, owner),) = trained(tmp_path)[run][:1]
    os.kill(owner, signal.SIGUSR1)
    code, output = finish(process)
    assert code == 0, output
    log = (run / "log.txt").read_text()
    assert "stopped: saved after epoch" in log and log.count("\n== ") == 2
    assert states(tmp_path) == {"finished": 2}
    found = trained(tmp_path)
    assert all([epoch for epoch, _ in epochs] == [1, 2, 3] for epochs in found.values())
    assert [len({process for _, process in epochs}) for epochs in found.values()].count(2) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_jobs_on_slurm_get_a_signal_that_is_handled_and_are_requeued(monkeypatch):
    for name in ("SUBMITIT_PREEMPT_SIGNAL", "PYTHONPATH"):
        monkeypatch.setenv(name, "")
    prepare_environment()
    assert getattr(signal, "SIG" + os.environ["SUBMITIT_PREEMPT_SIGNAL"]) in SIGNALS
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(ROOT), os.getcwd()]
    launcher = OmegaConf.load(ROOT / "configs/hydra/launcher/slurm.yaml")
    assert launcher.additional_parameters == {"requeue": True}
    assert launcher.max_num_timeout > 100 and launcher.signal_delay_s >= 60


def test_without_slurm_the_slurm_launcher_says_so_once(tmp_path):
    code, output = sweep(FAKE, *GRID, "hydra/launcher=slurm", cwd=tmp_path, PATH="")
    assert code == 1, output
    assert output.count("SlurmLauncher gave up") == 1 and "Could not detect" in output
    assert "6 runs: 6 to do" in output
