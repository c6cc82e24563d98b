"""Arms compared seed by seed: their pairs, the family that corrects each p-value, the table."""

from typing import NamedTuple

import pandas as pd

from lcm.reporting.protocol import DATA_TITLE
from lcm.reporting.render import (
    DASH,
    Table,
    accuracy,
    elapsed,
    interval,
    mean_and_deviation,
    p_value,
    plural,
    rounded,
    scaled,
    signed,
)
from lcm.reporting.statistics import (
    INCONCLUSIVE,
    NOT_TESTED,
    Comparison,
    compare,
    holm,
    not_excluded,
    pairs_to_reach,
    prediction_interval,
    verdict,
)

ENVIRONMENT = {
    "commit": "commit",
    "torch": "version of torch",
    "device": "device",
    "compile": "use of `compile=true`",
}
# what the two runs of a pair have in common
SHARED = ["seed", "data_fingerprint", "data_cache", "own_model"]
NO_PAIRS = pd.DataFrame(
    columns=["seed", "difference", "lost", *(f"{k}_{arm}" for k in ENVIRONMENT for arm in "ab")],
    dtype=float,
).assign(attention_a="")
METHOD = (
    "Test top-1 of the last epoch, mean ± sample standard deviation (number of seeds). Differences "
    "are paired: the same seed has the same initialisation, image order and augmentation in both "
    "arms. 95 % interval: BCa bootstrap of the mean difference, too narrow where seeds are few "
    "(`results/power.md`); not excluded: the largest loss and gain that the test does not reject "
    "at 5 %; P(better): share of seeds on which the first arm is above the other, a tie counts "
    "half; p: two-sided sign-flip test, exact up to 20 pairs, 9,999 random patterns above. A "
    "diverged run counts as the worst of its arm and loses its pair; no verdict rests on leaving it "
    "out. Parameters and MACs are those of the trained network."
)


class Row(NamedTuple):
    """Arm `a` of a network on a data set against arm `b`; `b` None: the baseline's own row.

    arm: its finished runs, one a seed. tried: seeds with a finished or a diverged run. adjusted:
    Holm's p-value over the family; None where no verdict is due. needed: pairs below which nothing
    in the family can be decided; None without a family. settings: {varied key: value}.
    """

    data: str
    model: str
    a: str
    b: str | None
    arm: pd.DataFrame
    tried: int
    pairs: pd.DataFrame
    comparison: Comparison
    adjusted: float | None = None
    needed: int | None = None
    settings: dict = {}  # noqa: RUF012  never changed

    @property
    def verdict(self):
        """The verdict as a word; None without a family or without pairs."""
        due = self.needed and (self.comparison.n or self.tried)
        return verdict(self.comparison, self.adjusted) if due else None


def paired(a, b):
    """One row a seed that both arms have on the same pixels and network: `difference`, `lost`, environments.

    a, b: the finished and diverged runs of an arm, several of a seed perhaps: the two that are most
    alike are a pair. A diverged run counts as the worst of its arm; `lost`: see `compare`.
    """
    if a.empty or b.empty:  # most of the paper's comparisons, so far
        return NO_PAIRS
    facts = [*SHARED, "state", "test_top1", "start", "attention", *ENVIRONMENT]
    arms = []
    for arm in (a, b):
        worst = arm["test_top1"].min()
        arms.append(arm[facts].assign(test_top1=arm["test_top1"].fillna(worst)))
    pairs = arms[0].merge(arms[1], on=SHARED, suffixes=("_a", "_b"))
    diverged = {arm: (pairs[f"state_{arm}"] == "failed").astype(int) for arm in "ab"}
    unlike = sum(
        ((pairs[f"{key}_a"] != pairs[f"{key}_b"]).astype(int) for key in ENVIRONMENT),
        start=pd.Series(0, pairs.index),
    )
    pairs = pairs.assign(
        difference=pairs["test_top1_a"] - pairs["test_top1_b"],
        lost=diverged["b"] - diverged["a"],
        failures=diverged["a"] + diverged["b"],
        mixed=pairs["compile_a"] != pairs["compile_b"],
        unlike=unlike,
    )
    # a finished pair before a failed one, then the most alike, then the plain and the earlier one
    order = ["failures", "mixed", "unlike", "compile_a", "start_a", "start_b"]
    pairs = pairs.dropna(subset="difference").sort_values(order).drop_duplicates("seed")
    return pairs.sort_values("seed", ignore_index=True)


def compare_pairs(pairs, **statement):
    """The Comparison of what `paired` returned; `statement`: least, most."""
    return compare(pairs["difference"], lost=pairs["lost"], **statement)


def make_rows(selection, wanted, **settings):
    """The Rows of a Selection for each (data, model, a, b) of `wanted`."""
    arms, tried, empty, rows = selection.arms(), selection.tried(), selection.runs[:0], []
    for data, model, a, b in wanted:
        runs = tried.get((data, model, a), empty)
        pairs = paired(runs, tried.get((data, model, b), empty))
        comparison = compare_pairs(pairs) if b else Comparison(0)
        own, seeds = arms.get((data, model, a), empty), runs["seed"].nunique()
        rows.append(Row(data, model, a, b, own, seeds, pairs, comparison, settings=settings))
    return rows


def in_family(rows, pairs=0):
    """`rows` with p-values corrected over all of them; below `pairs` pairs a test is to come."""
    p_values = [row.comparison.p if row.comparison.n >= pairs else None for row in rows]
    needed = max(pairs, pairs_to_reach(len(rows)))
    return [
        row._replace(adjusted=adjusted, needed=needed)
        for row, adjusted in zip(rows, holm(p_values), strict=True)
    ]


def in_words(word, pairs, needed):
    """A verdict for a cell: "not tested yet (1 of 10 pairs)"; a dash for None."""
    if word in (NOT_TESTED, INCONCLUSIVE) and pairs < needed:
        return f"{word} ({pairs} of {needed} pairs)"
    return word or DASH


def measured(arm, tried, metric="top1"):
    """What an arm (its runs, one a seed) has reached, as columns of a CSV file."""
    mean, deviation = mean_and_deviation(arm[f"test_{metric}"])
    best = mean_and_deviation(arm["best_test_top1"])[0] if metric == "top1" else None
    seeds = " ".join(map(str, arm["seed"]))
    reached = {"mean": mean, "deviation": deviation, "n": len(arm), "diverged": tried - len(arm)}
    return reached | {"best_epoch_on_test": best, "seeds": seeds}


def _range(low, high):
    return interval(Comparison(0, low=low, high=high))


def _beside_the_paper(row, paper, at_once):
    """(cells, columns of the CSV file) of a planned row: the paper's difference and one more pair."""
    printed = [(paper or {}).get((row.data, row.model, arm)) for arm in (row.a, row.b)]
    claimed = None if None in printed else printed[0] - printed[1]
    excluded = not_excluded(row.comparison.differences, at_once)
    predicted = prediction_interval(row.comparison)
    columns = {"loss_at_once": excluded[0], "gain_at_once": excluded[1], "paper": claimed}
    columns |= {"next_low": predicted[0], "next_high": predicted[1]}
    return [_range(*excluded), signed(claimed), _range(*predicted)], columns


def rows_table(rows, selection, protocol, plan=None, paper=None):
    """The Table of some Rows, still without name and title.

    selection: all their runs, and those left out. plan: its schedule's, with paper: {(data, model,
    attention): top-1}: then the paper's difference stands beside a prediction for one more pair.
    """
    against = sorted({row.b for row in rows if row.b})
    keys = list(dict.fromkeys(key for row in rows for key in row.settings))
    single = against[0] if len(against) == 1 else None
    header = ["Data", "Network", *keys, "Attention", *([] if single else ["against"])]
    labels = len(header)
    header += ["Para (M)", "MACs (G)", "Test top-1 (%)"]
    header += [f"minus {single}" if single else "difference", "95 % interval", "not excluded"]
    planned = sum(map(len, plan.families)) if plan else 0
    if plan:
        at_once = 1 - 0.05 / planned
        header += [f"not excluded, all {planned} at once ({100 * at_once:.0f} %)"]
        header += ["paper", "one more pair (95 %)"]
    header += ["P(better)", "p", "p (Holm)", f"better than {single}?" if single else "better?"]
    cells, records = [], []
    for row in rows:
        ours, counts = row.comparison, row.arm[["params", "macs"]]
        params, macs = counts.iloc[0] if len(row.arm) else (None, None)
        bounds = not_excluded(ours.differences)
        more_cells, more = _beside_the_paper(row, paper, at_once) if plan else ([], {})
        names = {"data": row.data, "model": row.model, **row.settings, "attention": row.a}
        missing = not row.tried and not row.settings
        choices = (f"{key}={names[key]}" for key in ("data", "model", "attention"))
        cells.append(
            [DATA_TITLE.get(row.data, row.data), row.model]
            + [row.settings.get(key, DASH) for key in keys]
            + [row.a, *([] if single else [row.b or DASH])]
            + [scaled(params, 6, 3), scaled(macs, 9, 4), accuracy(row.arm["test_top1"], row.tried)]
            + [signed(ours.mean), interval(ours), _range(*bounds), *more_cells]
            + [rounded(ours.wins, 2), p_value(ours.p), p_value(row.adjusted)]
            + [in_words(row.verdict, ours.n, row.needed)]
        )
        records.append(
            names
            | {"schedule": protocol.schedule_of(row.data), "precision": protocol.precision}
            | {"params": params, "macs": macs}
            | measured(row.arm, row.tried)
            | {"against": row.b, "pairs": ours.n, "difference": ours.mean, "wins": ours.wins}
            | {"differences": ours.differences, "difference_deviation": ours.deviation}
            | {"low": ours.low, "high": ours.high, "loss": bounds[0], "gain": bounds[1]}
            | more
            | {"p": ours.p, "p_holm": row.adjusted, "needed": row.needed, "verdict": row.verdict}
            | {"command": protocol.command(*choices) if missing else ""}
        )
    notes = run_notes(*selection) + pair_notes([row.pairs for row in rows if row.b])
    commands = tuple(dict.fromkeys(r["command"] for r in records if r["command"]))
    records = pd.DataFrame(records, dtype=object)
    narrow = ("Attention", "against", *keys, "Test top-1 (%)", header[labels + 3])
    table = Table("", "", header, cells, notes, records, commands, labels=labels, method=METHOD)
    return table._replace(narrow=(*narrow, "95 % interval", "p (Holm)"))


def pair_notes(pairs):
    """How many pairs have two runs of different environments, and whose, as a list of one note.

    pairs: a list of DataFrames.
    """
    if not pairs:
        return []
    pairs = pd.concat([found for found in pairs if len(found)] or [NO_PAIRS])
    parts = []
    for key, words in ENVIRONMENT.items():
        differ = pairs[pairs[f"{key}_a"] != pairs[f"{key}_b"]]
        if len(differ):
            arms = ", ".join(dict.fromkeys(differ["attention_a"]))
            parts.append(f"{len(differ)} in the {words} ({arms})")
    note = f"{plural(len(pairs), 'pair')}; some differ in more than the attention: "
    return [f"{note}{'; '.join(parts)}."] if parts else []


def run_notes(used, failed, duplicates):
    """The notes on the runs behind a table (hours, devices), and on those that were left out."""
    notes, used = [], used.drop_duplicates("run")
    if len(used):
        devices = "; ".join(sorted(set(used["device"].replace("", "an unknown device"))))
        notes.append(f"Runs: {len(used)}, {elapsed(used['seconds'].sum())} in all, on {devices}.")
    unverified = (~used["data_verified"]).sum()
    counts = {
        "from a checkout with uncommitted changes.": used["dirty"].sum(),
        "with `compile=true`: the same arithmetic, rounded in another order.": (
            used["compile"].sum()
        ),
        "with `data.verify=false`: their images were not compared with the official ones.": (
            unverified
        ),
    }
    for source, count in used["data_cache"].replace("", pd.NA).value_counts().sort_index().items():
        side = f"a short side of {source} pixels" if source.isdigit() else source
        own = "the files' own pixels (`data.cache=false`)"
        pixels = own if source == "files" else f"images cached at {side}"
        counts[f"cut their training regions from {pixels}."] = count
    notes += [f"{count} of them {words}" for words, count in counts.items() if count]
    for data, runs in used.groupby("data"):
        files, lengths = runs["data_fingerprint"].nunique(), sorted(set(runs["epochs"].dropna()))
        if files > 1:
            words = f"{files} fingerprints in `runs.csv`"
            notes.append(f"**The runs saw different files of {data}**: {words}.")
        if len(lengths) > 1:
            words = ", ".join(map(str, lengths))
            notes.append(f"**The runs on {data} have different lengths**: {words} epochs.")
    if len(failed):
        runs = (f"`{run.run}` ({run.message or 'no message'})" for run in failed.itertuples())
        notes.append(f"Failed, without a result: {'; '.join(runs)}.")
    if len(duplicates):
        runs = "; ".join(f"`{run}`" for run in duplicates["run"])
        notes.append(f"A second run of the same seed, not in the means: {runs}.")
    return notes
