"""The paper's comparative statements, judged by paired runs: results/claims.yaml -> results/claims.md."""

import statistics
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml

from lcm.errors import UserError
from lcm.reporting.comparison import pair_notes, paired
from lcm.reporting.protocol import DATA_TITLE, METRIC_TITLE, NETWORK_TITLE, select
from lcm.reporting.render import DASH, Table, interval, markdown_rows, p_value, plural, rounded, signed
from lcm.reporting.statistics import (
    CONTRADICTED,
    SUPPORTED,
    UNTESTABLE,
    Comparison,
    compare,
    every,
    holm,
    pairs_to_reach,
    seeds_needed,
    verdict,
)

COUNTS = {"params": "parameters", "gfloat": "GFloat", "macs": "multiply-accumulates"}


class Contest(NamedTuple):
    """One comparison of the paper: arm `a`, said to be better, against arm `b`; `paper` is its a - b in points."""

    table: int
    model: str
    data: str
    a: str
    b: str
    paper: float
    margin: float = 0.0
    metric: str = "top1"

    @property
    def arms(self):
        """The keys of both arms among the runs of a protocol."""
        return (self.data, self.model, self.a), (self.data, self.model, self.b)


class Claim(NamedTuple):
    id: str
    place: str
    quote: str
    holds_if: str
    contests: tuple = ()
    note: str = ""
    cost: dict | None = None
    limits: dict | None = None


class Judged(NamedTuple):
    """What the runs say about a contest, and how many pairs would show a difference of the paper's size."""

    contest: Contest
    pairs: object
    comparison: Comparison
    adjusted_p: float | None
    verdict: str
    seeds_needed: int | None


class JudgedClaim(NamedTuple):
    claim: Claim
    verdict: str | None  # None where no number of this repository decides it
    paper: str  # what the paper's own numbers say
    ours: str  # what the runs say, in short


def read_claims(file):
    """claims.yaml as a list of Claim. Raises UserError where it is missing."""
    try:
        entries = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing: it belongs to the repository; bring it back with git checkout") from None
    own = {
        entry["id"]: [Contest(**facts, margin=float(entry.get("margin", 0))) for facts in entry.get("comparisons", [])]
        for entry in entries
    }
    claims = []
    for entry in entries:
        contests = [c for other in entry.get("comparisons_of", []) for c in own[other]] + own[entry["id"]]
        contests = tuple(sorted(dict.fromkeys(contests), key=lambda c: c.table))
        facts = {key: value for key, value in entry.items() if key in Claim._fields}
        claims.append(Claim(**facts, contests=contests))
    return claims


def judge_contests(claims, runs, protocol):
    """{contest: Judged} for every contest of the claims, in the order of the paper's tables and networks.

    Holm's correction is over all contests of one of the paper's tables, those without runs too.
    """
    selection = select(runs, protocol)
    arms, empty, networks, judged = selection.arms(), selection.runs[:0], list(NETWORK_TITLE), {}
    contests = sorted(
        {contest for claim in claims for contest in claim.contests},
        key=lambda c: (c.table, networks.index(c.model), c.data, c.b != "none", c.b, c.a, c.margin),
    )
    for table in sorted({contest.table for contest in contests}):
        family = [contest for contest in contests if contest.table == table]
        pairs = [paired(*(arms.get(key, empty) for key in c.arms), c.metric) for c in family]
        compared = [compare(found["difference"], null=-c.margin) for c, found in zip(family, pairs, strict=True)]
        adjusted = holm([comparison.p for comparison in compared])
        for contest, found, comparison, p in zip(family, pairs, compared, adjusted, strict=True):
            needed = seeds_needed(contest.paper + contest.margin, comparison.deviation, len(family))
            word = verdict(comparison, p, -contest.margin)
            judged[contest] = Judged(contest, found, comparison, p, word, needed)
    return judged


def cost_rows(claim, complexity):
    """How much arm `a` costs above arm `b`, in percent by the exact counts, as a DataFrame: one row for each network and arm."""
    base = complexity[complexity["attention"] == claim.cost["b"]]
    rows = complexity[complexity["attention"].isin(claim.cost["a"])].merge(base, on=["table", "model"])
    for key in COUNTS:
        rows[key] = 100 * (rows[f"{key}_x"].astype(float) / rows[f"{key}_y"].astype(float) - 1)
    return rows.drop_duplicates(["model", "attention_x"])


def judge(claims, judged, complexity):
    """Every claim judged, in order: a list of JudgedClaim. `judged` is what `judge_contests` returned."""
    by_kind = {"every": _every, "on_average": _on_average, "cost": lambda claim, _: _cost(claim, complexity)}
    return [
        JudgedClaim(claim, *by_kind[claim.holds_if](claim, [judged[c] for c in claim.contests]))
        if claim.holds_if in by_kind
        else JudgedClaim(claim, None, DASH, claim.note)
        for claim in claims
    ]


def _every(claim, parts):
    against = [c for c in claim.contests if c.paper <= -c.margin]
    named = "; ".join(
        f"Table {c.table}, {NETWORK_TITLE.get(c.model, c.model)}, {DATA_TITLE[c.data]}: {c.a} against {c.b} {signed(c.paper)}"
        for c in against
    )
    paper = f"CONTRADICT it ({named})" if against else f"hold in {len(parts)} of {len(parts)}"
    word = every((part.comparison, part.adjusted_p, -part.contest.margin) for part in parts)
    return word, paper, f"{plural(len(parts), 'comparison')}: {_count(part.verdict for part in parts)}"


def _on_average(claim, parts):
    """By the mean over the claim's contests, seed by seed: only seeds that every contest has."""
    mean = statistics.fmean(c.paper for c in claim.contests)
    paper = f"{'hold' if mean > 0 else 'CONTRADICT it'}: {signed(mean)} over {len(parts)} comparisons"
    differences = [dict(zip(part.pairs["seed"], part.pairs["difference"], strict=True)) for part in parts]
    seeds = sorted(set.intersection(*map(set, differences)))
    comparison = compare([statistics.fmean(d[seed] for d in differences) for seed in seeds])
    ours = "no seed has all of them"
    if comparison.n:
        ours = f"{signed(comparison.mean)} {interval(comparison)}, p {p_value(comparison.p)}, n {comparison.n}"
    return verdict(comparison, comparison.p), paper, ours


def _cost(claim, complexity):
    rows, paper = cost_rows(claim, complexity), "see the counts below"
    if rows.empty:
        return UNTESTABLE, paper, "not counted: `python scripts/complexity.py --csv results/complexity.csv`"
    worst = rows[list(claim.limits)].max()
    word = SUPPORTED if all(worst[key] <= limit for key, limit in claim.limits.items()) else CONTRADICTED
    ours = "at most " + ", ".join(f"{signed(worst[key])} % {COUNTS[key]}" for key in claim.limits)
    return word, paper, f"{ours} (limits {', '.join(f'{limit} %' for limit in claim.limits.values())})"


def _count(words):
    words = list(words)
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def summary_table(results, protocol):
    """One row a claim."""
    header = ["", "the paper says", "where", "the paper's own numbers", "our runs", "verdict"]
    rows = []
    for index, result in enumerate(results, 1):
        claim = result.claim
        note = f" **Note:** {claim.note}" if claim.note and claim.holds_if != "not_judged" else ""
        word = f"**{result.verdict}**" if result.verdict else "not judged"
        rows.append([str(index), f"“{claim.quote.strip()}”{note}", claim.place, result.paper, result.ours, word])
    return Table("claims", f"Claims: {protocol.words}", header, rows, labels=len(header))


def contest_tables(claims, judged):
    """For each table of the paper, every comparison that the claims make in it."""
    header = ["Network", "Data", "A", "B", "claims", "paper A - B", "ours A - B", "95 % interval", "P(A above B)", "n"]
    header += ["p", "p (Holm)", "seeds needed", "A above B?"]
    tables = []
    for number in sorted({contest.table for contest in judged}):
        family = [part for contest, part in judged.items() if contest.table == number]
        rows = []
        for contest, _, comparison, p, word, needed in family:
            metric = f" {METRIC_TITLE[contest.metric]}" if contest.metric != "top1" else ""
            about = f" (by no more than {contest.margin:g} below)" if contest.margin else ""
            names = [NETWORK_TITLE.get(contest.model, contest.model), DATA_TITLE[contest.data] + metric, contest.a]
            places = [str(index) for index, claim in enumerate(claims, 1) if contest in claim.contests]
            ours = [signed(contest.paper), signed(comparison.mean), interval(comparison), rounded(comparison.wins, 2)]
            tests = [str(comparison.n), p_value(comparison.p), p_value(p), str(needed or DASH), word]
            rows.append([*names, contest.b + about, ", ".join(places), *ours, *tests])
        note = (
            f"{len(rows)} comparisons: no corrected p-value can reach 0.05 with fewer than {pairs_to_reach(len(rows))} "
            "pairs. Seeds needed: pairs that would show a difference of the paper's size with probability 0.8 after the "
            "correction, given the deviation of our paired differences."
        )
        notes = [note, *pair_notes([part.pairs for part in family])]
        records = pd.DataFrame({"n": [part.comparison.n for part in family]})
        tables.append(
            Table(f"claims-table{number}", f"Comparisons of Table {number}", header, rows, notes, records, labels=4)
        )
    return tables


def cost_tables(claims, complexity):
    """For each claim about cost, the counts that it compares."""
    header = ["Network", "A", "B", "parameters", "parameters %", "GFloat %", "multiply-accumulates %"]
    tables = []
    for claim in claims:
        counts = cost_rows(claim, complexity) if claim.holds_if == "cost" else ()
        rows = []
        for row in counts.itertuples() if len(counts) else ():
            added = int(row.params_x - row.params_y)
            names = [NETWORK_TITLE.get(row.model, row.model), row.attention_x, row.attention_y]
            percents = [signed(row.params, 2), signed(row.gfloat, 3), signed(row.macs, 3)]
            rows.append([*names, f"{added:+,}" if added else "0", *percents])
        if rows:
            tables.append(Table(f"claims-{claim.id}", f"Counts: A above B ({claim.id})", header, rows, labels=3))
    return tables


WORDS = (
    "An `every` claim has the worst verdict of its comparisons; a comparison is **supported** (the 95 % interval of "
    "the paired difference lies above zero and the corrected p-value is at most 0.05), **contradicted** (the same "
    "below zero), **inconclusive** (anything else) or **untestable** (fewer than 6 pairs of seeds: an exact two-sided"
    " test cannot reach 0.05). One contradicted comparison contradicts such a claim only where its p-value, corrected over the "
    "claim's own comparisons, is at most 0.05 too. An average is one test of its own. Intervals: BCa bootstrap, too narrow "
    "where seeds are few; p: exact sign-flip test, Holm's correction over all comparisons of one table of the paper, with runs "
    "or without; methods and sources: `lcm/reporting/statistics.py`; what they can see: `results/power.md`."
)


def claims_in_short(results):
    """How many claims there are, which the paper's own numbers contradict, and our verdicts, in three sentences."""
    contradicted = [str(index) for index, result in enumerate(results, 1) if result.paper.startswith("CONTRADICT")]
    return (
        f"{len(results)} comparative claims of the paper. Its own numbers contradict {len(contradicted)} of them "
        f"(number {' and '.join(contradicted) or '-'}). Our verdicts: {_count(r.verdict or 'not judged' for r in results)}."
    )


def claims_page(claims, runs, protocol, complexity):
    """results/claims.md as text."""
    judged = judge_contests(claims, runs, protocol)
    results = judge(claims, judged, complexity)
    parts = [
        f"# What the paper claims, and what the runs say ({protocol.words})",
        "Made by `python scripts/tables.py` from `results/claims.yaml`, `results/paper.csv` and `results/runs.csv`. The paper is "
        "retracted; it reports one number for each network and no deviation.",
        claims_in_short(results),
        markdown_rows(summary_table(results, protocol)),
        WORDS,
    ]
    for table in (*contest_tables(claims, judged), *cost_tables(claims, complexity)):
        parts += [f"## {table.title}", markdown_rows(table), *table.notes]
    return "\n\n".join(parts) + "\n"
