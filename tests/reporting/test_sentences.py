"""The numbers in sentences that are written by hand are those of the files in results."""

import operator
import re

import pandas as pd
import pytest
import yaml
from invented_runs import RESULTS, ROOT

from lcm.reporting.claims import families, judge, judge_statements, read_chances, read_claims
from lcm.reporting.power import DEVIATION
from lcm.reporting.protocol import (
    ARM,
    DATA_TITLE,
    NETWORK_TITLE,
    PAPER_SCHEDULE,
    Protocol,
    in_order,
    select,
)
from lcm.reporting.records import read_record, record_name
from lcm.reporting.render import rounded, signed
from lcm.reporting.report import printed_counts
from lcm.reporting.runs import read_runs
from lcm.reporting.statistics import ALPHA, MINIMUM_PAIRS, compare, pairs_to_reach
from lcm.reporting.tables import read_complexity, read_paper

RUNS = read_runs(RESULTS / "runs.csv")
PAPER = read_paper(RESULTS)
TOP1 = PAPER[PAPER["metric"] == "top1"]
TEN = {10: "ten"}  # this text has no digits
BASELINES = len(TOP1[TOP1["attention"] == "none"].drop_duplicates(["data", "model"]))
CLAIMS = read_claims(RESULTS / "claims.yaml", PAPER)
COMPARED = pd.concat(pd.read_csv(file) for file in sorted(RESULTS.glob("comparison*.csv")))
NO_NUMBERS = (
    r"`[^`]*`", r"LCM[12]", r"ResNets?(-\d+)?", r"DenseNet-\d+", r"ResNeXt-\d+", r"CIFAR-100?",
    r"Table 2", r"top-\d", r"seed 0", "95 % interval", "a test at 5 %",
)  # fmt: skip


def one(found):
    (value,) = found
    return value


def of_paper(model, attention, data, metric="top1"):
    names = PAPER[["model", "attention", "data", "metric"]].apply(tuple, axis=1)
    return one(set(PAPER[names == (model, attention, data, metric)]["value"]))


def trained(attention):
    """The accuracy of the one run of ResNet-20 on CIFAR-10 under the paper's schedule."""
    run = RUNS["run"].str.startswith(f"cifar10/resnet20/{attention}/")
    return one(RUNS[run & (RUNS["schedule"] == "cifar")]["test_top1"])


PLANS = {  # {schedule: how many seeds were planned}
    file.stem: len(yaml.safe_load(file.read_text())["seeds"])
    for file in sorted((RESULTS / "plans").glob("*.yaml"))
}


def what_was_run():
    """Whatever groups of runs there are, README names each."""
    assert RUNS["device"].str.startswith("cpu").all(), "README says: on a CPU"
    networks = in_order(RUNS["model"], NETWORK_TITLE)
    yield f"{' and '.join(NETWORK_TITLE[model] for model in networks)} on a CPU"
    counts = RUNS[RUNS["state"] == "finished"].groupby(["schedule", "data", "epochs"]).size()
    for (schedule, data, epochs), count in counts.items():
        yield f"{count} of {epochs} epochs on {DATA_TITLE[data]} (`{schedule}`)"


PLANNED = COMPARED[COMPARED["schedule"].isin(PLANS) & COMPARED["needed"].notna()]


def by_state(schedule):
    """(comparisons, data sets) of a plan: those of data sets with all its pairs; the others."""
    planned = PLANNED[PLANNED["schedule"] == schedule]
    whole = planned.groupby("data")["pairs"].transform("min") >= PLANS[schedule]
    return planned[whole], [DATA_TITLE[data] for data in planned[~whole]["data"].unique()]


def judged(schedule):
    return by_state(schedule)[0]


def shown():
    """(name, paper, row of comparison*.csv, planned seeds) of LCM2 against none (of a plan SE, too)
    wherever they have pairs, and of all that a plan has judged.
    """
    rival = (COMPARED["attention"] == "se") & COMPARED["schedule"].isin(PLANS)
    gains = COMPARED[(COMPARED["against"] == "none") & ((COMPARED["attention"] == "lcm2") | rival)]
    found = pd.concat([gains[gains["pairs"] > 0], *map(judged, PLANS)])
    for row in found.drop_duplicates(["data", "schedule", "attention", "against"]).itertuples():
        same = (RUNS["data"] == row.data) & (RUNS["schedule"] == row.schedule)
        names = NETWORK_TITLE[row.model], DATA_TITLE[row.data], one(set(RUNS[same]["epochs"]))
        paper, planned = "–", PLANS.get(row.schedule, 0)
        both = row.attention, row.against
        if (planned or row.schedule == PAPER_SCHEDULE.get(row.data)) and "se" not in both:
            paper = f"{operator.sub(*(of_paper(row.model, arm, row.data) for arm in both)):+.2f}"
        yield "{}, {}, {} epochs".format(*names), paper, row, planned


def arms(row):
    """The comparison of a row, such as LCM2 - none."""
    return f"{in_capitals(row.attention)} - {in_capitals(row.against)}"


def in_capitals(arm):
    return arm if arm == "none" else arm.upper()


def lines_of_the_table():
    """The lines of README's table: what a group means follows from its pairs.

    Groups that the paper does not have, nobody planned and no test can judge have no line.
    """
    for name, paper, row, planned in shown():
        if paper == "–" and not planned and row.pairs < MINIMUM_PAIRS:
            continue
        pairs, meaning = f"{row.pairs}", f"excludes gains above {rounded(row.gain, 2)} points"
        if planned and row.pairs < planned:
            pairs += f" of {planned}"
            paper_is = "" if paper == "–" else "; the paper's is of 300 epochs"
            meaning = f"not judged before {planned} pairs{paper_is}"
        elif row.pairs < MINIMUM_PAIRS:
            meaning = f"nothing: a test needs {MINIMUM_PAIRS} pairs"
        elif planned:
            first = in_capitals(row.attention)
            words = {"supported": f"{first} is better", "contradicted": f"{first} is worse"}
            # Beside a verdict the stricter interval, of all comparisons at once, would confuse.
            left = f"excludes all but {signed(row.loss_at_once)} to {signed(row.gain_at_once)}"
            meaning = words.get(row.verdict, f"undecided; {left}")
            if row.lost_pairs:
                meaning = f"{words.get(row.verdict, 'undecided')}; a run diverged"
        yield f"| {arms(row)}, {name} | {paper} | {signed(row.difference)} | {pairs} | {meaning} |"


def exclusions():
    """What a test at 5 % excludes where nothing was planned and there are pairs enough."""
    for name, _, row, planned in shown():
        if not planned and row.pairs >= MINIMUM_PAIRS:
            yield (
                f"{name}, {row.pairs} pairs: {in_capitals(row.attention)} minus none below "
                f"{signed(row.loss)} or above {signed(row.gain)}"
            )


def plans():
    """A plan is in progress on a data set, or README has the picture of what it has judged."""
    for schedule in PLANS:
        found, open_sets = by_state(schedule)
        yield from (f"`schedule={schedule}` is in progress on {data}" for data in open_sets)
        for data in found["data"].unique():
            yield f"(results/figures/against-none-{schedule}-{data}.svg)"
        # of these runs the machine is known by seed and attention
        on = RUNS[RUNS["schedule"] == schedule].set_index(["data", "attention", "seed"])["device"]
        pairs = [
            {on[row.data, arm, seed] for arm in (row.attention, row.against)}
            for row in found.itertuples()
            for seed in range(PLANS[schedule])
        ]
        unlike = sum(len(devices) > 1 or ", then " in min(devices) for devices in pairs)
        if unlike:
            yield f"In {unlike} of the {len(pairs)} pairs of `{schedule}` the two runs also"


def phrases_of_readme():
    """{words that begin a part of README: its phrases, with every number computed anew}"""
    complexity = read_complexity(RESULTS)
    equal, printed = printed_counts(PAPER, complexity)
    verdicts = judge(CLAIMS, judge_statements(CLAIMS, select(RUNS, Protocol())), complexity)
    kinds = {kind: [c["verdict"] for c in verdicts if c["holds_if"] in kind] for kind in KINDS}
    assert set(kinds[KINDS[0]]) == {"not tested yet"} and set(kinds[KINDS[1]]) == {"supported"}
    assert [n for n, claim in enumerate(CLAIMS, 1) if claim["contradicts_itself"]] == [1, 2]
    base = trained("none")
    rival = operator.sub(*(of_paper("resnet50", a, "mini_imagenet") for a in ("cbam", "lcm2")))
    same = one({of_paper("densenet64", arm, "cifar10") for arm in ("lcm1", "lcm2")})
    higher, lower = (of_paper("resnet20", arm, "cifar10") for arm in ("lcm1", "lcm2"))
    fewest = pairs_to_reach(len(families(CLAIMS)[2]))
    number, claim = one((n, c) for n, c in enumerate(CLAIMS, 1) if c["id"] == "resnet-better")
    chances = read_chances(RESULTS)[claim["id"]].split(" / ")
    hours = RUNS[RUNS["schedule"] == "cifar"]["seconds"].sum() / 3600
    # here and in REPRODUCTION.md: each of these arms has more than the assumed deviation
    tenth = COMPARED[(COMPARED["schedule"] == "tenth") & (COMPARED["data"] == "cifar100")]
    assert tenth["deviation"].min() > DEVIATION
    return {
        "**Is it true?**": [
            f"Of the paper's {len(CLAIMS)} claims, {len(kinds[KINDS[0]])} are about "
            "accuracy: none of them has enough runs for a verdict, and the paper's own numbers "
            "contradict 2 of them",
            f"The {len(kinds[KINDS[1]])} claims about cost are supported",
            f"The other {len(CLAIMS) - sum(map(len, kinds.values()))} are not judged",
            *which_module(),
        ],
        "| test top-1 (%)": [
            f"| {printed} | {equal} | – |",
            f"| {of_paper('resnet20', 'none', 'cifar10'):.2f} | {base:.2f} | 1 | close; "
            f"{BASELINES - 1} other baselines not run |",
            *lines_of_the_table(),
            f"| {-rival:+.2f} | – | 0 | the paper contradicts its claim 1 |",
        ],
        "**What was run?**": [*what_was_run(), *plans()],
        "A setting is": [f"a ResNet-20 took about {TEN[round(hours / 2)]} hours on a CPU"],
        "A filled dot": under_the_picture(),
        "* **Counts**": [f"the networks here have {equal} of the paper's {printed} printed counts"],
        "* **Accuracy**": [
            f"LCM2 is {trained('lcm2') - base:.2f} points above none in the only pair",
            f"which took {hours:.1f} hours of a CPU",
        ],
        "* **What the runs exclude**": [*exclusions()],
        "* **The paper against itself**": [
            f"superior to the other modules (claim 1), but CBAM is {rival:.2f} points above LCM",
            f"better than LCM1 (claim 2), but LCM2 is not on DenseNet-64 ({same:.2f} both) "
            f"and ResNet-20 ({lower:.2f} against {higher:.2f})",
        ],
        "* **What would decide**": [
            "no comparison of Table 2 can be significant with fewer than "
            f"{fewest} seeds ({fewest * len(TOP1[TOP1['table'] == 2])} runs)",
            f"{chances[0]} seeds would support its claim that LCM1 and LCM2 improve ResNets "
            f"(claim {number}) with probability 0.5, and {chances[1]} with 0.8",
        ],
    }


def which_module():
    """No verdict on the digits, and those of `tenth`, or that it is not complete."""
    digits = COMPARED[COMPARED["data"] == "digits"]["verdict"].dropna()
    assert len(digits) and not digits.isin(["supported", "contradicted"]).any()
    yield "on the digits no module differs significantly from none"
    found, open_sets = by_state("tenth")
    for data in open_sets:
        yield f"on {data} the comparison of SE, LCM1 and LCM2 is not complete"
    for data, rows in found.groupby("data"):
        words = rows["verdict"].map({"supported": "better", "contradicted": "worse"})
        by_verdict = rows.groupby(words.fillna("undecided"))
        parts = [f"{word}: {', '.join(map(arms, own.itertuples()))}" for word, own in by_verdict]
        yield f"on {DATA_TITLE[data]} {'; '.join(parts)}"


KINDS = ("every on_average", "cost")


def under_the_picture():
    """Every attention minus none on the digits, from runs.csv alone."""
    digits = RUNS[RUNS["data"] == "digits"].pivot(index="seed", columns="attention")
    top1, torch = digits["test_top1"], digits["torch"]
    differences = top1.drop(columns="none").sub(top1["none"], axis=0).astype(float)
    means = differences.mean()
    unlike = torch.drop(columns="none").ne(torch["none"], axis=0).sum()
    assert set(unlike[unlike > 0].index) == {"ca", "eca", "simam"}
    largest = means.abs().idxmax()
    found = [compare(differences[arm]) for arm in differences]
    below = sum(row.high < 0 for row in found)
    assert min(row.p for row in found) > ALPHA and all(row.low < 0 for row in found)
    return [
        f"{['No', 'One', 'Two', 'Three'][below]} intervals lie wholly below zero",
        f"None of the {len(means)} comparisons is significant",
        f"Holm's correction for all of them asks for {pairs_to_reach(len(means))} pairs",
        f"In {unlike.sum()} of the {differences.size} pairs",
        f"the {means[largest]:.2f} points of `{largest}`",
    ]


def phrases_of_reproduction():
    own = RUNS[RUNS["schedule"] == "cifar"]
    records = [read_record(RESULTS / "metrics" / record_name(run))[0] for run in own["run"]]
    interruptions = sum(run.get("interruptions", 0) for run in records)
    base, lcm2 = trained("none"), trained("lcm2")
    paper_base, paper_lcm2 = (of_paper("resnet20", arm, "cifar10") for arm in ("none", "lcm2"))
    family = len(families(CLAIMS)[2])
    return {
        "## What was run, and what was not": [
            f"takes {len(PAPER.drop_duplicates(ARM))} different runs. "
            f"Under the paper's schedule {len(own)} of them",
            f"They took {own['seconds'].sum() / 3600:.1f} hours in all, with "
            f"{interruptions} interruptions",
            f"reached {base:.2f} %, {base - paper_base:.2f} points above the paper's "
            f"{paper_base:.2f}; the other {BASELINES - 1} baselines",
            f"LCM2 reached {lcm2:.2f} %, {lcm2 - base:.2f} points above none (the paper: "
            f"{paper_lcm2 - paper_base:.2f})",
            f"a test needs {MINIMUM_PAIRS} pairs, and {pairs_to_reach(family)} after "
            f"correction for the {family} comparisons of Table 2",
        ]
    }


def phrases_of_top5():
    """What the paper's own top-5 says, in REPRODUCTION.md."""
    top5 = [
        f"{net} ({of_paper(model, 'cbam', 'mini_imagenet', 'top5'):.2f} against "
        f"{of_paper(model, 'lcm2', 'mini_imagenet', 'top5'):.2f})"
        for net, model in (("ResNet-50", "resnet50"), ("ResNeXt-50", "resnext50"))
    ]
    return {"in top-5 it is": [f"in top-5 it is above LCM on {' and '.join(top5)}"]}


@pytest.mark.parametrize(
    "file, end, phrases",
    [
        ("README.md", "## I want to", phrases_of_readme),
        ("REPRODUCTION.md", "<!-- results", phrases_of_reproduction),
        ("REPRODUCTION.md", '"LC module 2', phrases_of_top5),
    ],
)
def test_every_number_of_a_hand_written_sentence(file, end, phrases):
    """Each phrase is there with the numbers of the files in results, and no other number.

    New records make this fail: it says what has to be written by hand, and in which lines.
    """
    whole = (ROOT / file).read_text(encoding="utf-8")
    parts, problems = phrases(), []
    starts = [whole.index(begin) for begin in parts]
    ends = [*starts[1:], whole.index(end, starts[-1] + 30)]
    for start, stop, own in zip(starts, ends, parts.values(), strict=True):
        line = whole[:start].count("\n") + 1
        text = re.sub(r"(\d) runs of", r"\1 of", " ".join(whole[start:stop].split()))
        for phrase in own:
            if phrase not in text:
                problems.append(f"{file}:{line}: write: {phrase}")
            text = text.replace(phrase, "")
        # The phrases are gone: what is left speaks of a judged plan, or of a verdict by hand.
        for words in ("in progress", "not complete", "(is|are) (better|worse)"):
            if found := re.search(words, text):
                problems.append(f"{file}:{line}: no file of results says: {found[0]}")
        for name in NO_NUMBERS:
            text = re.sub(name, "", text)
        if re.search(r"\d", text):
            problems.append(f"{file}:{line}: a number that no file of results has: {text}")
    assert not problems, "\n".join(problems)
