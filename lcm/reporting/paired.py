"""Arms compared seed by seed: the family that corrects each p-value, the table and its notes."""

import math
from statistics import fmean, stdev
from typing import NamedTuple

import pandas as pd

from lcm.config.compose import choices
from lcm.reporting.pairs import pair_notes, paired
from lcm.reporting.protocol import DATA_TITLE, arms_of
from lcm.reporting.render import (
    DASH,
    Table,
    columns,
    elapsed,
    interval,
    p_value,
    reached,
    rounded,
    scaled,
    signed,
)
from lcm.reporting.statistics import (
    ALPHA,
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

METHOD = (
    "Test top-1 of the last epoch, mean ± sample standard deviation (number of seeds). "
    "Differences are paired: the same seed has the same initialisation, image order and "
    "augmentation in both arms. 95 % interval: BCa bootstrap of the mean difference, too narrow "
    "where seeds are few (`results/power.md`); not excluded: the interval that follows from the "
    "test, from the largest loss to the largest gain that it does not reject at 5 %; P(better): "
    "share of seeds on which the first arm is above the other, a tie counts half; p: two-sided "
    "sign-flip test, exact up to 20 pairs, 9,999 random patterns above. Supported or "
    "contradicted: a corrected p of at most 0.05, and the 95 % interval on that side. A diverged "
    "run counts as the worst of its arm and loses its pair; no verdict rests on leaving it out. "
    "Parameters and MACs are those of the trained network."
)


class Row(NamedTuple):
    """Arm `a` of a network on a data set against arm `b`; `b` None: the baseline's own row.

    arm: its finished runs, one a seed (a pair may have another of that seed, more like its
    partner). tried: seeds with a finished or a diverged run. adjusted:
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
        """The verdict as a word; None without a family."""
        return verdict(self.comparison, self.adjusted) if self.needed else None


def make_rows(runs, wanted):
    """The Rows of selected runs for each (data, model, a, b) or (data, ..., least, most)."""
    used, tried, rows = arms_of(runs[runs["used"]]), arms_of(runs[runs["tried"]]), []
    for data, model, a, b, *statement in wanted:
        # `tried` leaves several runs of a seed for `paired` to choose from, `used` has one of
        # each. Where b is None, the name of no arm, there are no pairs.
        found, arm = tried(data, model, a), used(data, model, a)
        pairs = paired(found, tried(data, model, b))
        comparison = compare(pairs["difference"], *statement, lost=pairs["lost"])
        rows.append(Row(data, model, a, b, arm, found["seed"].nunique(), pairs, comparison))
    return rows


def in_family(rows, pairs=0, due=True):
    """`rows` with p-values corrected over all of them; the test is to come where it is not `due`.

    pairs: how many were planned.
    """
    # A test after each new pair would be many tests, with as many chances of a false verdict:
    # until a planned one is due, its row has no p-value, and so no verdict.
    p_values = holm([row.comparison.p if due else None for row in rows])
    adjusted = [None if math.isnan(p) else p for p in p_values.tolist()]
    needed = max(pairs, pairs_to_reach(len(rows)))
    return [
        row._replace(
            adjusted=p,
            needed=needed,
            comparison=row.comparison if due else row.comparison._replace(p=None),
        )
        for row, p in zip(rows, adjusted, strict=True)
    ]


def verdict_words(word, pairs, needed):
    """A verdict for a cell: "not tested yet (1 of 10 pairs)"; a dash for None."""
    if word in (NOT_TESTED, INCONCLUSIVE) and pairs < needed:
        return f"{word} ({pairs} of {needed} pairs)"
    return word or DASH


def measured(arm, tried, metric="top1"):
    """What an arm (its runs, one a seed) has reached, as columns of a CSV file."""
    # The paper does not say which epoch its numbers are of. The best one is chosen on the test
    # set: it is shown in the CSV file, and nothing is judged by it.
    values, best = list(arm[f"test_{metric}"]), list(arm["best_test_top1"])
    return {
        "mean": fmean(values) if values else None,
        "deviation": stdev(values) if len(values) > 1 else None,
        "n": len(arm),
        "diverged": tried - len(arm),
        "best_epoch_on_test": fmean(best) if best and metric == "top1" else None,
        "seeds": " ".join(map(str, arm["seed"])),
    }


def printed_difference(row, paper):
    """The paper's difference (paper: {(data, model, attention): top-1}), None where it has none."""
    a, b = (paper.get((row.data, row.model, arm)) for arm in (row.a, row.b))
    return None if a is None or b is None else a - b


def _record(row, protocol, plan, level, paper):
    """A Row as columns of a CSV file; of a planned schedule also what all of its comparisons
    exclude at once (at `level`), the paper's difference and one more pair."""
    ours = row.comparison
    params, macs = row.arm[["params", "macs"]].iloc[0] if len(row.arm) else (None, None)
    # The inverted test and the prediction would take the stand-in of a diverged run for its
    # accuracy, and could exclude what the p-value, which takes it at its worst, does not. Where
    # the test is not due yet, nothing is excluded either.
    certain = () if ours.p is None or row.pairs["lost"].any() else ours.differences
    loss, gain = not_excluded(certain)
    names = {"data": row.data, "model": row.model, **row.settings, "attention": row.a}
    planned = {}
    if plan:
        planned["loss_at_once"], planned["gain_at_once"] = not_excluded(certain, level)
        planned["lost_pairs"] = int(row.pairs["lost"].ne(0).sum())
        planned["paper"] = printed_difference(row, paper)
        next_pair = ours if certain else ours._replace(deviation=None)
        planned["next_low"], planned["next_high"] = prediction_interval(next_pair)
    return {
        **names,
        # Rows of one table can have schedules and precisions of their own (`compare.py --by`).
        # Without a finished run the settings say which, or else the protocol.
        "schedule": next(iter(row.arm["schedule"]), protocol.schedule_of(row.data)),
        "precision": next(iter(row.arm["precision"]), protocol.precision),
        **row.settings,
        "params": params,
        "macs": macs,
        **measured(row.arm, row.tried),
        "against": row.b,
        "pairs": ours.n,
        "difference": ours.mean,
        "wins": ours.wins,
        "differences": ours.differences,
        "difference_deviation": ours.deviation,
        "low": ours.low,
        "high": ours.high,
        "loss": loss,
        "gain": gain,
        **planned,
        "p": ours.p,
        "p_holm": row.adjusted,
        "needed": row.needed,
        "verdict": row.verdict if row.tried else None,
        "command": ""
        if row.tried
        else protocol.command(plan, **names | {"data": _option(row.data)}),
    }


def _option(data):
    """A data set's name as train.py takes it: that of a folder of images is its label."""
    return data if data in choices("data") else f"folder data.label={data} data.root=FOLDER"


def _cells(record, settings, single, at_once):
    """The cells of a Row's record as {column: text}."""
    word = verdict_words(record["verdict"], record["pairs"], record["needed"])
    cells = {
        "Data": DATA_TITLE.get(record["data"], record["data"]),
        "Network": record["model"],
        **{key: record.get(key, DASH) for key in settings},
        "Attention": record["attention"],
        **({} if single else {"against": record["against"] or DASH}),
        "Para (M)": scaled(record["params"], 6, 3),
        "MACs (G)": scaled(record["macs"], 9, 4),
        "Test top-1 (%)": reached(record),
        f"minus {single}" if single else "difference": signed(record["difference"]),
        "95 % interval": interval(record["low"], record["high"]),
        "not excluded": interval(record["loss"], record["gain"]),
    }
    if "paper" in record:
        excluded = interval(record["loss_at_once"], record["gain_at_once"])
        cells |= {at_once: excluded, "paper": signed(record["paper"])}
        cells["one more pair (95 %)"] = interval(record["next_low"], record["next_high"])
    return cells | {
        "P(better)": rounded(record["wins"], 2),
        "p": p_value(record["p"]),
        "p (Holm)": p_value(record["p_holm"]),
        f"better than {single}?" if single else "better?": word,
    }


def rows_table(rows, runs, protocol, plan=None, paper=None):
    """The Table of some Rows, still without name and title.

    runs: all their runs, and those left out. plan: that of the schedule, with the paper's top-1.
    """
    against = sorted({row.b for row in rows if row.b})
    single = against[0] if len(against) == 1 else None
    settings = dict.fromkeys(key for row in rows for key in row.settings)
    # Bonferroni over all families of a data set: with 95 % all its intervals are right at once.
    # Holm's steps, which correct the p-values of each family, have no such simple intervals.
    planned = sum(map(len, plan["families"])) if plan else 1
    level = 1 - ALPHA / planned
    records = [_record(row, protocol, plan, level, paper) for row in rows]
    at_once = f"not excluded, all {planned} of a data set at once (each at {100 * level:g} %)"
    header, lines = columns([_cells(record, settings, single, at_once) for record in records])
    differ = pair_notes([row.pairs for row in rows if row.b])
    labels = header.index("Para (M)")
    return Table(
        name="",
        title="",
        header=header,
        rows=lines,
        notes=run_notes(runs) + differ,
        differ=differ,
        records=pd.DataFrame(records, dtype=object),
        missing=tuple(dict.fromkeys(r["command"] for r in records if r["command"])),
        labels=labels,
        method=METHOD,
        compared=rows,
        # header[labels + 3] is the column of differences, whose heading names the baseline.
        narrow=(
            *("Attention", "against", *settings, "Test top-1 (%)", header[labels + 3]),
            *("95 % interval", "p (Holm)"),
        ),
    )


def run_notes(runs):
    """The notes on the runs behind a table (hours, devices), and on those that were left out."""
    notes, used, failed = [], runs[runs["used"]], runs[runs["state"] == "failed"]
    if len(used):
        devices = "; ".join(sorted(set(used["device"])))
        notes.append(f"Runs: {len(used)}, {elapsed(used['seconds'].sum())} in all, on {devices}.")
    # `data_verified` may be NA (no `data.verify`): `~` keeps it NA, sum() leaves it out.
    for words, some in {
        "from a checkout with uncommitted changes.": used["dirty"],
        "with `compile=true`: the same arithmetic, rounded in another order.": used["compile"],
        "with `data.verify=false`: their images were not compared with the official ones.": (
            ~used["data_verified"]
        ),
    }.items():
        if count := some.sum():
            notes.append(f"{count} of them {words}")
    for data, found in used.groupby("data"):
        # No pair mixes pixels (SHARED), but the mean of an arm would.
        if found["data_fingerprint"].nunique() > 1:
            notes.append(
                f"**The runs on {data} saw different pixels**: `data_fingerprint` in `runs.csv`."
            )
    # A finished run that `one_a_seed` has not taken is the second of its seed.
    further = runs[~runs["used"] & (runs["state"] == "finished")]
    for words, names in {
        "Failed, without a result": [
            f"`{r.run}` ({r.message or 'no message'})" for r in failed.itertuples()
        ],
        "A second run of the same seed, not in the means": [f"`{run}`" for run in further["run"]],
    }.items():
        if names:
            notes.append(f"{words}: {'; '.join(names)}.")
    return notes
