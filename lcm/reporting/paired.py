"""The attentions of one network on one data set, each compared seed by seed with a baseline, and the notes below such tables."""

import pandas as pd

from lcm.reporting.protocol import ATTENTIONS, DATA_TITLE, in_order
from lcm.reporting.render import (
    DASH,
    Table,
    accuracy,
    elapsed,
    interval,
    mean_and_deviation,
    p_value,
    rounded,
    scaled,
    signed,
)
from lcm.reporting.statistics import compare, holm, pairs_to_reach, verdict

ENVIRONMENT = {
    "commit": "commit",
    "torch": "version of torch",
    "device": "device",
    "compile": "use of `compile=true`",
}
METHOD = (
    "Test accuracy of the last epoch, mean ± sample standard deviation (number of seeds). Differences are paired: the same seed "
    "has the same initialisation, image order and augmentation in both arms. 95 % BCa bootstrap interval of the mean "
    "difference, too narrow where seeds are few (`results/power.md`); P(better): share of seeds on which the attention is above "
    "{against}; p: exact two-sided sign-flip test; Holm's correction over the attentions of one network on one data set. "
    "Parameters and MACs are those of the trained network."
)


def measured(arm, metric="top1"):
    """What an arm (its runs) has reached, as columns of a CSV file."""
    mean, deviation = mean_and_deviation(arm[f"test_{metric}"])
    best = mean_and_deviation(arm["best_test_top1"])[0] if metric == "top1" else None
    seeds = " ".join(map(str, arm["seed"]))
    return {
        "mean": mean,
        "deviation": deviation,
        "n": len(arm),
        "best_epoch_on_test": best,
        "seeds": seeds,
    }


def paired(a, b):
    """One row for each seed that both arms have on the same data files: `difference`, and the environment of both runs."""
    facts = ["seed", "data_fingerprint", "test_top1", *ENVIRONMENT]
    pairs = a[facts].merge(b[facts], on=["seed", "data_fingerprint"], suffixes=("_a", "_b"))
    return pairs.assign(difference=pairs["test_top1_a"] - pairs["test_top1_b"])


def row_and_record(names, arm, comparison, adjusted, command):
    """An arm (its runs) and its comparison as a row of text, and as columns of the CSV file.

    names: data, model, attention, schedule, precision. adjusted: Holm's p-value. command: the one that trains a missing arm.
    """
    params, macs = (arm[key].iloc[0] if len(arm) else None for key in ("params", "macs"))
    word = verdict(comparison, adjusted) if comparison.n else None
    row = [
        DATA_TITLE.get(names["data"], names["data"]),
        names["model"],
        names["attention"],
        scaled(params, 6, 3),
    ]
    row += [
        scaled(macs, 9, 4),
        accuracy(arm["test_top1"]),
        signed(comparison.mean),
        interval(comparison),
    ]
    row += [rounded(comparison.wins, 2), p_value(comparison.p), p_value(adjusted), word or DASH]
    record = names | {"params": params, "macs": macs} | measured(arm)
    record |= {"pairs": comparison.n, "difference": comparison.mean, "wins": comparison.wins}
    record |= {"differences": comparison.differences, "difference_deviation": comparison.deviation}
    record |= {
        "low": comparison.low,
        "high": comparison.high,
        "p": comparison.p,
        "p_holm": adjusted,
    }
    return row, record | {"verdict": word, "command": command}


def compare_groups(groups, selection, protocol, baseline="none"):
    """The Table, still without name and title, that compares every arm of each group with the group's `baseline`.

    groups: {(data, model): {attention: runs}}. selection: all their runs, and those left out.
    """
    rows, records, short, pairs = [], [], [], []
    for (data, model), arms in groups.items():
        found = {
            name: paired(arm if name != baseline else arm[:0], arms[baseline])
            for name, arm in arms.items()
        }
        compared = {
            name: compare(pairs_of_arm["difference"]) for name, pairs_of_arm in found.items()
        }
        others = [name for name in arms if name != baseline]
        adjusted = dict(zip(others, holm([compared[name].p for name in others]), strict=True))
        needed = pairs_to_reach(len(others))
        short += (
            [f"{model} on {data}: {needed}"]
            if any(0 < c.n < needed for c in compared.values())
            else []
        )
        for attention, arm in arms.items():
            names = {"data": data, "model": model, "attention": attention}
            names |= {"schedule": protocol.schedule_of(data), "precision": protocol.precision}
            command = (
                ""
                if len(arm)
                else protocol.command(f"data={data}", f"model={model}", f"attention={attention}")
            )
            row, record = row_and_record(
                names, arm, compared[attention], adjusted.get(attention), command
            )
            rows.append(row)
            records.append(record)
        pairs += found.values()
    notes = [METHOD.format(against=baseline)]
    if short:
        notes.append(
            "Pairs that the test needs before any corrected p-value can reach 0.05: "
            + "; ".join(short)
            + "."
        )
    notes += run_notes(*selection) + pair_notes(pairs)
    missing = tuple(record["command"] for record in records if record["command"])
    records = pd.DataFrame(records, dtype=object)
    header = [
        "Data",
        "Network",
        "Attention",
        "Para (M)",
        "MACs (G)",
        "Test top-1 (%)",
        f"minus {baseline}",
    ]
    header += ["95 % interval", "P(better)", "p", "p (Holm)", f"better than {baseline}?"]
    return Table("", "", header, rows, notes, records, missing, labels=3)


def comparison_table(selection, protocol):
    """Every attention against none, paired by seed, for each data set and network that a protocol has runs of.

    The paper's attentions without runs have a row too, but not under its own schedule: there its tables say what is missing.
    """
    shown = ("none",) if protocol.schedule is None else ATTENTIONS
    groups = {
        group: {
            name: runs[runs["attention"] == name] for name in in_order([*runs["attention"], *shown])
        }
        for group, runs in selection.groups().items()
    }
    name, title = f"comparison{protocol.suffix}", f"Every attention against none: {protocol.words}"
    warning = f"Not the paper's schedule: runs with {protocol.words}." if protocol.schedule else ""
    return compare_groups(groups, selection, protocol)._replace(
        name=name, title=title, warning=warning
    )


def pair_notes(pairs):
    """How many pairs have two runs of different environments, as a list of at most one note. `pairs`: a list of DataFrames."""
    if not pairs:
        return []
    pairs = pd.concat(pairs)
    counts = {
        words: (pairs[f"{key}_a"] != pairs[f"{key}_b"]).sum() for key, words in ENVIRONMENT.items()
    }
    parts = [f"{count} in the {words}" for words, count in counts.items() if count]
    note = f"Pairs whose two runs differ in more than the attention, of {len(pairs)}: {', '.join(parts)}."
    return [note] if parts else []


def run_notes(used, failed, duplicates):
    """The notes on the runs behind a table (hours, devices, deviating settings), and on those that were left out of it."""
    notes, used = [], used.drop_duplicates("run")
    if len(used):
        devices = "; ".join(sorted(set(used["device"].replace("", "an unknown device"))))
        notes.append(f"Runs: {len(used)}, {elapsed(used['seconds'].sum())} in all, on {devices}.")
    unverified = (~used["data_verified"]).sum()
    counts = {
        "from a checkout with uncommitted changes.": used["dirty"].sum(),
        "with `compile=true`: the same arithmetic, rounded in another order.": used[
            "compile"
        ].sum(),
        "with `data.verify=false`: their images were not compared with the official ones.": unverified,
    }
    for source, count in used["data_cache"].replace("", pd.NA).value_counts().sort_index().items():
        side = f"a short side of {source} pixels" if source.isdigit() else source
        pixels = (
            "the files' own pixels (`data.cache=false`)"
            if source == "files"
            else f"images cached at {side}"
        )
        counts[f"cut their training regions from {pixels}."] = count
    notes += [f"{count} of them {words}" for words, count in counts.items() if count]
    for data, runs in used.groupby("data"):
        files, lengths = runs["data_fingerprint"].nunique(), sorted(set(runs["epochs"].dropna()))
        if files > 1:
            notes.append(
                f"**The runs saw different files of {data}**: {files} fingerprints in `runs.csv`."
            )
        if len(lengths) > 1:
            notes.append(
                f"**The runs on {data} have different lengths**: {', '.join(map(str, lengths))} epochs."
            )
    if len(failed):
        named = "; ".join(
            f"`{run.run}` ({run.message or 'no message'})" for run in failed.itertuples()
        )
        notes.append(f"Failed, without a number: {named}.")
    if len(duplicates):
        named = "; ".join(f"`{run}`" for run in duplicates["run"])
        notes.append(f"A second run of the same seed, left out: {named}.")
    return notes
