"""Tables as Markdown, CSV and LaTeX: the paper's five, its numbers beside ours, and every attention against none.

A cell takes finished runs of its row (network, attention, data) with the protocol's schedule and precision and without
deviations, one a seed, and shows the last epoch's test accuracy: mean, sample standard deviation (n - 1), number of seeds.
Where nothing was run it has a dash, and the command that fills it stands below the table.
"""

import csv
import io
import re
import statistics
from collections import defaultdict
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import NamedTuple

from lcm.errors import UserError
from lcm.reporting.files import write
from lcm.reporting.statistics import compare, holm, pairs_to_reach, verdict

PAPER_SCHEDULE = {"cifar10": "cifar", "cifar100": "cifar", "mini_imagenet": "mini_imagenet"}
DATA_TITLE = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mini_imagenet": "mini-ImageNet", "digits": "digits"}
NETWORK_TITLE = {
    "densenet40": "DenseNet-40",
    "densenet64": "DenseNet-64",
    "densenet100": "DenseNet-100",
    "resnet20": "ResNet-20",
    "resnet32": "ResNet-32",
    "resnet50_cifar": "ResNet-50 (CIFAR)",
    "densenet121": "DenseNet-121",
    "resnet50": "ResNet-50",
    "resnext50": "ResNeXt-50 32x4d",
}
METRIC_TITLE = {"top1": "top-1", "top5": "top-5"}
ATTENTIONS = ("none", "se", "cbam", "nonlocal", "gc", "lcm1", "lcm2")
TITLES = {
    1: "Table 1. Test accuracy (%) on CIFAR-10/CIFAR-100 by DenseNet",
    2: "Table 2. Test accuracy (%) on CIFAR-10/CIFAR-100 by ResNet",
    3: "Table 3. Test accuracy (%) on different models on CIFAR-10",
    4: "Table 4. Test accuracy (%) on different models on CIFAR-100",
    5: "Table 5. Test accuracy (%) on different models on mini-ImageNet",
}
DASH = "–"


class Protocol(NamedTuple):
    """Which runs a table takes: `schedule=None` stands for the paper's own schedule of each data set."""

    schedule: str | None = None
    precision: str = "fp32"

    @property
    def suffix(self):
        """What the names of this protocol's files carry; nothing for the paper's schedule in fp32."""
        parts = [self.schedule, None if self.precision == "fp32" else self.precision]
        return "".join(f"-{part}" for part in parts if part)

    @property
    def words(self):
        schedule = f"schedule={self.schedule}" if self.schedule else "the paper's schedule"
        return f"{schedule}, precision={self.precision}"

    @property
    def overrides(self):
        """What a command line needs for a run of this protocol."""
        parts = [
            self.schedule and f"schedule={self.schedule}",
            self.precision != "fp32" and f"precision={self.precision}",
        ]
        return [part for part in parts if part]

    def takes(self, run):
        return (
            run.schedule == (self.schedule or PAPER_SCHEDULE.get(run.data))
            and run.precision == self.precision
            and not run.deviations
        )


def protocols(runs):
    """The paper's protocol, then every other one that finished runs without deviations follow, sorted."""
    found = set()
    for run in runs:
        if run.state == "finished" and not run.deviations:
            schedule = None if run.schedule == PAPER_SCHEDULE.get(run.data) else run.schedule
            found.add(Protocol(schedule, run.precision))
    return [Protocol(), *sorted(found - {Protocol()}, key=lambda p: (p.schedule or "", p.precision))]


class Selection(NamedTuple):
    """The runs of a protocol: {(data, model, attention): {seed: Run}}, and what was left out of it."""

    arms: dict
    failed: list
    doubles: list

    def arm(self, data, model, attention):
        return self.arms.get((data, model, attention), {})

    def groups(self):
        """{(data, model): {attention: {seed: Run}}}, networks and attentions in the paper's order."""
        groups = defaultdict(dict)
        places = {key: (key[0], _place(NETWORK_TITLE, key[1]), _place(ATTENTIONS, key[2])) for key in self.arms}
        for data, model, attention in sorted(places, key=places.get):
            groups[data, model][attention] = self.arms[data, model, attention]
        return groups


def select(runs, protocol):
    """The runs that a protocol takes; of two runs of one seed (compiled or not, say) the plain one, then the earlier one."""
    arms, failed, doubles = defaultdict(dict), [], []
    for run in sorted(runs, key=lambda r: (bool(r.compile), r.start or "", r.run)):
        if not protocol.takes(run):
            continue
        if run.state == "failed":
            failed.append(run)
            continue
        if run.state != "finished":
            continue
        arm = arms[run.data, run.model, run.attention]
        if run.seed in arm:
            doubles.append(run)
        else:
            arm[run.seed] = run
    return Selection(dict(arms), failed, doubles)


class Table(NamedTuple):
    """A table ready to be written: cells are text, the first `labels` of a row its names; a rule stands before `groups`."""

    name: str
    title: str
    notes: list
    header: list
    rows: list
    groups: list
    records: list  # the CSV file: one dict a cell
    missing: list  # the commands that fill its dashes
    warning: str = ""
    labels: int = 1

    @property
    def filled(self):
        return any(record.get("n") for record in self.records)


def rounded(number, places):
    """`number` as text, half rounded up as the paper does (23.1848 M is printed 23.185); a dash for None."""
    if number is None:
        return DASH
    return str(Decimal(str(number)).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP))


def signed(number, places=2):
    """+0.59, -0.07, 0.00; a dash for None."""
    if number is None:
        return DASH
    text = rounded(number, places)
    return text.lstrip("-") if float(text) == 0 else text if text.startswith("-") else f"+{text}"


def mean_and_deviation(values):
    """(mean, sample standard deviation) of a list; None for what it does not define."""
    return statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None


def accuracy(values):
    """`92.31 ± 0.12 (6)`: mean, standard deviation (a dash for one seed), number of seeds."""
    mean, deviation = mean_and_deviation(values)
    return DASH if mean is None else f"{rounded(mean, 2)} ± {rounded(deviation, 2)} ({len(values)})"


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
        (int(line["table"]), line["model"], line["attention"]): (
            int(line["params"]),
            float(line["gfloat"]),
            int(line["macs"]),
        )
        for line in lines
    }


def _place(order, name):
    """A sort key: names that `order` has come in its order, others after them by name."""
    return (list(order).index(name), "") if name in order else (len(order), name)


def _command(*overrides, seeds=()):
    seeds = sorted(seeds)
    multirun = ["-m"] if len(seeds) > 1 else []
    seed = [f"seed={','.join(map(str, seeds))}"] if seeds not in ([], [0]) else []
    return " ".join(["python train.py", *multirun, *overrides, *seed])


def paper_table(number, runs, protocol, paper, complexity):
    """Table `number` of the paper from the runs of a protocol."""
    lines = [line for line in paper if line["table"] == number]
    cells = list(dict.fromkeys((line["data"], line["metric"]) for line in lines))
    values = {(line["label"], line["data"], line["metric"]): line["value"] for line in lines}
    labels = {line["label"]: line for line in lines}  # in the paper's order
    selection = select(runs, protocol)

    def title(data, metric):
        return DATA_TITLE[data] if number < 5 else METRIC_TITLE[metric]

    header = ["Model", "Para (M) paper", "Para (M) ours", "GFloat paper", "GFloat ours", "MACs (G) ours"]
    for cell in cells:
        header += [f"{title(*cell)} paper", f"{title(*cell)} ours", "ours - paper"]
    rows, groups, records, missing, used, before = [], [], [], [], [], None
    for index, (label, line) in enumerate(labels.items()):
        model, attention = line["model"], line["attention"]
        if index and model != before:
            groups.append(index)
        before = model
        params, gfloat, macs = complexity.get((number, model, attention), (None, None, None))
        millions, billions = params and Decimal(params) / 10**6, macs and Decimal(macs) / 10**9
        cost = [line["params_m"], rounded(millions, 3), line["gflops"], rounded(gfloat, 3), rounded(billions, 3)]
        row = [label, *cost]
        for data, metric in cells:
            arm = selection.arm(data, model, attention)
            used += arm.values()
            ours = [getattr(run, f"test_{metric}") for _, run in sorted(arm.items())]
            mean, deviation = mean_and_deviation(ours)
            printed = values[label, data, metric]
            difference = None if mean is None else mean - printed
            row += [rounded(printed, 2), accuracy(ours), signed(difference)]
            command = ""
            if not ours:
                overrides = [f"experiment=table{number}", f"model={model}", f"attention={attention}"]
                command = _command(*overrides, f"data={data}", *protocol.overrides)
                missing.append(command)
            best = mean_and_deviation([run.best_test_top1 for run in arm.values()])[0] if metric == "top1" else None
            records.append(
                {
                    "table": number,
                    "label": label,
                    "model": model,
                    "attention": attention,
                    "data": data,
                    "metric": metric,
                    "schedule": protocol.schedule or PAPER_SCHEDULE[data],
                    "precision": protocol.precision,
                    "params_m_paper": line["params_m"],
                    "params": params,
                    "gfloat_paper": line["gflops"],
                    "gfloat": gfloat,
                    "macs": macs,
                    "paper": rounded(printed, 2),
                    "mean": mean,
                    "deviation": deviation,
                    "n": len(ours),
                    "difference": difference,
                    "best_epoch_on_test": best,
                    "seeds": " ".join(map(str, sorted(arm))),
                    "command": command,
                }
            )
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
    rows_here = {(data, line["model"], line["attention"]) for line in labels.values() for data, _ in cells}
    notes += _notes(used, [r for r in selection.failed if (r.data, r.model, r.attention) in rows_here], [
        r for r in selection.doubles if (r.data, r.model, r.attention) in rows_here
    ])  # fmt: skip
    title = TITLES[number] if protocol == Protocol() else f"{TITLES[number]}: {protocol.words}"
    warning = ""
    if protocol.schedule:
        warning = (
            f"NOT the paper's schedule: the columns `ours` hold runs with {protocol.words}. "
            "They are no reproduction of the paper's numbers beside them."
        )
    elif protocol.precision != "fp32":
        warning = f"The columns `ours` hold runs with precision={protocol.precision}; the paper's were in fp32, as far as it says."
    missing = list(dict.fromkeys(missing))
    return Table(f"table{number}{protocol.suffix}", title, notes, header, rows, groups, records, missing, warning)


def paired(a, b, metric="top1"):
    """{seed: difference} of two arms ({seed: Run}) over the seeds that both have on the same data files."""
    return {
        seed: getattr(a[seed], f"test_{metric}") - getattr(b[seed], f"test_{metric}")
        for seed in sorted(a.keys() & b.keys())
        if a[seed].data_fingerprint == b[seed].data_fingerprint
    }


def interval(comparison, places=2):
    """`[+0.12, +0.61]`, a dash where it is not defined."""
    if comparison.low is None:
        return DASH
    return f"[{signed(comparison.low, places)}, {signed(comparison.high, places)}]"


def p_value(p):
    """Three decimals; a dash for None."""
    return DASH if p is None else "<0.001" if p < 0.0005 else rounded(p, 3)


def comparison_table(runs, protocol):
    """Every attention against none, paired by seed, for each data set and network that a protocol has runs of.

    Holm's correction is over the attentions of one network on one data set. The digits' own table is called quickstart and
    has its rows before anything was run.
    """
    quickstart = protocol.schedule == "digits"
    selection = select(runs, protocol)
    pairs = sorted(
        {(data, model) for data, model, _ in selection.arms} | ({("digits", "resnet20")} if quickstart else set())
    )
    header = ["Data", "Network", "Attention", "Para (M)", "MACs (G)", "Test top-1 (%)", "minus none", "95 % interval"]
    header += ["P(better)", "p", "p (Holm)", "better than none?"]
    rows, groups, records, missing, used, short = [], [], [], [], [], []
    for data, model in sorted(pairs, key=lambda pair: (pair[0], _place(NETWORK_TITLE, pair[1]))):
        others = sorted({a for d, m, a in selection.arms if (d, m) == (data, model)} - set(ATTENTIONS))
        attentions = [*ATTENTIONS, *others]
        if protocol.schedule is None:  # rows that the paper has not are no gaps
            attentions = [a for a in attentions if a == "none" or selection.arm(data, model, a)]
        arms = {attention: selection.arm(data, model, attention) for attention in attentions}
        seeds = {seed for arm in arms.values() for seed in arm}
        comparisons = {a: compare(list(paired(arms[a], arms["none"]).values())) for a in attentions if a != "none"}
        tested = [a for a in comparisons if comparisons[a].n]
        adjusted = dict(zip(comparisons, holm([c.p for c in comparisons.values()]), strict=True))
        if tested and min(comparisons[a].n for a in tested) < pairs_to_reach(len(tested)):
            short.append(f"{model} on {data}: {pairs_to_reach(len(tested))}")
        groups.append(len(rows))
        for attention in attentions:
            arm, comparison, p = arms[attention], comparisons.get(attention), adjusted.get(attention)
            used += arm.values()
            first = next(iter(arm.values()), None)
            ours = [run.test_top1 for _, run in sorted(arm.items())]
            mean, deviation = mean_and_deviation(ours)
            compared = comparison is not None and comparison.n > 0
            word = verdict(comparison, p) if compared else ""
            rows.append(
                [
                    DATA_TITLE.get(data, data),
                    model,
                    attention,
                    rounded(first and Decimal(first.params) / 10**6, 3),
                    rounded(first and Decimal(first.macs) / 10**9, 4),
                    accuracy(ours),
                    *(
                        [
                            signed(comparison.mean),
                            interval(comparison),
                            rounded(comparison.wins, 2),
                            p_value(comparison.p),
                        ]
                        if compared
                        else [DASH] * 4
                    ),
                    p_value(p),
                    word or DASH,
                ]
            )
            command = ""
            if not ours:
                if quickstart and (data, model) == ("digits", "resnet20"):
                    command = _command("experiment=quickstart", f"attention={attention}")
                else:
                    own = [f"data={data}", f"model={model}", f"attention={attention}"]
                    command = _command(*own, *protocol.overrides, seeds=seeds)
                missing.append(command)
            records.append(
                {
                    "data": data,
                    "model": model,
                    "attention": attention,
                    "schedule": protocol.schedule or PAPER_SCHEDULE[data],
                    "precision": protocol.precision,
                    "params": first and first.params,
                    "macs": first and first.macs,
                    "mean": mean,
                    "deviation": deviation,
                    "n": len(ours),
                    "pairs": comparison.n if comparison else None,
                    "difference": comparison and comparison.mean,
                    "difference_deviation": comparison and comparison.deviation,
                    "low": comparison and comparison.low,
                    "high": comparison and comparison.high,
                    "wins": comparison and comparison.wins,
                    "p": comparison and comparison.p,
                    "p_holm": p,
                    "verdict": word,
                    "best_epoch_on_test": mean_and_deviation([run.best_test_top1 for run in arm.values()])[0],
                    "seeds": " ".join(map(str, sorted(arm))),
                    "command": command,
                }
            )
    notes = [
        "Test accuracy of the last epoch, mean ± sample standard deviation (number of seeds). Differences are paired: the same "
        "seed has the same first weights, image order and augmentation in both arms. 95 % BCa bootstrap interval of the mean "
        "difference; P(better): share of seeds on which the attention is above none; p: exact two-sided sign-flip test; Holm's "
        "correction over the attentions of one network on one data set. Parameters and MACs are those of the trained network."
    ]
    if short:
        notes.append("Pairs that the test needs before any corrected p-value can reach 0.05: " + "; ".join(short) + ".")
    notes += _notes(used, selection.failed, selection.doubles)
    warning = "" if protocol.schedule is None else f"Not the paper's schedule: runs with {protocol.words}."
    name = "quickstart" if protocol == Protocol("digits") else f"comparison{protocol.suffix}"
    title = f"Every attention against none: {protocol.words}"
    if quickstart:
        title = "Quickstart: ResNet-20 with each attention on scikit-learn's digits"
        warning = f"A check that everything works, not a result about the paper: runs with {protocol.words}."
    return Table(name, title, notes, header, rows, groups[1:], records, missing, warning, labels=3)


def _notes(used, failed, doubles):
    """What a reader must know about the runs behind a table."""
    notes = []
    used = list({run.run: run for run in used}.values())
    if used:
        hours = sum(run.seconds or 0 for run in used) / 3600
        devices = sorted({run.device or "an unknown device" for run in used})
        notes.append(f"Runs: {len(used)}, {hours:.1f} hours in all, on {'; '.join(devices)}.")
    prints = defaultdict(set)
    for run in used:
        prints[run.data].add(run.data_fingerprint)
    for data in sorted(data for data in prints if len(prints[data]) > 1):
        notes.append(f"**The runs saw different files of {data}**: {len(prints[data])} fingerprints in `runs.csv`.")
    if failed:
        notes.append(
            "Failed, without a number: " + "; ".join(f"`{r.run}` ({r.message or 'no message'})" for r in failed) + "."
        )
    if doubles:
        notes.append("A second run of the same seed, left out: " + "; ".join(f"`{run.run}`" for run in doubles) + ".")
    return notes


def markdown_rows(table):
    """The table proper in Markdown."""
    lines = [table.header, ["---"] * table.labels + ["---:"] * (len(table.header) - table.labels), *table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def missing_words(table):
    """What stands above the commands that fill a table's dashes."""
    named = any("seed=" in command for command in table.missing)
    return f"Not run yet: {len(table.missing)}, each with its command" + (
        "" if named else " (`seed='range(6)'` at its end for six seeds)"
    )


def markdown(table):
    parts = [f"# {table.title}"]
    if table.warning:
        parts.append(f"> **{table.warning}**")
    parts += [markdown_rows(table), *table.notes]
    if table.missing:
        parts.append(f"{missing_words(table)}:")
        parts.append("\n".join(["```", *table.missing, "```"]))
    return "\n\n".join(parts) + "\n"


_LATEX = str.maketrans(
    {"&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_", "±": r"$\pm$", DASH: "--", "Δ": r"$\Delta$", "×": r"$\times$"}
)


def _latex_cell(text):
    text = text.replace("`", "").replace("**", "")
    if text[:1] in "+-" and text[1:2].isdigit():
        return f"${text}$"
    return text.replace("[-", "[$-$").replace(" -", " $-$" if text.startswith("[") else " -").translate(_LATEX)


def latex(table):
    """A booktabs table for \\input, the notes as comments."""
    warning = f" \\textbf{{{_latex_cell(table.warning)}}}" if table.warning else ""
    lines = [
        *(f"% {note}" for note in table.notes),
        r"\begin{table}",
        rf"\caption{{{_latex_cell(re.sub(r'^Table .. ', '', table.title))}.{warning}}}",
        rf"\begin{{tabular}}{{{'l' * table.labels}{'r' * (len(table.header) - table.labels)}}}",
        r"\toprule",
        " & ".join(map(_latex_cell, table.header)) + r" \\",
        r"\midrule",
    ]
    for index, row in enumerate(table.rows):
        if index in table.groups:
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_latex_cell, row)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def csv_text(table):
    """One line a cell of the table, numbers with four decimals."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table.records[0]), lineterminator="\n")
    writer.writeheader()
    for record in table.records:
        writer.writerow(
            {key: f"{v:.4f}" if isinstance(v, float) and key != "gfloat" else v for key, v in record.items()}
        )
    return out.getvalue()


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


def write_tables(tables, results):
    """Write each table as .md, .csv and .tex; returns the files."""
    files = []
    for table in tables:
        for suffix, text in (("md", markdown(table)), ("csv", csv_text(table)), ("tex", latex(table))):
            files.append(Path(results) / f"{table.name}.{suffix}")
            write(files[-1], text)
    return files


def counts(runs):
    """What was run, as a Markdown table: finished runs by data, schedule and precision, their networks, hours and devices."""
    groups = defaultdict(list)
    for run in runs:
        groups[DATA_TITLE.get(run.data, run.data), run.schedule, run.precision].append(run)
    lines = [
        "| data | schedule | precision | finished | failed | networks | hours | on |",
        "| --- " * 3 + "| ---: " * 2 + "| --- | ---: | --- |",
    ]
    for (data, schedule, precision), members in sorted(groups.items()):
        finished = [run for run in members if run.state == "finished"]
        networks = ", ".join(sorted({run.model for run in members}))
        hours = sum(run.seconds or 0 for run in members) / 3600
        devices = "; ".join(sorted({run.device or "unknown" for run in members}))
        cells = [
            data,
            schedule,
            precision,
            str(len(finished)),
            str(len(members) - len(finished)),
            networks,
            f"{hours:.1f}",
            devices,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) if groups else "Nothing was run yet."
