"""submitit, which hydra/launcher=slurm uses: its jobs, put back into the queue when their time is
up; with its executor for one machine, and on a real SLURM: local_slurm.sh starts one if it is
installed.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from processes import FAKE, GRID, ROOT, finish, start, states, sweep, trained, wait_until

from lcm.errors import SIGNALS
from lcm.runs.sweep import prepare_environment

pytest.importorskip("submitit", reason="needs the extra `slurm`")
pytestmark = pytest.mark.commands


def test_a_job_whose_time_is_up_goes_back_into_the_queue_and_continues(tmp_path):
    arguments = ["-m", "seed=0,1", "schedule.epochs=3", "runs=runs"]
    local = ["hydra/launcher=submitit_local", "device=cpu"]
    process = start(FAKE, *arguments, *local, cwd=tmp_path, FAKE_SECONDS=1)
    run = wait_until(lambda: [run for run in trained(tmp_path) if run.name.startswith("seed1")])[0]
    ((_, owner),) = trained(tmp_path)[run][:1]
    os.kill(owner, signal.SIGUSR1)
    code, output = finish(process)
    assert code == 0, output
    log = (run / "log.txt").read_text()
    assert "stopped: saved after step 0 of epoch" in log and log.count("\n== ") == 2
    assert states(tmp_path) == {"finished": 2}
    found = trained(tmp_path).values()
    assert all([epoch for epoch, _ in epochs] == [1, 2, 3] for epochs in found)
    assert sorted(len({process for _, process in epochs}) for epochs in found) == [1, 2]
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


# On a real SLURM

SLURM = ["hydra/launcher=slurm", "device=cpu"]
SLURM += ["hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=30"]


@pytest.fixture
def slurm(request):
    """A SLURM of one node, running; its environment variables."""
    if not request.config.getoption("--as-root"):
        pytest.skip("starts SLURM on this machine: --as-root")
    # pytest's folders only root may enter, and munged works as its own user
    with tempfile.TemporaryDirectory(prefix="lcm-slurm-") as folder:
        os.chmod(folder, 0o755)
        local = {"LOCAL_SLURM": f"{folder}/local", "SLURM_CONF": f"{folder}/local/slurm.conf"}
        script, everything = Path(__file__).with_name("local_slurm.sh"), {**os.environ, **local}
        try:
            subprocess.run([script, "start"], env=everything, check=True)
            yield local
        finally:
            subprocess.run(["scancel", "--user", "root"], env=everything)  # of a test that failed
            subprocess.run([script, "stop"], env=everything, check=True)


def requeue(run, slurm):
    """Take the job that trains the run off its node and queue it again, as pre-emption does."""

    def scontrol(*words):
        return subprocess.check_output(["scontrol", *words], env={**os.environ, **slurm}, text=True)

    process = (run / "owner.lock").read_text().split()[1]
    lines = Path(f"/proc/{process}/environ").read_text().split("\0")
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    job = f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"
    scontrol("requeue", job)
    wait_until(lambda: "JobState=PENDING" in scontrol("show", "job", job))
    scontrol("update", f"JobId={job}", "StartTime=now")  # not in two minutes, as SLURM has it


@pytest.mark.skipif(
    not shutil.which("slurmctld") or not shutil.which("munged") or os.geteuid() != 0,
    reason="needs slurm-wlm and munge, and root",
)
def test_six_runs_on_slurm_of_which_one_is_requeued(tmp_path, slurm):
    grid = ["-m", "attention=none,se,lcm2", "seed=0,1", "schedule.epochs=8", "runs=runs"]
    process = start(FAKE, *grid, *SLURM, cwd=tmp_path, FAKE_SECONDS=0.5, **slurm)
    half = wait_until(lambda: [run for run, done in trained(tmp_path).items() if len(done) == 2])
    requeue(half[0], slurm)
    code, output = finish(process)
    assert code == 0, output
    assert states(tmp_path) == {"finished": 6}
    found = trained(tmp_path)
    assert all([epoch for epoch, _ in epochs] == list(range(1, 9)) for epochs in found.values())
    processes = {run: len({process for _, process in epochs}) for run, epochs in found.items()}
    assert processes == dict.fromkeys(found, 1) | {half[0]: 2}
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
