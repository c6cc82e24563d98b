"""The launchers: several processes on one machine, and jobs that are put back into the queue when
their time is up.
"""

import os
import signal

import pytest
from omegaconf import OmegaConf
from processes import (
    FAKE,
    GRID,
    REAL,
    ROOT,
    TINY,
    finish,
    record,
    start,
    states,
    succeed,
    sweep,
    trained,
    wait_until,
)

from lcm.errors import SIGNALS
from lcm.runs import worker as job
from lcm.runs.sweep import prepare_environment

pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra `parallel`")
submitit = pytest.importorskip("submitit", reason="needs the extra `slurm`")

PARALLEL = ["hydra/launcher=parallel", "hydra.launcher.n_jobs=2", "device=cpu"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The records of two tiny real runs, trained one after another in one process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    succeed(REAL, "-m", "attention=lcm2", "seed=0,1", *TINY, "runs=runs", cwd=folder)
    return record(folder / "runs")


# hydra/launcher=parallel


def test_in_parallel_the_same_bytes_as_one_after_another(tmp_path, undisturbed):
    output = succeed(
        REAL, "-m", "attention=lcm2", "seed=0,1", *TINY, "runs=runs", *PARALLEL, cwd=tmp_path
    )
    assert record(tmp_path / "runs") == undisturbed
    assert "epoch   1/1" not in output  # what a run prints is in its log
    assert all("epoch   1/1" in log.read_text() for log in (tmp_path / "runs").rglob("log.txt"))


@pytest.mark.parametrize(
    "group",
    [pytest.param(False, marks=pytest.mark.slow), True],
    ids=["SIGTERM to the sweep alone", "Ctrl-C, to all processes"],
)
def test_in_parallel_a_signal_saves_every_run_in_progress(tmp_path, group):
    process = start(FAKE, *GRID, *PARALLEL, cwd=tmp_path, FAKE_SECONDS=0.5)
    wait_until(lambda: len(trained(tmp_path)) == 4)
    os.killpg(process.pid, signal.SIGINT) if group else process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75, output
    assert "stopped by" in output and "Traceback" not in output
    assert states(tmp_path)["stopped"] == 2 and states(tmp_path)["running"] == 0
    succeed(FAKE, *GRID, cwd=tmp_path)
    assert all([epoch for epoch, _ in epochs] == [1, 2, 3] for epochs in trained(tmp_path).values())


def test_in_parallel_a_worker_that_is_killed_takes_no_run_with_it(tmp_path):
    process = start(FAKE, *GRID, *PARALLEL, cwd=tmp_path, FAKE_SECONDS=0.3)
    worker = wait_until(
        lambda: {pid for epochs in trained(tmp_path).values() for _, pid in epochs} - {process.pid}
    )
    os.kill(worker.pop(), signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    assert "JoblibLauncher gave up" in output
    assert states(tmp_path) == {"finished": 6}


def test_each_worker_takes_the_next_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    devices = [job.share_gpus("auto", worker) for worker in range(5)]
    assert devices == [
        "auto",
        "cuda:0",
        "cuda:1",
        "cuda:2",
        "cuda:0",
    ]  # 0: no worker of the launcher
    assert job.share_gpus("cuda:2", 1) == "cuda:2" and job.share_gpus("cpu", 1) == "cpu"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert job.share_gpus("auto", 4) == "auto"


# submitit, which hydra/launcher=slurm uses; here with its executor for one machine


def test_a_job_whose_time_is_up_goes_back_into_the_queue_and_ends_with_the_same_bytes(
    tmp_path, undisturbed
):
    arguments = [*TINY, "runs=runs", "hydra/launcher=submitit_local", "checkpoint.every=1 steps"]
    process = start(REAL, "-m", "attention=lcm2", "seed=0,1", *arguments, cwd=tmp_path)
    state = (
        wait_until(lambda: list((tmp_path / "runs").rglob("seed1*/checkpoint.pt")))[0].parent
        / "run.json"
    )
    owner = int((state.parent / "owner.lock").read_text().split()[1])
    os.kill(owner, signal.SIGUSR1)
    code, output = finish(process)
    assert code == 0, output
    assert "stopped by SIGUSR1" in (state.parent / "log.txt").read_text()
    assert (state.parent / "log.txt").read_text().count("\n== ") == 2
    assert int((state.parent / "owner.lock").read_text().split()[1]) != owner
    assert record(tmp_path / "runs") == undisturbed
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
    assert "6 runs: 6 to do" in output.splitlines()[-1]
