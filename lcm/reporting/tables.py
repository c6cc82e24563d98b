"""The tables: the paper's five, its numbers beside ours, and every attention against none.

A cell takes finished runs of its row (network, attention, data) with the protocol's schedule and precision and without
deviations, one a seed, and shows the last epoch's test accuracy: mean, sample standard deviation (n - 1), number of seeds.
Where nothing was run it has a dash, and the command that fills it stands below the table.
"""

import csv
from collections import defaultdict
from decimal import Decimal
from pathlib import Path

from lcm.errors import UserError
from lcm.reporting.render import DASH, Table, accuracy, interval, mean_and_deviation, p_value, rounded, signed
from lcm.reporting.selection import (
    ATTENTIONS,
    DATA_TITLE,
    METRIC_TITLE,
    Protocol,
    network_place,
    paired,
    select,
)
from lcm.reporting.statistics import Comparison, compare, holm, pairs_to_reach, verdict

TITLES = {
    1: "Table 1. Test accuracy (%) on CIFAR-10/CIFAR-100 by DenseNet",
    2: "Table 2. Test accuracy (%) on CIFAR-10/CIFAR-100 by ResNet",
    3: "Table 3. Test accuracy (%) on different models on CIFAR-10",
    4: "Table 4. Test accuracy (%) on different models on CIFAR-100",
    5: "Table 5. Test accuracy (%) on different models on mini-ImageNet",
}


def read_csv(file, optional=False):
    """The lines of a CSV file as dicts. Raises UserError where it is missing, unless it is optional."""
    try:
        with open(file, encoding="utf-8", newline="") as stream:
            return list(csv.DictReader(stream))
    except FileNotFoundError:
        if optional:
            return []
        raise UserError(f"{file} is missing: it belongs to the repository; bring it back with git checkout") from None


def read_paper(results):
    """paper.csv as dicts with `table` an int and `value` a float; the order is the paper's."""
    lines = read_csv(Path(results) / "paper.csv")
    return [line | {"table": int(line["table"]), "value": float(line["value"])} for line in lines]


def read_complexity(results):
    """{(table, model, attention): (params, gfloat, macs)} of complexity.csv; {} where it has not been made."""
    lines = read_csv(Path(results) / "complexity.csv", optional=True)
    return {
        (int(r["table"]), r["model"], r["attention"]): (int(r["params"]), float(r["gfloat"]), int(r["macs"]))
        for r in lines
    }


def _command(*overrides, seeds=()):
    """The command line of a run, or of one for each seed."""
    seeds = sorted(seeds)
    multirun = ["-m"] if len(seeds) > 1 else []
    seed = [f"seed={','.join(map(str, seeds))}"] if seeds not in ([], [0]) else []
    return " ".join(["python train.py", *multirun, *overrides, *seed])


def _scaled(count, power):
    """An exact count in units of 10**power, None for None."""
    return None if count is None else Decimal(count) / 10**power


def _values(arm, metric="top1"):
    return [getattr(run, f"test_{metric}") for run in arm.values()]


def _measured(arm, metric="top1"):
    """What an arm ({seed: Run}) has reached, as columns of a CSV file."""
    mean, deviation = mean_and_deviation(_values(arm, metric))
    best = mean_and_deviation([run.best_test_top1 for run in arm.values()])[0] if metric == "top1" else None
    seeds = " ".join(map(str, arm))
    return {"mean": mean, "deviation": deviation, "n": len(arm), "best_epoch_on_test": best, "seeds": seeds}


def paper_table(number, runs, protocol, paper, complexity):
    """Table `number` of the paper from the runs of a protocol."""
    lines = [line for line in paper if line["table"] == number]
    columns = list(dict.fromkeys((line["data"], line["metric"]) for line in lines))
    printed = {(line["label"], line["data"], line["metric"]): line["value"] for line in lines}
    labels = {line["label"]: line for line in lines}  # in the paper's order
    selection = select(runs, protocol)

    header = ["Model", "Para (M) paper", "Para (M) ours", "GFloat paper", "GFloat ours", "MACs (G) ours"]
    for data, metric in columns:
        title = DATA_TITLE[data] if number < 5 else METRIC_TITLE[metric]
        header += [f"{title} paper", f"{title} ours", "ours - paper"]

    rows, groups, records, missing, used = [], [], [], {}, []
    for label, line in labels.items():
        model, attention = line["model"], line["attention"]
        if records and records[-1]["model"] != model:
            groups.append(len(rows))
        params, gfloat, macs = complexity.get((number, model, attention), (None, None, None))
        row = [label, line["params_m"], rounded(_scaled(params, 6), 3)]
        row += [line["gflops"], rounded(gfloat, 3), rounded(_scaled(macs, 9), 3)]
        for data, metric in columns:
            arm = selection.arm(data, model, attention)
            used += arm.values()
            overrides = [f"experiment=table{number}", f"model={model}", f"attention={attention}", f"data={data}"]
            command = "" if arm else _command(*overrides, *protocol.overrides)
            missing |= {command: None} if command else {}
            value, measured = printed[label, data, metric], _measured(arm, metric)
            difference = None if measured["mean"] is None else measured["mean"] - value
            names = {"table": number, "label": label, "model": model, "attention": attention, "data": data}
            names |= {"metric": metric, "schedule": protocol.schedule_of(data), "precision": protocol.precision}
            counts = {"params_m_paper": line["params_m"], "params": params, "gfloat_paper": line["gflops"]}
            counts |= {"gfloat": gfloat, "macs": macs, "paper": rounded(value, 2)}
            records.append(names | counts | measured | {"difference": difference, "command": command})
            row += [rounded(value, 2), accuracy(_values(arm, metric)), signed(difference)]
        rows.append(row)

    notes = [
        "Ours: test accuracy of the last epoch, mean ± sample standard deviation (number of seeds). The paper does not say "
        "how many runs its numbers stand for, nor whether they are the last or the best epoch. GFloat is counted by the "
        "paper's counter, MACs are the true multiply-accumulates of one image (matrix products included)."
    ]
    if number == 4:
        notes.append("The paper heads this table's column CIFAR-10; its caption and its text say CIFAR-100.")
    if number in (1, 2, 4):
        notes.append(
            "Parameters are those of the network with 10 classes, in the CIFAR-100 columns too, as in the paper."
        )
    if not complexity:
        notes.append("Our counts are missing: `python scripts/complexity.py --csv results/complexity.csv`.")
    arms = {(record["data"], record["model"], record["attention"]) for record in records}
    notes += _notes(used, selection, arms)
    title = TITLES[number] if protocol == Protocol() else f"{TITLES[number]}: {protocol.words}"
    warning = ""
    if protocol.schedule:
        warning = (
            f"NOT the paper's schedule: the columns `ours` hold runs with {protocol.words}. "
            "They are no reproduction of the paper's numbers beside them."
        )
    elif protocol.precision != "fp32":
        warning = f"The columns `ours` hold runs with precision={protocol.precision}; the paper's are taken for fp32."
    return Table(f"table{number}{protocol.suffix}", title, notes, header, rows, groups, records, list(missing), warning)


def against_none(arms):
    """{attention: (Comparison, adjusted p, verdict)} of each arm but `none` against it; Holm's correction over them.

    `arms`: {attention: {seed: Run}} of one network on one data set; the verdict is on the statement "better than none".
    """
    compared = {a: compare(list(paired(arm, arms["none"]).values())) for a, arm in arms.items() if a != "none"}
    adjusted = holm([comparison.p for comparison in compared.values()])
    return {
        attention: (comparison, p, verdict(comparison, p) if comparison.n else None)
        for (attention, comparison), p in zip(compared.items(), adjusted, strict=True)
    }


def comparison_table(runs, protocol):
    """Every attention against none, paired by seed, for each data set and network that a protocol has runs of.

    The digits' own table is called quickstart and has its rows before anything was run.
    """
    selection = select(runs, protocol)
    groups_of_runs = selection.groups()
    quickstart = protocol.schedule == "digits"
    if quickstart:
        groups_of_runs.setdefault(("digits", "resnet20"), {})
    header = ["Data", "Network", "Attention", "Para (M)", "MACs (G)", "Test top-1 (%)", "minus none", "95 % interval"]
    header += ["P(better)", "p", "p (Holm)", "better than none?"]
    rows, groups, records, missing, used, short = [], [], [], [], [], []
    for data, model in sorted(groups_of_runs, key=lambda group: (group[0], network_place(group[1]))):
        found = groups_of_runs[data, model]
        # For the paper's own schedule, rows that the paper has not are no gaps.
        expected = ("none",) if protocol.schedule is None else ATTENTIONS
        arms = {attention: found.get(attention, {}) for attention in ATTENTIONS if attention in {*expected, *found}}
        arms |= {attention: arm for attention, arm in found.items() if attention not in arms}
        results = against_none(arms)
        pairs = [comparison.n for comparison, _, _ in results.values() if comparison.n]
        if pairs and min(pairs) < pairs_to_reach(len(pairs)):
            short.append(f"{model} on {data}: {pairs_to_reach(len(pairs))}")
        seeds = {seed for arm in arms.values() for seed in arm}
        groups.append(len(rows))
        for attention, arm in arms.items():
            used += arm.values()
            comparison, adjusted, word = results.get(attention, (Comparison(0), None, None))
            names = {"data": data, "model": model, "attention": attention}
            names |= {"schedule": protocol.schedule_of(data), "precision": protocol.precision}
            run = next(iter(arm.values()), None)
            names |= {"params": run and run.params, "macs": run and run.macs}
            if arm:
                command = ""
            elif quickstart and (data, model) == ("digits", "resnet20"):
                command = _command("experiment=quickstart", f"attention={attention}")
            else:
                overrides = [f"data={data}", f"model={model}", f"attention={attention}"]
                command = _command(*overrides, *protocol.overrides, seeds=seeds)
            missing += [command] if command else []
            paired_facts = {"pairs": comparison.n, "difference": comparison.mean, "wins": comparison.wins}
            paired_facts["differences"] = comparison.differences
            paired_facts |= {
                "difference_deviation": comparison.deviation,
                "low": comparison.low,
                "high": comparison.high,
            }
            paired_facts |= {"p": comparison.p, "p_holm": adjusted, "verdict": word, "command": command}
            records.append(names | _measured(arm) | paired_facts)
            row = [DATA_TITLE.get(data, data), model, attention]
            row += [
                rounded(_scaled(names["params"], 6), 3),
                rounded(_scaled(names["macs"], 9), 4),
                accuracy(_values(arm)),
            ]
            row += [signed(comparison.mean), interval(comparison), rounded(comparison.wins, 2)]
            rows.append([*row, p_value(comparison.p), p_value(adjusted), word or DASH])

    notes = [
        "Test accuracy of the last epoch, mean ± sample standard deviation (number of seeds). Differences are paired:"
        " the same seed has the same first weights, image order and augmentation in both arms. 95 % BCa bootstrap "
        "interval of the mean difference, too narrow where seeds are few (`results/power.md`); P(better): share of "
        "seeds on which the attention is above none; p: exact two-sided sign-flip test; Holm's correction over the "
        "attentions of one network on one data set. Parameters and MACs are those of the trained network."
    ]
    if short:
        notes.append("Pairs that the test needs before any corrected p-value can reach 0.05: " + "; ".join(short) + ".")
    notes += _notes(used, selection, set(selection.arms) | {(r.data, r.model, r.attention) for r in selection.failed})
    title = f"Every attention against none: {protocol.words}"
    warning = f"Not the paper's schedule: runs with {protocol.words}." if protocol.schedule else ""
    if quickstart:
        title = "Quickstart: ResNet-20 with each attention on scikit-learn's digits"
        warning = f"A check that everything works, not a result about the paper: runs with {protocol.words}."
    name = "quickstart" if protocol == Protocol("digits") else f"comparison{protocol.suffix}"
    return Table(name, title, notes, header, rows, groups[1:], records, missing, warning, labels=3)


def _notes(used, selection, arms):
    """What a reader must know about the runs behind a table: `used`, and what of its `arms` was left out."""
    notes = []
    used = list({run.run: run for run in used}.values())
    if used:
        hours = sum(run.seconds or 0 for run in used) / 3600
        devices = sorted({run.device or "an unknown device" for run in used})
        notes.append(f"Runs: {len(used)}, {hours:.1f} hours in all, on {'; '.join(devices)}.")
    dirty = sum(bool(run.dirty) for run in used)
    if dirty:
        notes.append(f"{dirty} of them from a checkout with uncommitted changes.")
    compiled = sum(bool(run.compile) for run in used)
    if compiled:
        notes.append(f"{compiled} of them with `compile=true`: the same arithmetic, rounded in another order.")
    unverified = sum(run.data_verified is False for run in used)
    if unverified:
        notes.append(
            f"{unverified} of them with `data.verify=false`: their images were not compared with the official ones."
        )
    for data in sorted({run.data for run in used}):
        files = {run.data_fingerprint for run in used if run.data == data}
        if len(files) > 1:
            notes.append(f"**The runs saw different files of {data}**: {len(files)} fingerprints in `runs.csv`.")
        lengths = sorted({run.epochs for run in used if run.data == data})
        if len(lengths) > 1:
            notes.append(f"**The runs on {data} have different lengths**: {', '.join(map(str, lengths))} epochs.")
    failed = [run for run in selection.failed if (run.data, run.model, run.attention) in arms]
    if failed:
        named = "; ".join(f"`{run.run}` ({run.message or 'no message'})" for run in failed)
        notes.append(f"Failed, without a number: {named}.")
    doubles = [run for run in selection.doubles if (run.data, run.model, run.attention) in arms]
    if doubles:
        named = "; ".join(f"`{run.run}`" for run in doubles)
        notes.append(f"A second run of the same seed, left out: {named}.")
    return notes


def build(runs, protocol, results):
    """A protocol's tables: the paper's five (of other protocols than the paper's, those with a number), and the comparison
    of every attention with none where there are runs to compare; for the digits, the quickstart's table alone."""
    comparison = comparison_table(runs, protocol)
    if protocol.schedule == "digits":
        return [comparison]
    paper, complexity = read_paper(results), read_complexity(results)
    tables = [paper_table(number, runs, protocol, paper, complexity) for number in TITLES]
    tables = [table for table in tables if protocol == Protocol() or table.filled]
    return tables + ([comparison] if comparison.filled else [])


def counts(runs):
    """What was run: by data, schedule and precision, with networks, hours and devices."""
    groups = defaultdict(list)
    for run in runs:
        groups[DATA_TITLE.get(run.data, run.data), run.schedule, run.precision].append(run)
    header = ["data", "schedule", "precision", "networks", "on", "finished", "failed", "hours"]
    rows = []
    for names, members in sorted(groups.items()):
        finished = sum(run.state == "finished" for run in members)
        networks = ", ".join(sorted({run.model for run in members}, key=network_place))
        devices = "; ".join(sorted({run.device or "unknown" for run in members}))
        hours = sum(run.seconds or 0 for run in members) / 3600
        rows.append([*names, networks, devices, f"{finished}", f"{len(members) - finished}", f"{hours:.1f}"])
    return Table("counts", "What was run", [], header, rows, [], [], [], labels=5)
