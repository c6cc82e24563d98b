"""Arms of one network on one data set compared seed by seed with one of them, and what a reader must know about runs."""

from typing import NamedTuple

import pandas as pd

from lcm.reporting.protocol import DATA_TITLE
from lcm.reporting.render import DASH, Table, accuracy, interval, mean_and_deviation, p_value, rounded, scaled, signed
from lcm.reporting.statistics import Comparison, compare, holm, pairs_to_reach, verdict

FAMILY = "attentions of one network on one data set"
ENVIRONMENT = {"commit": "commit", "torch": "version of torch", "device": "device"}
WORDS = (
    "Test accuracy of the last epoch, mean ± sample standard deviation (number of seeds). Differences are paired: the same seed "
    "has the same initialisation, image order and augmentation in both arms. 95 % BCa bootstrap interval of the mean "
    "difference, too narrow where seeds are few (`results/power.md`); P(better): share of seeds on which the attention is above "
    "{against}; p: exact two-sided sign-flip test; Holm's correction over the {family}. Parameters and MACs are those of the "
    "trained network."
)


def measured(arm, metric="top1"):
    """What an arm (its runs) has reached, as columns of a CSV file."""
    mean, deviation = mean_and_deviation(arm[f"test_{metric}"])
    best = mean_and_deviation(arm["best_test_top1"])[0] if metric == "top1" else None
    seeds = " ".join(map(str, arm["seed"]))
    return {"mean": mean, "deviation": deviation, "n": len(arm), "best_epoch_on_test": best, "seeds": seeds}


def paired(a, b, metric="top1"):
    """One row for each seed that both arms have on the same data files: `difference`, and of both runs what they ran on."""
    facts = ["seed", "data_fingerprint", f"test_{metric}", *ENVIRONMENT]
    pairs = a[facts].merge(b[facts], on=["seed", "data_fingerprint"], suffixes=("_a", "_b"))
    return pairs.assign(difference=pairs[f"test_{metric}_a"] - pairs[f"test_{metric}_b"])


class Compared(NamedTuple):
    """One arm beside the one it is compared with (whose own `comparison` has no pairs, and whose `verdict` is None)."""

    runs: pd.DataFrame
    pairs: pd.DataFrame
    comparison: Comparison
    p_holm: float | None
    verdict: str | None


def against(arms, baseline="none"):
    """{attention: Compared} for `arms` ({attention: runs}); Holm's correction over all arms, those without runs too."""
    pairs = {a: paired(arm, arms[baseline]) for a, arm in arms.items() if a != baseline}
    compared = {a: compare(found["difference"]) for a, found in pairs.items()}
    adjusted = dict(zip(compared, holm([comparison.p for comparison in compared.values()]), strict=True))
    results = {}
    for name, arm in arms.items():
        comparison, p = compared.get(name, Comparison(0)), adjusted.get(name)
        word = verdict(comparison, p) if comparison.n else None
        results[name] = Compared(arm, pairs.get(name, paired(arm[:0], arm)), comparison, p, word)
    return results


def header(baseline="none"):
    """The columns of a comparison's table; the first three are its labels."""
    columns = ["Data", "Network", "Attention", "Para (M)", "MACs (G)", "Test top-1 (%)", f"minus {baseline}"]
    return [*columns, "95 % interval", "P(better)", "p", "p (Holm)", f"better than {baseline}?"]


def row_and_record(names, compared, command=""):
    """A line of a comparison's table as text, and as columns of its CSV file. `names`: data, model, attention, schedule, ..."""
    arm, _, comparison, adjusted, word = compared
    params, macs = (arm[key].iloc[0] if len(arm) else None for key in ("params", "macs"))
    row = [DATA_TITLE.get(names["data"], names["data"]), names["model"], names["attention"], scaled(params, 6, 3)]
    row += [scaled(macs, 9, 4), accuracy(arm["test_top1"]), signed(comparison.mean), interval(comparison)]
    row += [rounded(comparison.wins, 2), p_value(comparison.p), p_value(adjusted), word or DASH]
    record = names | {"params": params, "macs": macs} | measured(arm)
    record |= {"pairs": comparison.n, "difference": comparison.mean, "wins": comparison.wins}
    record |= {"differences": comparison.differences, "difference_deviation": comparison.deviation}
    record |= {"low": comparison.low, "high": comparison.high, "p": comparison.p, "p_holm": adjusted}
    return row, record | {"verdict": word, "command": command}


def compare_groups(groups, selection, protocol, baseline="none", family=FAMILY, command=lambda *arm: ""):
    """The Table, still without a name and a title, of groups of arms, every arm against the group's `baseline`.

    groups: {(data, model): {attention: runs}}. selection: the runs of them all, and what was left out. command: what
    command(data, model, attention, seeds) says stands below the table for an arm without runs.
    """
    rows, records, starts, short, pairs = [], [], [], [], []
    for (data, model), arms in groups.items():
        starts.append(len(rows))
        compared, seeds = against(arms, baseline), {seed for arm in arms.values() for seed in arm["seed"]}
        needed, counts = pairs_to_reach(len(compared) - 1), [one.comparison.n for one in compared.values()]
        short += [f"{model} on {data}: {needed}"] if any(0 < count < needed for count in counts) else []
        for attention, one in compared.items():
            facts = {"data": data, "model": model, "attention": attention}
            facts |= {"schedule": protocol.schedule_of(data), "precision": protocol.precision}
            row, record = row_and_record(facts, one, "" if len(one.runs) else command(data, model, attention, seeds))
            rows.append(row)
            records.append(record)
            pairs.append(one.pairs)
    notes = [WORDS.format(against=baseline, family=family)]
    if short:
        notes.append("Pairs that the test needs before any corrected p-value can reach 0.05: " + "; ".join(short) + ".")
    notes += run_notes(*selection) + pair_notes(pairs)
    missing = tuple(record["command"] for record in records if record["command"])
    records = pd.DataFrame(records, dtype=object)
    return Table("", "", header(baseline), rows, notes, records, tuple(starts[1:]), missing, labels=3)


def pair_notes(pairs):
    """In what the two runs of a pair differ beside the attention, over a list of DataFrames of pairs."""
    pairs, parts = pd.concat(pairs) if pairs else (), []
    for key, words in ENVIRONMENT.items() if len(pairs) else ():
        if count := (pairs[f"{key}_a"] != pairs[f"{key}_b"]).sum():
            parts.append(f"{count} in the {words}")
    return (
        [f"Pairs whose two runs differ in more than the attention, of {len(pairs)}: {', '.join(parts)}."]
        if parts
        else []
    )


def run_notes(used, failed, duplicates):
    """What a reader must know about the runs behind a table, and about those that were left out of it."""
    notes, used = [], used.drop_duplicates("run")
    if len(used):
        devices = "; ".join(sorted(set(used["device"].replace("", "an unknown device"))))
        notes.append(f"Runs: {len(used)}, {used['seconds'].sum() / 3600:.1f} hours in all, on {devices}.")
    counts = {
        "from a checkout with uncommitted changes.": used["dirty"].sum(),
        "with `compile=true`: the same arithmetic, rounded in another order.": used["compile"].sum(),
        "with `data.verify=false`: their images were not compared with the official ones.": (
            ~used["data_verified"]
        ).sum(),
    }
    for source, count in used["data_cache"].replace("", pd.NA).value_counts().sort_index().items():
        side = f"a short side of {source} pixels" if source.isdigit() else source
        pixels = "the files' own pixels (`data.cache=false`)" if source == "files" else f"images cached at {side}"
        counts[f"cut their training regions from {pixels}."] = count
    notes += [f"{count} of them {words}" for words, count in counts.items() if count]
    for data, runs in used.groupby("data"):
        files, lengths = runs["data_fingerprint"].nunique(), sorted(set(runs["epochs"].dropna()))
        if files > 1:
            notes.append(f"**The runs saw different files of {data}**: {files} fingerprints in `runs.csv`.")
        if len(lengths) > 1:
            notes.append(f"**The runs on {data} have different lengths**: {', '.join(map(str, lengths))} epochs.")
    if len(failed):
        named = "; ".join(f"`{run.run}` ({run.message or 'no message'})" for run in failed.itertuples())
        notes.append(f"Failed, without a number: {named}.")
    if len(duplicates):
        named = "; ".join(f"`{run}`" for run in duplicates["run"])
        notes.append(f"A second run of the same seed, left out: {named}.")
    return notes
