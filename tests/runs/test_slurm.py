"""hydra/launcher=slurm on a real SLURM: local_slurm.sh starts one if it is installed."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from processes import FAKE, finish, start, states, trained, wait_until

pytest.importorskip("submitit", reason="needs the extra `slurm`")
pytestmark = [
    pytest.mark.skipif(
        not shutil.which("slurmctld") or not shutil.which("munged"),
        reason="needs slurm-wlm and munge",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="local_slurm.sh needs root"),
]
SLURM = [
    "hydra/launcher=slurm",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.timeout_min=30",
    "device=cpu",
]


@pytest.fixture(scope="module")
def slurm(request):
    """A SLURM of one node while the tests of this file run; its environment variables."""
    if not request.config.getoption("--as-root"):
        pytest.skip("starts SLURM on this machine: --as-root")
    with tempfile.TemporaryDirectory(
        prefix="lcm-slurm-"
    ) as name:  # pytest's folders only root may enter
        folder = Path(name)
        folder.chmod(0o755)  # munged works as its own user
        environment = {
            "LOCAL_SLURM": str(folder / "local"),
            "SLURM_CONF": str(folder / "local" / "slurm.conf"),
        }
        script, everything = (
            str(Path(__file__).with_name("local_slurm.sh")),
            {**os.environ, **environment},
        )
        try:
            subprocess.run([script, "start"], env=everything, check=True)
            yield environment
        finally:
            subprocess.run(
                ["scancel", "--user", "root"], env=everything
            )  # those of a test that failed
            subprocess.run([script, "stop"], env=everything, check=True)


def command(*arguments, slurm):
    return subprocess.run(
        arguments, env={**os.environ, **slurm}, check=True, capture_output=True, text=True
    ).stdout


def requeue(run, slurm):
    """Take the job that trains the run off its node and put it back into the queue, as pre-emption
    does.
    """
    process = (run / "owner.lock").read_text().split()[1]
    variables = dict(
        v.split("=", 1)
        for v in (Path("/proc") / process / "environ").read_text().split("\0")
        if "=" in v
    )
    job = f"{variables['SLURM_ARRAY_JOB_ID']}_{variables['SLURM_ARRAY_TASK_ID']}"
    command("scontrol", "requeue", job, slurm=slurm)

    def waits():
        return command(
            "squeue", "--noheader", "--jobs", job, "--format", "%T", slurm=slurm
        ).split() == ["PENDING"]

    wait_until(waits)
    command(
        "scontrol", "update", f"JobId={job}", "StartTime=now", slurm=slurm
    )  # not in two minutes, as SLURM has it


def test_six_runs_on_slurm_of_which_one_is_requeued(tmp_path, slurm):
    grid = ["-m", "attention=none,se,lcm2", "seed=0,1", "schedule.epochs=8", "runs=runs"]
    process = start(FAKE, *grid, *SLURM, cwd=tmp_path, FAKE_SECONDS=0.5, **slurm)
    run = wait_until(
        lambda: [run for run, epochs in trained(tmp_path).items() if len(epochs) == 2]
    )[0]
    requeue(run, slurm)
    code, output = finish(process)
    assert code == 0, output
    assert states(tmp_path) == {"finished": 6}
    found = trained(tmp_path)
    assert all([epoch for epoch, _ in epochs] == list(range(1, 9)) for epochs in found.values())
    assert len({process for _, process in found.pop(run)}) == 2
    assert all(len({process for _, process in epochs}) == 1 for epochs in found.values())
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
