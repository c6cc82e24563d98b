"""The report: one page without any request, the same bytes each time, findings first."""

import base64
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from invented_runs import DIVERGED, ROOT, invented_run, results_of
from matplotlib.collections import PathCollection

from lcm.reporting import figures
from lcm.reporting.captions import length_and_seeds
from lcm.reporting.render import Table
from lcm.reporting.report import for_the_page, make_report
from lcm.reporting.runs import collect
from lcm.reporting.statistics import compare

DIGITS = {"data": "digits", "schedule": "digits", "top1": 98.61}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Measured and simulated files are those of the repository."""
    runs = [
        *(
            {"attention": a, "seed": s, "top1": 92 + s / 8}
            for a in ("none", "lcm2")
            for s in (0, 1)
        ),
        *({"attention": a} | DIGITS for a in ("none", "gc")),
        {
            "attention": "se",
            "state": "failed",
            "message": f"<b> {DIVERGED}",
        },
    ]
    folder = results_of(tmp_path_factory.mktemp("report"), runs)
    for name in ("benchmark.csv", "figure4.png"):
        shutil.copy(ROOT / "results" / name, folder)
    return folder


@pytest.fixture(scope="module")
def made(results):
    return make_report(results)


def test_pairs_count_as_far_as_they_bring_a_claim_nearer(tmp_path):
    """Claim 7 needs ten pairs of each of eight comparisons; here one of them has twelve."""
    runs = [{"attention": a, "seed": seed} for a in ("none", "lcm2") for seed in range(12)]
    page, _ = make_report(results_of(tmp_path, runs))
    assert re.search(r"<b>7</b> <span[^>]*>not tested yet \(10 of 80 pairs\)", page)
    assert re.search(r"<b>10</b> <span[^>]*>not tested yet \(0 of 60 pairs\)", page)


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
        self.open += [tag] if tag not in self.VOID else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_nothing_is_requested(made):
    page, pictures = made
    parser = Requests()
    parser.feed(page)
    assert parser.open == [] and len(set(parser.ids)) == len(parser.ids)
    for tag, link in parser.links:
        assert link == "data:," if tag == "link" else link[0] == "#" and link[1:] in parser.ids
    assert not re.search(r"@import|url\(", page)
    kinds = [load.split(",", 1)[0] for load in parser.loads]
    assert kinds == ["data:image/svg+xml;base64"] * len(pictures) + ["data:image/png;base64"]
    for picture in pictures.values():
        assert all(link.startswith(b"#") for link in re.findall(rb'href="([^"]*)"', picture))
        assert b"<script" not in picture and b"url(http" not in picture


@pytest.mark.commands
def test_the_same_bytes_in_another_process(results, made, tmp_path):
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    command = [sys.executable, ROOT / "scripts" / "report.py", "--results", copy]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "7"}, check=True)
    page, pictures = made
    assert (copy / "report.html").read_text(encoding="utf-8") == page
    assert {file.stem: file.read_bytes() for file in (copy / "figures").iterdir()} == pictures


def section(page, name):
    return re.search(rf'<h2 id="{name}">.*?(?=<h2 |</body>)', page, re.DOTALL)[0]


@pytest.mark.parametrize(
    "name, words",
    [
        ("findings", "Not known yet: under its schedule no claim about accuracy"),
        ("findings", "<b>Accuracy</b>: 17 claims, judged by pairs of runs: 17 not tested yet."),
        ("findings", "a cheap module need not help: 2 supported."),
        ("findings", "claim 1</a>: lcm2 minus cbam is -0.39 points in Table 5"),
        ("findings", "12 of the paper's 12 printed counts"),  # stored/complexity.csv has Table 2
        ("findings", r"by 10 seeds \(claims 10, 15, 18\)"),
        # claim 7: eight comparisons of ten pairs each, of which lcm2 - none has two
        ("claims", r"<b>7</b> <span[^>]*>not tested yet \(2 of 80 pairs\)"),
        ("claims", r"<b>10</b> <span[^>]*>not tested yet \(0 of 60 pairs\)"),
        ("claims", r"<b>3</b> <span[^>]*>supported<"),
        ("tables", r"92.06 ± 0.08 \(2\)"),
        ("tables", f"&lt;b&gt; {DIVERGED}"),
        ("tables", "experiment=table5 model=densenet121 attention=se data=mini_imagenet"),
        ("tables", "python train.py data=digits model=resnet20 attention=lcm1 schedule=digits"),
        ("power", '<td class="l"><a href="#claim7">7</a></td><td>25</td><td>40</td>'),
        ("speed", r"resnet20</td><td>1.44 \[1.39, 1.49\]</td>"),
        ("speed", r"resnet20, cbam</td><td>1.52 \[1.48, 1.56\]</td>"),
        ("made", r"cpu \(simulated\)"),
    ],
)
def test_what_a_section_says(made, name, words):
    page, _ = made
    assert re.search(words, section(page, name))


def test_the_findings_come_first_and_figure_4_is_that_of_the_file(made):
    page, _ = made
    assert re.findall(r'<h2 id="(\w+)">', page) == [
        *("findings", "differences", "claims", "tables", "curves", "figure4", "power"),
        *("speed", "made"),
    ]
    assert "retracted" in page and "/home/" not in page
    picture = re.search(r"data:image/png;base64,([^\"]+)", section(page, "figure4"))[1]
    assert base64.b64decode(picture) == (ROOT / "results" / "figure4.png").read_bytes()


def test_columns_of_the_page():
    """Accuracies before counts; what is the same in every row stands below."""
    header = ["Data", "Model", "Para (M)", "MACs (G)", "top-1", "p"]
    rows = [["digits", "a", "1", "2", "9", "–"], ["digits", "b", "3", "2", "8", "–"]]
    # Tables 1 and 2 have two columns of this name: of an empty one no note says that there is none
    two = Table("t", "T", ["Model", "ours - paper", "ours - paper"], [list("a1–"), list("b2–")])
    assert (for_the_page(two).header, for_the_page(two).notes) == (("Model", "ours - paper"), [])
    table = for_the_page(Table("t", "T", header, rows, ["fact"], labels=2))
    assert (table.header, table.labels) == (("Model", "top-1", "Para (M)"), 1)
    assert table.rows == [("a", "9", "1"), ("b", "8", "3")]
    assert table.notes == ["In every row: Data digits, p (nothing yet), MACs (G) 2.", "fact"]
    for some, expected in ((rows[:1], [("digits", "a", "9", "–", "1", "2")]), ([], [])):
        assert for_the_page(Table("t", "T", header, some)).rows == expected


def test_a_picture_alone_says_what_was_trained(made):
    page, pictures = made
    said = {
        "claims": ("ResNet-20 on CIFAR-10: lcm2 - none", "3 epochs, seeds 0, 1; the paper"),
        "against-none-digits-digits": ("ResNet-20 on digits", "3 epochs, seed 0; schedule=digits"),
        "curves-cifar10-resnet20": ("ResNet-20 on CIFAR-10", "3 epochs, seeds 0, 1; the paper"),
        "curves-digits-digits-resnet20": ("ResNet-20 on digits", "3 epochs, seed 0"),
    }
    assert list(pictures) == list(said)
    for name, words in said.items():
        assert all(part in pictures[name].decode() for part in words), name
        assert f"figures/{name}.svg" in page and b"<dc:date>" not in pictures[name]


@pytest.mark.parametrize(
    "epochs, seeds, words",
    [
        ([8], [0, 2, 1, 3], "8 epochs, seeds 0 to 3"),
        ([8], [0, 2], "8 epochs, seeds 0, 2"),
        ([1], [9], "1 epoch, seed 9"),
        ([8, 1], [2, 1, 3, 9], "1 or 8 epochs, seeds 1, 2, 3, 9"),
    ],
)
def test_length_and_seeds(epochs, seeds, words):
    assert length_and_seeds([{"epochs": e, "seed": s} for e in epochs for s in seeds]) == words


def test_every_pair_is_in_the_forest_and_none_hides_another():
    """Five pairs at one place, two at another: each circle has a place of its own in its row."""
    found = {"a": (0.5, 0.5, -0.25, 0.5, 0.5, -0.25, 0.5, 1.0), "b": (1.0, -0.75, -1.0)}
    rows = {
        label: (SimpleNamespace(comparison=compare(d), verdict=None), 0.5)
        for label, d in found.items()
    }
    axis = figures.forest(rows, "").axes[0]
    parts = [part for part in axis.collections if isinstance(part, PathCollection)]
    shown = [part.get_offsets().round(6).tolist() for part in parts]  # pairs, mean, the paper
    means = [compare(d).mean for d in found.values()]
    assert [part[0][0] for part in shown[1::3]] == pytest.approx(means, abs=1e-6)
    for index, (pairs, d) in enumerate(zip(shown[::3], found.values(), strict=True)):
        assert [x for x, _ in pairs] == list(d) and len(set(map(tuple, pairs))) == len(d)
        assert all(abs(y - index) < 0.5 for _, y in pairs)


def test_modules_of_ones_own_have_a_colour_and_a_name_in_every_figure(tmp_path):
    colours = figures.colours(["none", "se", "mine", "other", "simam"])
    assert len({*colours.values()}) == 5 and figures.colours(["simam"])["simam"] == colours["simam"]
    runs = [{"attention": a, "seed": s} for a in ("none", "mine", "other") for s in range(12)]
    _, pictures = make_report(results_of(tmp_path, runs))
    # more seeds make no more pictures
    assert list(pictures) == ["against-none-cifar10", "curves-cifar10-resnet20"]
    assert all(name in svg for name in (b"mine", b"other") for svg in pictures.values())


def test_without_any_run(tmp_path):
    page, pictures = make_report(results_of(tmp_path))
    assert pictures == {} and page.count("Nothing was run yet.") == 2
    assert "Not measured yet" in section(page, "speed") and "figure4" not in section(page, "curves")
    assert page.count("python train.py experiment=table") == 18 + 12 + 12 + 12 + 18
    Requests().feed(page)


def test_an_epoch_without_a_number_and_a_run_without_counts_end_nothing(tmp_path):
    results = results_of(tmp_path)
    for attention in ("none", "lcm2"):
        facts = {"attention": attention, "epochs": 8, "params": None, "macs": None}
        file = invented_run(tmp_path / "runs", **facts) / "metrics.jsonl"
        # the first of its eight lines
        file.write_text(
            re.sub('"test_top1": [^,]*', '"test_top1": null', file.read_text(), count=1)
        )
    assert not collect(tmp_path / "runs", results).damaged
    assert list(make_report(results)[1]) == ["claims", "curves-cifar10-resnet20"]


@pytest.mark.parametrize("epochs, first", [(300, 226), (10, 9), (8, 7), (4, 3), (2, 1)])
def test_curves_have_every_epoch_and_below_every_run_in_the_last_quarter(epochs, first):
    every, last = [*range(1, epochs + 1)], [*range(first, epochs + 1)]
    arms = {"none": [[e - 1 for e in every], [e + 1 for e in every]], "se": [[2.0] * epochs]}
    whole, end = figures.learning_curves(arms, "").axes
    assert end.get_title() == f"epochs {first} to {epochs}"
    assert [list(axes.lines[0].get_xdata()) for axes in (whole, end)] == [every, last]
    assert [line.get_ydata().tolist() for line in whole.lines] == [every, [2] * epochs]
    # the mean, both runs; of one run the line
    runs = [last, [e - 1 for e in last], [e + 1 for e in last], [2] * len(last)]
    assert [line.get_ydata().tolist() for line in end.lines] == runs
