"""Two versions of a module of one's own are never one arm, nor a pair."""

import pandas as pd
import pytest
from invented_runs import invented_run

from lcm.errors import UserError
from lcm.reporting.any_runs import compare_runs, read_folders
from lcm.reporting.paired import paired
from lcm.reporting.protocol import ARM, Protocol, select
from lcm.reporting.records import COLUMNS
from lcm.reporting.runs import collect, read_runs

OLD, NEW = {"attention": "a" * 16}, {"attention": "b" * 16}


def test_the_digests_are_columns_only_where_a_run_has_them(tmp_path):
    invented_run(tmp_path / "runs", seed=0)
    invented_run(tmp_path / "runs", seed=1, own_source={})
    collect(tmp_path / "runs", tmp_path)
    assert list(pd.read_csv(tmp_path / "runs.csv")) == list(COLUMNS)
    invented_run(tmp_path / "runs", attention="mine", own_source=OLD)
    collect(tmp_path / "runs", tmp_path)
    assert list(pd.read_csv(tmp_path / "runs.csv")) == [*COLUMNS, "own_attention"]
    assert list(read_runs(tmp_path / "runs.csv")["own_attention"]) == ["a" * 16, "", ""]


def test_versions_of_an_attention_are_arms_of_their_own(tmp_path):
    for seed in range(4):
        invented_run(tmp_path / "runs", seed=seed, top1=90.0)
        version, top1 = (OLD, 91.0) if seed < 2 else (NEW, 93.0)
        own = {"attention": "mine", "own_source": version}
        invented_run(tmp_path / "runs", seed=seed, top1=top1, **own)
    table, _ = compare_runs(read_folders([tmp_path / "runs"])[0])
    records = table.records.set_index("attention")
    assert list(records.index) == ["none", "mine source=aaaaaaaa", "mine source=bbbbbbbb"]
    assert list(records["pairs"]) == [0, 2, 2]
    assert list(records["difference"][1:]) == [1.0, 3.0]

    collect(tmp_path / "runs", tmp_path)
    arms = dict(list(select(read_runs(tmp_path / "runs.csv"), Protocol()).groupby(ARM, sort=False)))
    assert [(arm, len(runs)) for (*_, arm), runs in arms.items()] == [
        ("none", 4),
        ("mine source=aaaaaaaa", 2),
        ("mine source=bbbbbbbb", 2),
    ]


def test_versions_of_a_network_are_no_pair(tmp_path):
    own = {"model": "plain", "schedule": "digits", "data": "digits"}
    for seed in range(2):
        invented_run(tmp_path / "runs", seed=seed, own_source={"model": "a" * 16}, **own)
        after = {"model": "b" * 16 if seed else "a" * 16}
        invented_run(tmp_path / "runs", seed=seed, attention="se", own_source=after, **own)
    with pytest.raises(UserError, match="several versions of its source"):
        compare_runs(read_folders([tmp_path / "runs"])[0])

    results = tmp_path / "results"
    collect(tmp_path / "runs", results)
    runs = read_runs(results / "runs.csv")
    arms = (runs[runs["attention"] == arm] for arm in ("se", "none"))
    assert list(paired(*arms)["seed"]) == [0]
    arms = dict(list(select(runs, Protocol("digits")).groupby(ARM, sort=False)))
    assert [len(arm) for arm in arms.values()] == [2, 1, 1]
    assert {model for _, model, _ in arms} == {
        "plain source=aaaaaaaa",
        "plain source=bbbbbbbb",
    }
