"""The report: one page without any request, the same bytes each time, with every number and every run in it."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest
from invented_runs import ROOT, edit, results_of
from matplotlib.collections import PathCollection

from lcm.reporting import figures
from lcm.reporting.protocol import Protocol
from lcm.reporting.report import forest_rows, make_report
from lcm.reporting.runs import collect, read_runs
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
    written = {file.name: file.read_bytes() for file in (copy / "figures").iterdir()}
    assert written == {f"{picture.name}.svg": picture.svg for picture in pictures}


def test_numbers_runs_and_commands_are_there(results, made):
    page, _ = made
    assert "92.06 ± 0.08 (2)" in page and "retracted" in page
    for file in (results / "metrics").iterdir():
        assert re.search(r"<td class=l>[^<]*" + file.stem.rsplit("-", 1)[1], page), (
            "each run has its row"
        )
    assert "the loss is &lt;not&gt; finite" in page
    assert (
        "python train.py experiment=table5 model=densenet121 attention=se data=mini_imagenet"
        in page
    )
    assert "python train.py data=digits model=resnet20 attention=lcm1 schedule=digits" in page
    assert "0123456789" in page and "2.6.0" in page and "cpu (simulated)" in page
    assert "<td class=l><span class=" in page and "/home/" not in page


def test_pictures(made):
    page, pictures = made
    assert [picture.name for picture in pictures] == [
        "claims-table2", "against-none-cifar10", "against-none-digits-digits",
        "curves-cifar10-resnet20", "curves-digits-digits-resnet20", "cost-cifar10", "cost-digits-digits",
    ]  # fmt: skip
    for picture in pictures:
        assert picture.svg.startswith(b"<?xml") and f"figures/{picture.name}.svg" in page
        assert b"<dc:date>" not in picture.svg


def test_every_pair_is_in_the_forest(tmp_path):
    points = {"se": [90.5, 91.25], "lcm2": [91.0, 89.75, 90.0], "none": [90.0, 90.5, 91.0]}
    runs = [
        {"attention": a, "seed": s, "top1": top1}
        for a, found in points.items()
        for s, top1 in enumerate(found)
    ]
    results = results_of(tmp_path, runs)
    runs = read_runs(results / "runs.csv")
    rows = list(forest_rows(comparison_table(runs, Protocol(), results).records))
    axis = figures.forest(rows, "").axes[0]
    assert [row[0] for row in rows] == ["ResNet-20: se", "ResNet-20: lcm2"]
    points = [
        found.get_offsets().round(6).tolist()
        for found in axis.collections
        if isinstance(found, PathCollection)
    ]
    se, lcm2 = [[0.5, 0], [0.75, 0]], [[1.0, 1], [-0.75, 1], [-1.0, 1]]
    assert points == [se, [[0.625, 0]], lcm2, [[-0.25, 1]]]


def test_costs_that_are_nearly_the_same_stand_beside_each_other():
    """MACs of ResNet-20 without attention and with LCM2: an axis between the two would need an offset, "+4.055e1"."""
    point = {"network": "ResNet-20", "mean": 92.0, "deviation": None, "paper": None}
    points = pd.DataFrame(
        [
            point | {"attention": "none", "macs": 40.551040},
            point | {"attention": "lcm2", "macs": 40.559122},
        ]
    )
    figure = figures.accuracy_against(
        {"macs": "MACs"}, points.astype({"deviation": float, "paper": float}), ""
    )
    figure.canvas.draw()
    (axis,) = figure.axes
    low, high = axis.get_xlim()
    assert low < 40.551040 and high > 40.559122 and high - low > 4
    assert axis.xaxis.get_offset_text().get_text() == ""


def test_modules_of_ones_own_have_a_colour_and_a_name_in_every_figure(tmp_path):
    colours = figures.colours(["none", "se", "eca", "mine", "other"])
    assert len(set(colours.values())) == 5 and figures.colours(["eca"]) == {"eca": colours["eca"]}
    names = ("none", "mine", "other")
    page, pictures = make_report(
        results_of(tmp_path, [{"attention": a, "seed": s} for a in names for s in range(12)])
    )
    for picture in pictures:
        assert picture.name == "claims-table2" or all(
            name in picture.svg.decode() for name in names[1:]
        ), picture.name
    assert (
        "cifar10/resnet20/other/seed0-" in page and len(pictures) == 3
    )  # more seeds make no more pictures


def test_without_any_run(tmp_path):
    page, pictures = make_report(results_of(tmp_path, []))
    assert pictures == [] and "Nothing was run yet." in page
    assert page.count("python train.py experiment=table") == 18 + 12 + 12 + 12 + 18
    Requests().feed(page)


def test_notes_of_equal_text_are_facts_about_each_table(tmp_path):
    """One run on CIFAR-10 and one on CIFAR-100, each from a dirty checkout: both tables say so."""
    both = [{"data": d, "model": "resnet20", "dirty": True} for d in ("cifar10", "cifar100")]
    own = [{"schedule": "short", "dirty": True}]
    page, _ = make_report(results_of(tmp_path, both + own))
    assert (
        page.count("from a checkout with uncommitted changes") == 4
    )  # 2 of Table 2, 2 comparisons
    assert page.count("The paper does not say how many runs") == 1  # a method, not a fact


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
    assert [p.name for p in pictures] == [
        "claims-table2", "against-none-cifar10", "curves-cifar10-resnet20",
    ]  # fmt: skip


@pytest.mark.parametrize("epochs, title", [(300, 226), (10, 9), (8, 7), (4, 3), (2, 1)])
def test_the_lower_curve_is_the_last_quarter_and_says_which(epochs, title):
    curve = [50 + e / epochs for e in range(epochs)]
    whole, end = figures.learning_curves({"none": [curve], "se": [curve]}, "").axes
    assert end.get_title() == f"epochs {title} to {epochs}"
    assert list(end.lines[0].get_xdata()) == list(range(title, epochs + 1))
    shown = list(whole.lines[0].get_xdata())
    assert (shown == list(range(1, epochs + 1))) == (whole.get_title() == "")
    assert epochs < 300 or (whole.get_title() == "every 6th epoch, and the last" and shown[1] == 7)
