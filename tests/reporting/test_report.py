"""The report: one page without any request, the same bytes each time, findings first."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pandas as pd
import pytest
from invented_runs import ROOT, edit, results_of
from matplotlib.collections import PathCollection

from lcm.reporting import figures
from lcm.reporting.captions import length_and_seeds
from lcm.reporting.protocol import Protocol
from lcm.reporting.render import Table
from lcm.reporting.report import for_the_page, forest_rows, make_report
from lcm.reporting.runs import collect, read_runs
from lcm.reporting.statistics import compare
from lcm.reporting.tables import comparison_table


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = [
        {"attention": a, "seed": s, "top1": 92 + s / 8} for a in ("none", "lcm2") for s in range(2)
    ]
    runs += [
        {"attention": a, "data": "digits", "schedule": "digits", "top1": 98.61}
        for a in ("none", "gc")
    ]
    runs += [{"attention": "se", "state": "failed", "message": "the loss is <not> finite"}]
    return results_of(tmp_path_factory.mktemp("report"), runs)


@pytest.fixture(scope="module")
def made(results):
    return make_report(results)


class Requests(HTMLParser):
    """Collects what a browser would load, and checks that tags close in order."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self):
        super().__init__()
        self.loads, self.links, self.ids, self.open = [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        loading = ("src", "srcset", "data", "poster", "background")
        self.loads += [attributes[key] for key in loading if key in attributes]
        self.links += [(tag, attributes["href"])] if "href" in attributes else []
        self.ids += [attributes["id"]] if "id" in attributes else []
        assert tag not in ("script", "iframe", "object", "embed", "base")
        assert not any(key.startswith("on") for key in attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_nothing_is_requested(made):
    page, pictures = made
    parser = Requests()
    parser.feed(page)
    assert (
        parser.open == []
        and len(set(parser.ids)) == len(parser.ids)
        and len(parser.loads) == len(pictures)
    )
    for tag, link in parser.links:
        assert link == "data:," if tag == "link" else link[0] == "#" and link[1:] in parser.ids
    assert not re.search(r"@import|url\(", page)
    for load in parser.loads:
        kind, content = load.split(",", 1)
        picture = base64.b64decode(content).decode()
        assert kind == "data:image/svg+xml;base64"
        assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', picture))
        assert "<script" not in picture and "url(http" not in picture


def test_the_same_bytes_in_another_process(results, made, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), "--results", str(copy)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page, pictures = made
    assert (copy / "report.html").read_text(encoding="utf-8") == page
    written = {file.stem: file.read_bytes() for file in (copy / "figures").iterdir()}
    assert written == pictures


def test_numbers_and_commands_are_there(made):
    page, _ = made
    assert "92.06 ± 0.08 (2)" in page and "retracted" in page
    assert "the loss is &lt;not&gt; finite" in page
    assert (
        "python train.py experiment=table5 model=densenet121 attention=se data=mini_imagenet"
        in page
    )
    assert "python train.py data=digits model=resnet20 attention=lcm1 schedule=digits" in page
    assert "cpu (simulated)" in page and "/home/" not in page


def section(page, name):
    return re.search(rf'<h2 id="{name}">.*?(?=<h2 |</body>)', page, re.DOTALL)[0]


def test_the_findings_come_first(made):
    page, _ = made
    names = re.findall(r'<h2 id="(\w+)">', page)
    assert names == [
        "findings", "differences", "claims", "tables", "curves", "cost", "power", "speed", "made",
    ]  # fmt: skip
    findings = section(page, "findings")
    assert "Not known yet: no claim about accuracy" in findings
    assert "<b>Accuracy</b>: 17 claims, judged by pairs of runs: 17 not tested yet." in findings
    assert "a cheap module need not help: 2 supported." in findings
    assert "claim 1</a>: lcm2 minus cbam is -0.39 points in Table 5" in findings
    assert "12 of the paper's 12 printed counts" in findings  # stored/complexity.csv has Table 2
    assert "What would decide" not in findings  # no power.csv there
    claims = section(page, "claims")
    # claim 7: eight comparisons of ten pairs each, of which lcm2 - none has two
    assert re.search(r"<b>7</b> <span[^>]*>not tested yet \(2 of 80 pairs\)", claims)
    assert re.search(r"<b>10</b> <span[^>]*>not tested yet \(0 of 60 pairs\)", claims)
    assert re.search(r"<b>3</b> <span[^>]*>supported<", claims)


def test_columns_of_the_page():
    """Accuracies before counts; what is the same in every row stands below."""
    header = ["Data", "Model", "Para (M)", "MACs (G)", "top-1", "p"]
    rows = [["digits", "a", "1", "2", "9", "–"], ["digits", "b", "3", "2", "8", "–"]]
    table = for_the_page(Table("t", "T", header, rows, ["fact"], labels=2))
    assert list(table.header) == ["Model", "top-1", "Para (M)"] and table.labels == 1
    assert table.rows == [("a", "9", "1"), ("b", "8", "3")]
    assert table.notes == ["In every row: Data digits, p (nothing yet), MACs (G) 2.", "fact"]
    one = for_the_page(Table("t", "T", header, rows[:1]))
    assert one.rows == [("digits", "a", "9", "–", "1", "2")]
    assert for_the_page(Table("t", "T", header, [])).rows == []


def test_cost_power_speed_and_figure_4(tmp_path):
    results = results_of(tmp_path, [])
    for name in ("complexity.csv", "power.csv", "cost.csv", "benchmark.csv", "figure4.png"):
        shutil.copy(ROOT / "results" / name, results)
    page, _ = make_report(results)
    assert '<tr><td class="l"><a href="#claim7">7</a></td><td>25</td><td>40</td></tr>' in page
    assert "by 10 seeds (claims 10, 14, 15, 18)" in page
    speed = section(page, "speed")
    assert re.search(r"resnet20</td><td>1.44 \[1.39, 1.49\]</td>", speed)
    assert re.search(r"resnet20, cbam</td><td>1.52 \[1.48, 1.56\]</td>", speed)
    assert "<td class=l>Table 2</td><td>12</td><td>0.26 h</td>" in section(page, "cost")
    picture = re.search(r"data:image/png;base64,([^\"]+)", section(page, "figure4"))[1]
    assert base64.b64decode(picture) == (ROOT / "results" / "figure4.png").read_bytes()


def test_pictures(made):
    page, pictures = made
    assert list(pictures) == [
        "claims", "against-none-digits-digits",
        "curves-cifar10-resnet20", "curves-digits-digits-resnet20", "cost",
    ]  # fmt: skip
    for name, svg in pictures.items():
        assert svg.startswith(b"<?xml") and f"figures/{name}.svg" in page
        assert b"<dc:date>" not in svg


def test_a_picture_alone_says_what_was_trained(made):
    pictures = {name: svg.decode() for name, svg in made[1].items()}
    for name, words in {
        "claims": ("ResNet-20 on CIFAR-10: lcm2 - none", "3 epochs, seeds 0, 1; the paper"),
        "against-none-digits-digits": ("ResNet-20 on digits", "3 epochs, seed 0; schedule=digits"),
        "curves-cifar10-resnet20": ("ResNet-20 on CIFAR-10", "3 epochs, seeds 0, 1; the paper"),
    }.items():
        assert all(part in pictures[name] for part in words), name


def test_length_and_seeds():
    runs = [{"epochs": 8, "seed": seed} for seed in (0, 2, 1, 3)]
    assert length_and_seeds(runs) == "8 epochs, seeds 0 to 3"
    assert length_and_seeds(runs[:2]) == "8 epochs, seeds 0, 2"
    assert (
        length_and_seeds([*runs[1:], {"epochs": 1, "seed": 9}]) == "1 or 8 epochs, seeds 1, 2, 3, 9"
    )


def test_every_pair_is_in_the_forest(tmp_path):
    points = {"se": [90.5, 91.25], "lcm2": [91.0, 89.75, 90.0], "none": [90.0, 90.5, 91.0]}
    runs = [
        {"attention": a, "seed": s, "top1": top1}
        for a, found in points.items()
        for s, top1 in enumerate(found)
    ]
    results = results_of(tmp_path, runs)
    runs = read_runs(results / "runs.csv")
    rows = forest_rows(comparison_table(runs, Protocol(), results).compared, {})
    axis = figures.forest(rows, "").axes[0]
    assert list(rows) == ["ResNet-20: se", "ResNet-20: lcm2"]
    points = [
        found.get_offsets()[:, 0].round(6).tolist()
        for found in axis.collections
        if isinstance(found, PathCollection)
    ]
    assert points == [[0.5, 0.75], [0.625], [1.0, -0.75, -1.0], [-0.25]]


def test_no_pair_of_a_forest_hides_another():
    """Five pairs at one place, two at another: each circle has a place of its own in its row."""
    differences = (0.5, 0.5, -0.25, 0.5, 0.5, -0.25, 0.5, 1.0)
    row = SimpleNamespace(comparison=compare(differences), verdict=None)
    axis = figures.forest({"a": (row, 0.5), "b": (row, None)}, "").axes[0]
    circles = [part for part in axis.collections if len(part.get_offsets()) == len(differences)]
    assert len(circles) == 2
    for row, part in enumerate(circles):
        places = part.get_offsets()
        assert places[:, 0].tolist() == list(differences)
        assert len({tuple(place) for place in places.round(6).tolist()}) == len(differences)
        assert (abs(places[:, 1] - row) < 0.5).all()


def test_curves_have_every_epoch_and_every_run():
    arms = {"none": [[1.0, 2, 3, 4, 5, 6, 7, 8], [3.0, 4, 5, 6, 7, 8, 9, 10]], "se": [[2.0] * 8]}
    whole, end = figures.learning_curves(arms, "").axes
    assert [line.get_ydata().tolist() for line in whole.lines] == [list(range(2, 10)), [2.0] * 8]
    none = [line.get_ydata().tolist() for line in end.lines]
    assert none == [[8, 9], [7, 8], [9, 10], [2, 2]]  # the mean, both runs; of one run the line


def test_cost_is_what_a_module_adds():
    """Each panel has its cost at its place; networks with equal costs have heights of their own."""
    added = pd.DataFrame(
        [("A", "se", 10.0, 0.0), ("B", "se", 10.0, 0.5), ("A", "simam", 0.0, 0.0)],
        columns=["network", "attention", "params", "macs"],
    )
    figure = figures.cost_by_module({"params": "parameters", "macs": "MACs"}, added, "")
    figure.canvas.draw()
    for axis, cost in zip(figure.axes, ("params", "macs"), strict=True):
        places = [tuple(p) for part in axis.collections for p in part.get_offsets().tolist()]
        assert sorted(x for x, _ in places) == sorted(added[cost]) and len(set(places)) == 3
        assert [label.get_text() for label in axis.get_yticklabels()] == ["se", "simam"]
        assert axis.get_xlim()[0] < 0


def test_modules_of_ones_own_have_a_colour_and_a_name_in_every_figure(tmp_path):
    colours = figures.colours(["none", "se", "eca", "mine", "other"])
    assert len(set(colours.values())) == 5 and figures.colours(["eca"]) == {"eca": colours["eca"]}
    names = ("none", "mine", "other")
    _, pictures = make_report(
        results_of(tmp_path, [{"attention": a, "seed": s} for a in names for s in range(12)])
    )
    # more seeds make no more pictures
    assert list(pictures) == ["against-none-cifar10", "curves-cifar10-resnet20", "cost"]
    for name, svg in pictures.items():
        assert all(module in svg.decode() for module in names[1:]), name


def test_without_any_run(tmp_path):
    page, pictures = make_report(results_of(tmp_path, []))
    assert list(pictures) == ["cost"] and "Nothing was run yet." in page
    assert page.count("python train.py experiment=table") == 18 + 12 + 12 + 12 + 18
    Requests().feed(page)


def test_an_epoch_without_a_number_and_a_run_without_counts_end_nothing(tmp_path):
    runs = [{"attention": a, "epochs": 8, "top1": 92.0} for a in ("none", "lcm2")]
    results = results_of(tmp_path, runs)
    for directory in (tmp_path / "runs").rglob("seed*"):
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        first = json.loads(lines[0]) | {"test_top1": None}
        (directory / "metrics.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]) + "\n")
        edit(directory, params=None, macs=None)
    collect(tmp_path / "runs", results)
    _, pictures = make_report(results)
    assert list(pictures) == ["claims", "curves-cifar10-resnet20", "cost"]


@pytest.mark.parametrize("epochs, title", [(300, 226), (10, 9), (8, 7), (4, 3), (2, 1)])
def test_the_lower_curve_is_the_last_quarter_and_says_which(epochs, title):
    curve = [50 + e / epochs for e in range(epochs)]
    whole, end = figures.learning_curves({"none": [curve], "se": [curve]}, "").axes
    assert end.get_title() == f"epochs {title} to {epochs}"
    assert list(end.lines[0].get_xdata()) == list(range(title, epochs + 1))
    assert list(whole.lines[0].get_xdata()) == list(range(1, epochs + 1))
