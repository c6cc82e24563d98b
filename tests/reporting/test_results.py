"""Every committed result follows from recorded runs and the files that are measured, computed or written by hand: results/ is
regenerated from them, byte for byte. tests/paper/test_complexity.py counts complexity.csv again.
"""

import csv
import json
import re
import runpy
import shutil

import matplotlib
import pytest
from invented_runs import ROOT

from lcm.reporting.claims import families, judge, judge_statements, read_claims
from lcm.reporting.cost import cells
from lcm.reporting.protocol import Protocol, select
from lcm.reporting.readme import fill_readme, readme_blocks
from lcm.reporting.records import read_record, record_name
from lcm.reporting.render import as_printed
from lcm.reporting.report import write_report
from lcm.reporting.runs import read_runs, rebuild
from lcm.reporting.statistics import MINIMUM_PAIRS, not_excluded, pairs_to_reach
from lcm.reporting.tables import read_complexity, read_paper

RESULTS = ROOT / "results"
# measured: cost.csv; made by commands of their own: complexity.csv, power.csv; the
# others by hand
GIVEN = ("paper.csv", "claims.yaml", "complexity.csv", "cost.csv", "power.csv", "benchmark.csv")
GIVEN += ("figure4.png",)
TABLES = re.compile(r"(table[1-5]|comparison|claims)[a-z0-9_-]*\.(md|csv|tex)")
tables = runpy.run_path(str(ROOT / "scripts" / "tables.py"))["main"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with all results, regenerated from the records and the given files."""
    folder = tmp_path_factory.mktemp("again") / "results"
    folder.mkdir()
    for name in GIVEN:
        shutil.copy(RESULTS / name, folder)
    for name in ("metrics", "plans"):
        shutil.copytree(RESULTS / name, folder / name)
    assert not rebuild(folder / "metrics", folder).damaged
    tables(["--all", "--results", str(folder)])
    write_report(folder)
    return folder


def test_runs_and_tables(made):
    assert (RESULTS / "runs.csv").read_bytes() == (made / "runs.csv").read_bytes()
    committed, again = (
        {f.name for f in folder.iterdir() if TABLES.fullmatch(f.name)} for folder in (RESULTS, made)
    )
    assert committed == again, "python scripts/tables.py --all"
    for name in sorted(again):
        assert (RESULTS / name).read_bytes() == (made / name).read_bytes(), name


def test_report_and_figures(made):
    committed, again = (
        {f.name for f in (folder / "figures").iterdir()} for folder in (RESULTS, made)
    )
    assert committed == again, "python scripts/report.py; remove figures that it has not drawn"
    pages = [(results / "report.html").read_text(encoding="utf-8") for results in (RESULTS, made)]
    without = [re.sub(r"base64,[A-Za-z0-9+/=]*", "", page) for page in pages]
    assert without[0] == without[1]
    figures = {name: (RESULTS / "figures" / name).read_text() for name in sorted(again)}
    drawn_with = {re.search(r"Matplotlib v([\d.]+)", text)[1] for text in figures.values()}
    if drawn_with != {matplotlib.__version__}:
        pytest.skip(
            f"figures were drawn with matplotlib {drawn_with}, this is {matplotlib.__version__}"
        )
    assert pages[0] == pages[1]
    for name, text in figures.items():
        assert text == (made / "figures" / name).read_text(), name


def test_each_row_has_its_record():
    recorded = {
        read_record(file)[0]["run"] for file in (RESULTS / "metrics").glob("*.jsonl")
    }  # raises where damaged
    assert recorded == set(read_runs(RESULTS / "runs.csv")["run"])


def test_figure4_shows_recorded_runs():
    runs = read_runs(RESULTS / "runs.csv")
    recorded = dict(zip(runs["run"], runs["config_hash"], strict=True))
    shown = json.loads((RESULTS / "figure4.json").read_text())["networks"]
    assert len(shown) >= 3 and all(
        recorded[network["run"]] == network["config_hash"] for network in shown
    )


@pytest.mark.parametrize("file", ["REPRODUCTION.md", "results/README.md", "docs/sweeps.md"])
def test_readme_blocks(file, made):
    text = (ROOT / file).read_text(encoding="utf-8")
    begun = len(re.findall(r"<!-- results:begin \S+ -->", text))
    assert begun == text.count("<!-- results:end -->") > 0
    filled = fill_readme(text, readme_blocks(read_runs(made / "runs.csv"), made))
    assert filled == text, f"scripts/tables.py --all --readme {file}"


RUNS = read_runs(RESULTS / "runs.csv")
PAPER = read_paper(RESULTS)
NO_NUMBERS = (
    r"`[^`]*`", r"LCM[12]", r"ResNets?(-\d+)?", r"DenseNet-\d+", r"ResNeXt-\d+", r"CIFAR-100?",
    r"Table 2", r"top-\d", r"seed 0", "95 % interval",
)  # fmt: skip


def one(found):
    (value,) = found
    return value


def of_paper(model, attention, data, metric="top1"):
    names = PAPER[["model", "attention", "data", "metric"]].apply(tuple, axis=1)
    return one(set(PAPER[names == (model, attention, data, metric)]["value"]))


def trained(attention):
    rows = RUNS[(RUNS["schedule"] == "cifar") & (RUNS["data"] == "cifar10")]
    return one(rows[rows["attention"] == attention]["test_top1"])


def printed_counts():
    """(how many of the paper's counts equal ours as the paper rounds them, how many there are)."""
    keys = ["table", "model", "attention"]
    rows = PAPER.drop_duplicates(["table", "label"]).merge(read_complexity(RESULTS), on=keys)
    cells = [(row.params / 1e6, row.params_m) for row in rows.itertuples()]
    cells += [(row.gfloat, row.gflops) for row in rows.itertuples()]
    return sum(as_printed(ours, cell) == cell for ours, cell in cells), len(cells)


def digits_differences(attention):
    """{seed: attention minus none}, from runs.csv alone."""
    rows = RUNS[RUNS["data"] == "digits"].set_index(["attention", "seed"])["test_top1"]
    return rows[attention] - rows["none"]


def numbers():
    """{name: value} of every number in the hand-written sentences, computed anew."""
    own = RUNS[RUNS["schedule"] == "cifar"]
    records = [read_record(RESULTS / "metrics" / record_name(run))[0] for run in own["run"]]
    interruptions = sum(run.get("interruptions", 0) for run in records)
    equal, printed = printed_counts()
    base, lcm2 = trained("none"), trained("lcm2")
    paper_base = of_paper("resnet20", "none", "cifar10")
    gain = of_paper("resnet20", "lcm2", "cifar10") - paper_base
    top1 = PAPER[PAPER["metric"] == "top1"]
    baselines = len(top1[top1["attention"] == "none"].drop_duplicates(["data", "model"]))
    claims = read_claims(RESULTS / "claims.yaml", PAPER)
    judged = judge_statements(claims, select(RUNS, Protocol()))
    pairs = [part.comparison.n for part in judged.values()]
    assert set(pairs) == {0, 1} and sum(pairs) == 1
    against = sum(claim.contradicts_itself for claim in claims)
    verdicts = judge(claims, judged, read_complexity(RESULTS))
    by_runs = [
        result.verdict for result in verdicts if result.claim.holds_if in ("every", "on_average")
    ]
    assert set(by_runs) == {"not tested yet"}
    supported = [result.claim.holds_if for result in verdicts if result.verdict == "supported"]
    assert set(supported) == {"cost"}
    assert [n for n, claim in enumerate(claims, 1) if claim.contradicts_itself] == [1, 2]
    rival = of_paper("resnet50", "cbam", "mini_imagenet") - of_paper(
        "resnet50", "lcm2", "mini_imagenet"
    )
    same = of_paper("densenet64", "lcm2", "cifar10")
    assert same == of_paper("densenet64", "lcm1", "cifar10")
    higher, lower = (of_paper("resnet20", arm, "cifar10") for arm in ("lcm1", "lcm2"))
    epochs = RUNS.groupby(["schedule", "epochs"]).size().to_dict()
    assert epochs.keys() == {("cifar", 300), ("short", 10), ("digits", 8)}
    assert set(RUNS["model"]) == {"resnet20"} and RUNS["device"].str.startswith("cpu").all()
    loss, most = not_excluded(digits_differences("lcm2"))
    assert most == -loss
    family = len(families(claims)[2])
    fewest = pairs_to_reach(family)
    per_seed = len(top1[top1["table"] == 2])
    number, claim = one((n, c) for n, c in enumerate(claims, 1) if c.id == "resnet-better")
    chances = one(
        row for row in csv.DictReader((RESULTS / "power.csv").open()) if row["claim"] == claim.id
    )
    digits = RUNS[RUNS["data"] == "digits"].set_index(["attention", "seed"])
    others = [name for name in digits.index.levels[0] if name != "none"]
    mixed = {
        name: sum(
            digits.loc[(name, s), "torch"] != digits.loc[("none", s), "torch"] for s in range(6)
        )
        for name in others
    }
    assert {name for name, count in mixed.items() if count} == {"ca", "eca", "simam"}
    effects = {name: digits_differences(name).mean() for name in others}
    seeds = len(digits_differences("lcm2"))
    assert {len(digits_differences(name)) for name in others} == {seeds}
    largest = max(effects, key=lambda name: abs(effects[name]))
    hours = f"{own['seconds'].sum() / 3600:.1f} hours"
    return locals()


def readme_phrases(
    equal,
    printed,
    base,
    lcm2,
    paper_base,
    gain,
    baselines,
    claims,
    against,
    by_runs,
    supported,
    rival,
    same,
    higher,
    lower,
    epochs,
    most,
    loss,
    fewest,
    per_seed,
    number,
    chances,
    effects,
    seeds,
    hours,
    own,
    **_,
):
    """Those of README.md."""
    return [
        f"Of the paper's {len(claims)} claims, {len(by_runs)} are about accuracy: none of them has "
        f"enough runs for a verdict, and the paper's own numbers contradict {against} of them",
        f"The {len(supported)} claims about cost are supported",
        f"The other {len(claims) - len(by_runs) - len(supported)} cannot be tested",
        f"| {printed} | {equal} | – |",
        f"| {paper_base:.2f} | {base:.2f} | 1 | close; {baselines - 1} other baselines not run |",
        f"| {gain:+.2f} | {lcm2 - base:+.2f} | 1 | nothing: a test needs {MINIMUM_PAIRS} pairs |",
        f"| – | {effects['lcm2']:+.2f} | {seeds} | excludes gains above {most:.2f} points |",
        f"| {-rival:+.2f} | – | 0 | the paper contradicts its claim 1 |",
        f"| {lower - higher:+.2f} | – | 0 | the paper contradicts its claim 2 |",
        f"on CIFAR-10, {epochs['cifar', 300]} runs of the paper's 300 epochs and "
        f"{epochs['short', 10]} runs of 10 epochs; "
        f"on scikit-learn's digits, {epochs['digits', 8]} runs of 8 epochs",
        f"the networks here have {equal} of the paper's {printed} printed counts",
        f"LCM2 is {lcm2 - base:.2f} points above no attention in the only pair",
        f"which took {hours} of a CPU",
        f"LCM2 changes accuracy by at most {most:.2f} points in either direction "
        f"({seeds} pairs, a test of this comparison alone at the 5 % level)",
        f"superior to the other modules (claim 1), but CBAM is {rival:.2f} points above LCM",
        f"better than LCM1 (claim 2), but LCM2 is not on DenseNet-64 ({same:.2f} both) "
        f"and ResNet-20 ({lower:.2f} against {higher:.2f})",
        f"with fewer than {fewest} seeds, {fewest * per_seed} runs, no comparison of Table 2",
        f"{chances['half']} seeds would support its claim that LCM improves ResNets "
        f"(claim {number}) with probability 0.5, and {chances['four_fifths']} with 0.8",
    ]


def picture_phrases(others, effects, largest, mixed, seeds, **_):
    """Those below README's picture."""
    return [
        f"None of the {len(others)} comparisons is significant: "
        f"after correction for all of them that takes {pairs_to_reach(len(others))} pairs",
        f"In {sum(mixed.values())} of the {seeds * len(others)} pairs",
        f"the {effects[largest]:.2f} points of `{largest}`",
    ]


def reproduction_phrases(
    base, lcm2, paper_base, gain, baselines, family, fewest, hours, own, interruptions, **_
):
    """Those of REPRODUCTION.md."""
    return [
        f"takes {len(set().union(*cells(RESULTS).values()))} different runs. "
        f"Under the paper's schedule {len(own)} of them",
        f"They took {hours} in all, with {interruptions} interruptions",
        f"reached {base:.2f} %, {base - paper_base:.2f} points above the paper's {paper_base:.2f}; "
        f"the other {baselines - 1} baselines",
        f"LCM2 reached {lcm2:.2f} %, {lcm2 - base:.2f} points above none (the paper: {gain:.2f})",
        f"a test needs {MINIMUM_PAIRS} pairs, and {fewest} after correction for the {family} "
        "comparisons of Table 2",
    ]


def top5_phrases():
    """What the paper's own top-5 says, in REPRODUCTION.md."""
    top5 = [
        f"{net} ({of_paper(model, 'cbam', 'mini_imagenet', 'top5'):.2f} against "
        f"{of_paper(model, 'lcm2', 'mini_imagenet', 'top5'):.2f})"
        for net, model in (("ResNet-50", "resnet50"), ("ResNeXt-50", "resnext50"))
    ]
    return [f"in top-5 it is above LCM on {' and '.join(top5)}"]


def facts():
    """The phrases of the hand-written sentences, with every number computed anew."""
    found = numbers()
    return {
        "README.md": readme_phrases(**found) + picture_phrases(**found),
        "REPRODUCTION.md": reproduction_phrases(**found),
        "REPRODUCTION.md top-5": top5_phrases(),
    }


PARTS = {  # from where to where the sentences stand
    "README.md": ("**Is it true?**", "## I want to"),
    "REPRODUCTION.md": ("## What was run, and what was not", "<!-- results"),
    "REPRODUCTION.md top-5": ("in top-5 it is", '"LC module 2'),
}


@pytest.mark.parametrize("part", PARTS)
def test_every_number_of_a_hand_written_sentence(part):
    """Each phrase is there with the numbers of runs.csv and the other files, and no other number."""
    text = (ROOT / part.split()[0]).read_text(encoding="utf-8")
    begin, end = PARTS[part]
    start = text.index(begin)
    text = " ".join(text[start : text.index(end, start + len(begin))].split())
    for phrase in facts()[part]:
        assert phrase in text
        text = text.replace(phrase, "")
    for name in NO_NUMBERS:
        text = re.sub(name, "", text)
    assert not re.findall(r"\d+", text), text


def test_the_advice_of_the_readme_can_decide():
    """B2: the seeds of README's own example are enough for its comparisons."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"attention=(\S+) seed='range\((\d+)\)' schedule.epochs", text)
    arms, seeds = found[1].split(","), int(found[2])
    assert seeds == pairs_to_reach(len(arms) - 1)


def test_results_readme_names_every_file():
    text = (RESULTS / "README.md").read_text()
    for file in RESULTS.iterdir():
        stem = re.sub(r"\d$|-.*", "", file.stem)
        assert file.name == "README.md" or stem in text, file.name
