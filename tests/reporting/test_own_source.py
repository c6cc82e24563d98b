"""Two versions of a module of one's own are never one arm, nor a pair."""

import pandas as pd
from invented_runs import invented_run

from lcm.reporting.any_runs import compare_runs, read_folders
from lcm.reporting.pairs import paired
from lcm.reporting.protocol import ARM, Protocol, select
from lcm.reporting.records import COLUMNS
from lcm.reporting.runs import collect, read_runs


def test_versions_of_an_attention_are_arms_of_their_own(tmp_path):
    for seed in range(4):
        invented_run(tmp_path / "runs", seed=seed, top1=90.0, own_source={})
    collect(tmp_path / "runs", tmp_path)
    # the digests are columns only where a run has them
    assert list(pd.read_csv(tmp_path / "runs.csv")) == list(COLUMNS)
    for seed, (version, top1) in enumerate([("a", 91.0), ("a", 91.0), ("b", 93.0), ("b", 93.0)]):
        facts = {"seed": seed, "top1": top1, "own_source": {"attention": 16 * version}}
        invented_run(tmp_path / "runs", attention="mine", **facts)
    table, _ = compare_runs(read_folders([tmp_path / "runs"])[0])
    assert table.records[["attention", "pairs", "difference"]].to_numpy().tolist() == [
        ["none", 0, None],
        ["mine source=aaaaaaaa", 2, 1.0],
        ["mine source=bbbbbbbb", 2, 3.0],
    ]

    collect(tmp_path / "runs", tmp_path)
    assert list(pd.read_csv(tmp_path / "runs.csv")) == [*COLUMNS, "own_attention"]
    arms = select(read_runs(tmp_path / "runs.csv"), Protocol()).groupby(ARM, sort=False).size()
    assert {arm: size for (*_, arm), size in arms.items()} == {
        "none": 4,
        "mine source=aaaaaaaa": 2,
        "mine source=bbbbbbbb": 2,
    }


def test_versions_of_a_network_are_no_pair(tmp_path):
    own = {"model": "plain", "schedule": "digits", "data": "digits"}
    for seed, (none, se) in enumerate([("a", "a"), ("a", "b"), ("b", "b")]):
        for attention, version in (("none", none), ("se", se)):
            source = {"model": 16 * version}
            invented_run(
                tmp_path / "runs", seed=seed, attention=attention, own_source=source, **own
            )
    table, _ = compare_runs(read_folders([tmp_path / "runs"])[0])
    assert [tuple(row[1:3]) for row in table.rows] == [
        ("plain source=aaaaaaaa", "none"),
        ("plain source=aaaaaaaa", "se"),
        ("plain source=bbbbbbbb", "none"),
        ("plain source=bbbbbbbb", "se"),
    ]
    assert list(table.records["pairs"]) == [0, 1, 0, 1]

    collect(tmp_path / "runs", tmp_path)
    runs = read_runs(tmp_path / "runs.csv")
    arms = (runs[runs["attention"] == arm] for arm in ("se", "none"))
    assert list(paired(*arms)["seed"]) == [0, 2]
