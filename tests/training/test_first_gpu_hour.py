"""The first hour with a GPU, rehearsed on a CPU; what it says of parts that fail, take too long or are done."""

import json
import subprocess
import sys

import pytest
from benchmark.__main__ import parse
from first_gpu_hour import __main__ as hour

from lcm.config.compose import choices


def test_the_rehearsal(tmp_path):
    """To its end, each part with a result; the second time there is nothing to do."""
    command = [
        sys.executable,
        hour.ROOT / "scripts" / "first_gpu_hour",
        "--rehearse",
        "--out",
        tmp_path,
    ]
    ended = subprocess.run(command, capture_output=True, text=True)
    results = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("*.json"))]
    assert ended.returncode == 0 and ended.stderr == "", (ended, results)
    assert [result["part"] for result in results] == list(hour.PARTS)
    assert {result["state"] for result in results} == {"done"}
    assert (
        len(list((tmp_path / "runs" / "digits").glob("*/*/*/metrics.jsonl"))) == 2
    )  # of the sweep
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.stdout.count("done already") == len(results)


@pytest.fixture
def one_part(monkeypatch, tmp_path):
    """A function that carries out one part, which runs a piece of Python; it returns the exit code and the part's result."""

    def carry_out(code, *words):
        monkeypatch.setattr(hour, "PARTS", {"only": ["-c", code]})
        code = hour.main(["--out", str(tmp_path), *words])
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


def test_commands_and_overrides(monkeypatch, tmp_path):
    """Of the parts for which other tests have no command line of their own."""
    commands = []
    monkeypatch.setattr(hour, "run", lambda command, *_: commands.append(command) or 0)
    assert hour.main(["data.root=/datasets", "--out", str(tmp_path)]) == 0
    tests, *benchmarks, table2 = commands
    assert (
        tests[:4] == ["-m", "pytest", "-m", "gpu"]
        and (hour.ROOT / benchmarks[0][0] / "__main__.py").is_file()
    )
    parts = [parse([*words[1:], "--out", str(tmp_path / "b.csv")]).parts for words in benchmarks]
    assert parts == [["step"], ["epoch"], ["memory"], ["packed"]]
    assert (
        table2[-1] == "data.root=/datasets"
        and table2[1] == "experiment=table2"
        and "table2" in choices("experiment")
    )
