"""The first hour with a GPU, rehearsed on a CPU; what it says of parts that fail, take too long or are done."""

import json
import subprocess
import sys

import pytest
import torch
from first_gpu_hour import __main__ as hour
from first_gpu_hour import parts

from lcm.training import checkpoint


def test_the_rehearsal(tmp_path):
    """To its end, each part with a result; the second time there is nothing to do."""
    command = [sys.executable, parts.ROOT / "scripts" / "first_gpu_hour", "--rehearse", "--out", tmp_path]
    ended = subprocess.run(command, capture_output=True, text=True)
    results = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("*.json"))]
    assert ended.returncode == 0 and ended.stderr == "", (ended, results)
    assert [result["part"] for result in results] == list(parts.PARTS)
    assert {result["state"] for result in results} == {"done"}
    assert results[1]["same bits"] == ["resnet20"]
    assert len(list((tmp_path / "runs" / "digits").glob("*/*/*/metrics.jsonl"))) == 2  # of the sweep
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout.count("done already") == len(results)


@pytest.fixture
def one_part(monkeypatch, tmp_path):
    """A function that carries out one part, which runs a piece of Python; it returns the exit code and the part's result."""

    def carry_out(code, *words):
        monkeypatch.setattr(hour, "PARTS", {"only": lambda options: parts.run(options, "-c", code)})
        code = hour.main(["--rehearse", "--out", str(tmp_path), *words])
        return code, json.loads((tmp_path / "01-only.json").read_text())

    return carry_out


def test_a_part_that_fails_is_tried_again(one_part):
    code, result = one_part("raise SystemExit('no card')")
    assert code == 1 and result["state"] == "failed"
    assert result["reason"] == "exit code 1: no card (see 01-only.log)"
    assert one_part("pass")[0] == 0
    assert one_part("raise SystemExit(1)")[0] == 0  # done: not run again
    assert one_part("raise SystemExit(1)", "--parts", "only")[0] == 1  # but where it is named


def test_a_part_out_of_time_is_stopped_by_a_signal(one_part, tmp_path):
    waits = "import signal, time; signal.signal(15, lambda *_: (print('saved'), exit(75))); time.sleep(60)"
    code, result = one_part(waits, "--minutes", "0.02")
    assert code == 75 and result["state"] == "stopped"
    assert (tmp_path / "01-only.log").read_text() == "saved\n"


def test_runs_that_differ_are_named(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text('{"config_hash": "0"}')
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"epoch": 1, "train_loss": 2.0, "seconds": {ord(name)}}}\n')
    saved = {name: {"model": {"fc.weight": torch.zeros(2)}, "momentum": {}} for name in "ab"}
    monkeypatch.setattr(checkpoint, "newest", lambda directory, config_hash: saved[directory.name])
    parts.demand_same_bits(tmp_path / "a", tmp_path / "b")
    saved["b"]["model"]["fc.weight"][1] = 1e-30
    with pytest.raises(parts.Failed, match=r"a and b differ: 1 of 1 tensors \['model fc.weight'\]"):
        parts.demand_same_bits(tmp_path / "a", tmp_path / "b")
