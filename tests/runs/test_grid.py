"""The grid of a sweep: which runs a command line or an experiment stands for."""

import csv

import pytest
from hydra.core.config_loader import ConfigLoader
from hydra_config import composed
from tiny import ROOT

from lcm.config.compose import choices
from lcm.reporting.protocol import PAPER_SCHEDULE
from lcm.runs.grid import grid_of

PAPER = csv.DictReader((ROOT / "results" / "paper.csv").read_text().splitlines())
ROWS = {(row["table"], row["data"], row["model"], row["attention"]) for row in PAPER}


@pytest.mark.parametrize("table", "12345")
def test_an_experiment_is_its_table_of_the_paper(table):
    jobs = grid_of([f"experiment=table{table}"])
    named = {
        (table, *(job.config[group]["name"] for group in ("data", "model", "attention")))
        for job in jobs
    }
    assert named == {row for row in ROWS if row[0] == table}
    assert len(jobs) == len(named)  # one seed
    assert {job.config["schedule"]["epochs"] for job in jobs} == {100 if table == "5" else 300}
    schedules = {(job.config["data"]["name"], job.config["schedule"]["name"]) for job in jobs}
    assert schedules <= PAPER_SCHEDULE.items()


def test_quickstart_has_every_attention():
    jobs = grid_of(["experiment=quickstart"])
    assert {job.config["attention"]["name"] for job in jobs} == set(choices("attention"))
    assert {(job.config["data"]["name"], job.config["model"]["name"]) for job in jobs} == {
        ("digits", "resnet20")
    }


def test_a_run_that_the_grid_names_twice_is_in_it_once():
    assert len(grid_of(["seed=0,1,0", "attention='se','se'"])) == 2
    assert [run.config["seed"] for run in grid_of(["seed=0", "++seed=5"])] == [5]


def test_a_key_that_only_choices_of_the_grid_have():
    """`data.root` is no key of the default data set, `memory` none of the default network."""
    chosen = ["data=cifar10", "attention=lcm2", "model=densenet40,densenet64"]
    for run in grid_of(["experiment=table2", *chosen, "model.memory=linear", "data.root=/x"]):
        assert run.config["data"]["root"] == "/x" and run.config["model"]["memory"] == "linear"


@pytest.mark.parametrize(
    ("seeds", "compositions"),
    [("range(3)", 2), ("3", 2), ("'${threads}'", 2), ("'${threads}',7", 4)],
)
def test_runs_that_differ_in_the_seed_alone_are_composed_once(seeds, compositions, monkeypatch):
    """And the config of each is what Hydra composes for it alone."""
    (loader,) = ConfigLoader.__subclasses__()
    calls, compose_one = [], loader.load_sweep_config
    monkeypatch.setattr(
        loader, "load_sweep_config", lambda *of: calls.append(of) or compose_one(*of)
    )
    grid = [
        "experiment=table2",
        "data=cifar10",
        "model=resnet20,resnet32",
        "attention=se",
        "threads=1",
        "runs='out/${seed}'",
        f"seed={seeds}",
    ]
    jobs = grid_of(grid)
    assert len(calls) == compositions and len({job.directory for job in jobs}) == len(jobs)
    for job in jobs:
        alone = composed(*job.overrides)
        assert job.config == alone and type(job.config["seed"]) is type(alone["seed"])
