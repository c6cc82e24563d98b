"""The report: one page without any request, the same bytes each time, with every number and every run in it."""

import base64
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from invented_runs import simulated_run

from lcm.reporting import plots
from lcm.reporting.collect import collect, read_runs
from lcm.reporting.report import make_report, write_report
from lcm.reporting.selection import Protocol
from lcm.reporting.tables import comparison_table

ROOT = Path(__file__).resolve().parents[2]
GIVEN = ("paper.csv", "claims.yaml")


def results_of(folder, runs):
    (folder / "results").mkdir(parents=True)
    for name in GIVEN:
        shutil.copy(ROOT / "results" / name, folder / "results")
    shutil.copy(ROOT / "tests" / "reporting" / "stored" / "complexity.csv", folder / "results")
    for arguments in runs:
        simulated_run(folder / "runs", **arguments)
    if runs:
        collect(folder / "runs", folder / "results")
    return folder / "results"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = [{"attention": a, "seed": s, "top1": 92 + s / 8} for a in ("none", "lcm2") for s in range(2)]
    runs += [{"attention": a, "data": "digits", "schedule": "digits", "top1": 98.61} for a in ("none", "gc")]
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
        self.loads += [
            attributes[key] for key in ("src", "srcset", "data", "poster", "background") if key in attributes
        ]
        self.links += [(tag, attributes["href"])] if "href" in attributes else []
        self.ids += [attributes["id"]] if "id" in attributes else []
        assert tag not in ("script", "iframe", "object", "embed", "base")
        assert not any(key.startswith("on") for key in attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_nothing_is_requested(made):
    page, _ = made
    parser = Requests()
    parser.feed(page)
    assert parser.open == [] and len(set(parser.ids)) == len(parser.ids)
    assert len(parser.loads) == len(made[1]) and all(
        load.startswith("data:image/svg+xml;base64,") for load in parser.loads
    )
    for tag, link in parser.links:
        assert link == "data:," if tag == "link" else link[0] == "#" and link[1:] in parser.ids
    assert not re.search(r"@import|url\(", page)
    for load in parser.loads:
        picture = base64.b64decode(load.split(",", 1)[1]).decode()
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
    for picture in pictures:
        assert (copy / "figures" / f"{picture.name}.svg").read_bytes() == picture.svg
        assert (copy / "figures" / f"{picture.name}.png").read_bytes() == picture.png
    assert len(list((copy / "figures").iterdir())) == 2 * len(pictures)


def test_numbers_runs_and_commands_are_there(results, made):
    page, _ = made
    assert "92.06 ± 0.08 (2)" in page and "retracted" in page
    for file in (results / "metrics").iterdir():
        assert re.search(r"<td class=l>[^<]*" + file.stem.rsplit("-", 1)[1], page), "each run has its facts"
    assert "the loss is &lt;not&gt; finite" in page
    assert "python train.py experiment=table5 model=densenet121 attention=se data=mini_imagenet" in page
    assert "python train.py experiment=quickstart attention=lcm1" in page
    assert page.count("&quot;epochs&quot;: 3") + page.count('"epochs": 3') == 5  # a config once for its seeds
    assert "0123456789" in page and "2.6.0" in page and "cpu (simulated)" in page
    assert "/home/" not in page


def test_pictures(made):
    page, pictures = made
    names = [picture.name for picture in pictures]
    assert names == [
        "claims-table2", "against-none-cifar10", "against-none-digits-digits",
        "curves-cifar10-resnet20", "curves-digits-digits-resnet20", "cost-cifar10", "cost-digits-digits",
    ]  # fmt: skip
    for picture in pictures:
        assert (
            picture.svg.startswith(b"<?xml")
            and picture.png.startswith(b"\x89PNG")
            and f"figures/{picture.name}" in page
        )
        assert b"<dc:date>" not in picture.svg


def test_every_pair_is_in_the_forest(tmp_path):
    points = {"se": [90.5, 91.25], "lcm2": [91.0, 89.75, 90.0], "none": [90.0, 90.5, 91.0]}
    runs = [{"attention": a, "seed": s, "top1": top1} for a, found in points.items() for s, top1 in enumerate(found)]
    results = results_of(tmp_path, runs)
    table = comparison_table(read_runs(results / "runs.csv"), Protocol())
    rows = [(r["attention"], r["difference"], r["low"], r["high"], r["differences"], None, r["verdict"])
            for r in table.records if r["pairs"]]  # fmt: skip
    circles = plots.forest(rows, "").axes[0].collections[1].get_offsets().tolist()
    assert [row[0] for row in rows] == ["se", "lcm2"]
    assert circles == [[0.5, 0], [0.75, 0], [1.0, 1], [-0.75, 1], [-1.0, 1]]


def test_more_seeds_make_no_more_pictures(made, tmp_path):
    runs = [{"attention": a, "seed": s, "top1": 92 + s / 8} for a in ("none", "lcm2") for s in range(12)]
    _, pictures = make_report(results_of(tmp_path, runs))
    assert len(pictures) == 4


def test_old_figures_go_and_others_stay(tmp_path):
    results = results_of(tmp_path, [{"attention": "none"}])
    figures = results / "figures"
    figures.mkdir()
    for name in ("curves-cifar10-resnet9.svg", "score-cam.png"):
        (figures / name).write_text("x")
    write_report(results)
    assert not (figures / "curves-cifar10-resnet9.svg").exists() and (figures / "score-cam.png").exists()


def test_without_any_run(tmp_path):
    page, pictures = make_report(results_of(tmp_path, []))
    assert pictures == [] and "Nothing was run yet." in page
    assert page.count("python train.py experiment=table") == 2 * (
        18 + 12 + 12 + 12 + 18
    )  # below its table and at the end
    Requests().feed(page)


@pytest.mark.slow
def test_a_thousand_runs(tmp_path):
    rows = [
        (data, model, attention)
        for data in ("cifar10", "cifar100")
        for model in ("densenet40", "densenet64", "densenet100", "resnet20", "resnet32", "resnet50_cifar")
        for attention in ("none", "se", "cbam", "nonlocal", "gc", "lcm1", "lcm2")
    ]
    runs = [
        {"data": d, "model": m, "attention": a, "seed": s, "top1": 90 + s / 9, "epochs": 300}
        for d, m, a in rows
        for s in range(12)
    ]
    results = results_of(tmp_path, runs)
    assert len(runs) > 1000
    start = time.process_time()
    write_report(results)
    assert time.process_time() - start < 20
