"""The paper's comparative statements, judged by paired runs: results/claims.yaml -> claims.md."""

import itertools
import math
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pandas as pd
import yaml

from lcm.files import missing
from lcm.reporting import statistics
from lcm.reporting.paired import compare_pairs, in_words, pair_notes, paired
from lcm.reporting.protocol import DATA_TITLE, NETWORK_TITLE, select
from lcm.reporting.render import (
    DASH,
    Table,
    interval,
    markdown_rows,
    p_value,
    plural,
    rounded,
    signed,
)
from lcm.reporting.statistics import Comparison, compare, every, holm, pairs_to_reach, verdict

COUNTS = {"params": "parameters", "gfloat": "GFloat", "macs": "multiply-accumulates"}
NOT_JUDGED = "not judged"
METHOD = (
    "Accuracies are top-1. A claim has the worst verdict of its comparisons. A comparison "
    "is **supported** (the 95 % interval of the paired difference lies where the claim says and the "
    "corrected p-value is at most 0.05), **contradicted** (the same on the other side), "
    "**inconclusive** (anything else) or **not tested yet** (fewer than 6 pairs of seeds: no exact "
    "two-sided test can reach 0.05). In brackets: the number of pairs, and the fewest with which any "
    "comparison of the table can be significant. One contradicted comparison contradicts a claim only "
    "where its p-value, corrected over the claim's own comparisons, is at most 0.05 too. A claim about "
    "an average is one test. Almost the same: two one-sided tests. Intervals: BCa bootstrap, too "
    "narrow where seeds are few; P: share of pairs with A above B, a tie counts half; p: sign-flip "
    "test, exact up to 20 pairs, 9,999 random patterns above. Holm's correction is over all "
    "comparisons that the claims make in one table of the paper, with runs or without; a comparison "
    "that is in two tables has the larger p-value in both. Methods and sources: "
    "`lcm/reporting/statistics.py`; error rates and power of the verdicts: `results/power.md`."
)


class Statement(NamedTuple):
    """One comparison of the paper in top-1: arm `a` minus arm `b` is `paper` points in its table,
    and is said to lie between `least` and `most`."""

    table: int
    model: str
    data: str
    a: str
    b: str
    paper: float
    least: float = 0.0
    most: float = math.inf

    @property
    def is_gain(self):
        """Whether it says no more than that `a` is better."""
        return (self.least, self.most) == (0, math.inf)

    @property
    def pair(self):
        """The same for statements of two tables about one comparison."""
        return self._replace(table=0, paper=0)


class Claim(NamedTuple):
    """A sentence of the paper with the statements it rests on; claims.yaml explains the fields."""

    id: str
    place: str
    quote: str
    judged_as: str
    holds_if: str
    statements: tuple = ()
    note: str = ""
    cost: dict | None = None
    limits: dict | None = None

    @property
    def against_it(self):
        """The statements that the paper's own numbers do not bear out."""
        return [s for s in self.statements if not s.least < s.paper < s.most]

    @property
    def contradicts_itself(self):
        return self.holds_if == "every" and bool(self.against_it)


class Judged(NamedTuple):
    """What the runs say about a statement. needed: pairs below which its family decides nothing."""

    statement: Statement
    pairs: pd.DataFrame
    comparison: Comparison
    adjusted_p: float | None
    needed: int

    @property
    def verdict(self):
        return verdict(self.comparison, self.adjusted_p)


class JudgedClaim(NamedTuple):
    """A claim with its verdict, and in words what the paper's own numbers and what the runs say."""

    claim: Claim
    verdict: str
    paper: str
    ours: str


def _listed(value):
    return value if isinstance(value, list) else [value]


def read_claims(file, paper):
    """claims.yaml as a list of Claim, with the differences of the paper's numbers (`read_paper`).

    Raises UserError where it is missing.
    """
    try:
        entries = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(file) from None
    names = ["table", "model", "data", "attention"]
    printed = paper[paper["metric"] == "top1"].set_index(names)["value"].to_dict()
    own = {}
    for entry in entries:
        within = dict(zip(("least", "most"), entry.get("within", ()), strict=False))
        own[entry["id"]] = [
            Statement(*place, a, b, round(printed[(*place, a)] - printed[(*place, b)], 2), **within)
            for product in entry.get("comparisons", [])
            for *place, a, b in itertools.product(*map(_listed, product.values()))
        ]
    claims = []
    for entry in entries:
        found = [s for other in entry.get("comparisons_of", []) for s in own[other]]
        statements = sorted(dict.fromkeys(found + own[entry["id"]]), key=lambda s: s.table)
        facts = {key: value for key, value in entry.items() if key in Claim._fields}
        claims.append(Claim(**facts, statements=tuple(statements)))
    return claims


def families(claims):
    """{table: [its statements]}: what Holm's correction is over, in the order of the pages."""
    networks = list(NETWORK_TITLE)
    statements = sorted(
        {statement for claim in claims for statement in claim.statements},
        key=lambda s: (s.table, networks.index(s.model), s.data, s.b != "none", s.b, s.a, -s.least),
    )
    return {table: list(own) for table, own in itertools.groupby(statements, lambda s: s.table)}


def judge_statements(claims, selection):
    """{statement: Judged} for every statement of the claims, judged by the runs of a Selection.

    Holm's correction is over all statements about one of the paper's tables, those without runs
    too. A comparison that stands in two tables has the larger p-value of both, in both.
    """
    tried, empty, judged, strictest = selection.tried(), selection.runs[:0], {}, {}
    for family in families(claims).values():
        compared = {}
        for s in family:
            pairs = paired(*(tried.get((s.data, s.model, arm), empty) for arm in (s.a, s.b)))
            compared[s] = pairs, compare_pairs(pairs, least=s.least, most=s.most)
        adjusted = holm([comparison.p for _, comparison in compared.values()])
        needed = pairs_to_reach(len(family))
        for (s, found), p in zip(compared.items(), adjusted, strict=True):
            judged[s] = Judged(s, *found, p, needed)
            before = strictest.get(s.pair, judged[s])
            strictest[s.pair] = before._replace(
                adjusted_p=None if p is None else max(p, before.adjusted_p),
                needed=max(needed, before.needed),
            )
    for s, part in judged.items():
        both = strictest[s.pair]
        judged[s] = part._replace(adjusted_p=both.adjusted_p, needed=both.needed)
    return judged


def judge(claims, judged, complexity):
    """Every claim judged, in order: a list of JudgedClaim. judged: see `judge_statements`."""
    results = []
    for claim in claims:
        parts = [judged[statement] for statement in claim.statements]
        match claim.holds_if:
            case "every":
                result = _every(claim, parts)
            case "on_average":
                result = _on_average(claim, parts)
            case "cost":
                result = _cost(claim, complexity)
            case _:  # not_judged
                result = NOT_JUDGED, DASH, claim.note
        results.append(JudgedClaim(claim, *result))
    return results


def _every(claim, parts):
    against = "; ".join(
        f"Table {s.table}, {NETWORK_TITLE[s.model]}, {DATA_TITLE[s.data]}: "
        f"{s.a} against {s.b} {signed(s.paper)}"
        for s in claim.against_it
    )
    paper = f"CONTRADICT it ({against})" if against else f"hold in {len(parts)} of {len(parts)}"
    word = every((part.comparison, part.adjusted_p) for part in parts)
    ours = f"{plural(len(parts), 'comparison')}: {_count(part.verdict for part in parts)}"
    return word, paper, ours


def average(parts):
    """The Comparison of the mean over some Judged, seed by seed: only seeds that each of them has."""
    differences = [
        dict(zip(part.pairs["seed"], part.pairs["difference"], strict=True)) for part in parts
    ]
    lost = [dict(zip(part.pairs["seed"], part.pairs["lost"], strict=True)) for part in parts]
    seeds = sorted(set.intersection(*map(set, differences)))
    # one diverged run is enough for its seed to count against the side that lost it
    signs = [max(-1, min(1, sum(found[seed] for found in lost))) for seed in seeds]
    return compare([fmean(found[seed] for found in differences) for seed in seeds], lost=signs)


def _on_average(claim, parts):
    mean = fmean(s.paper for s in claim.statements)
    holds = "hold" if mean > 0 else "CONTRADICT it"
    paper = f"{holds}: {signed(mean)} over {len(parts)} comparisons"
    comparison, ours = average(parts), "no seed has all of them"
    if comparison.n:
        ours = f"{signed(comparison.mean)} {interval(comparison)}, p {p_value(comparison.p)}, "
        ours += f"n {comparison.n}"
    return verdict(comparison, comparison.p), paper, ours


def _cost(claim, complexity):
    """By the exact counts: what an arm `a` adds to arm `b`, in percent, where it adds most."""
    base = complexity[complexity["attention"] == claim.cost["b"]]
    arms = complexity[complexity["attention"].isin(claim.cost["a"])]
    rows, paper = arms.merge(base, on=["table", "model"]), "see Tables 1 to 5"
    if rows.empty:
        advice = "not counted: `python scripts/complexity.py --csv results/complexity.csv`"
        return statistics.NOT_TESTED, paper, advice
    most = {}
    for key in claim.limits:
        added = 100 * (rows[f"{key}_x"].astype(float) / rows[f"{key}_y"].astype(float) - 1)
        most[key] = added[added.abs().idxmax() if claim.cost.get("either_way") else added.idxmax()]
    within = all(
        (abs(most[key]) if claim.cost.get("either_way") else most[key]) <= limit
        for key, limit in claim.limits.items()
    )
    word = statistics.SUPPORTED if within else statistics.CONTRADICTED
    ours = ", ".join(f"{signed(percent)} % {COUNTS[key]}" for key, percent in most.items())
    limits = ", ".join(f"{limit} %" for limit in claim.limits.values())
    return word, paper, f"at most {ours} (limits {limits})"


def _count(words):
    return ", ".join(f"{count} {word}" for word, count in Counter(words).items())


def summary_table(results, protocol, chances=None):
    """One row per claim. chances: {claim's id: "20 / 25"}, the seeds of `results/power.csv`."""
    header = ["", "the paper says", "judged as", "where", "the paper's own numbers", "our runs"]
    header += ["seeds for a chance of 0.5 / 0.8", "verdict"]
    rows = []
    for index, (claim, word, paper, ours) in enumerate(results, 1):
        note = f" **Note:** {claim.note}" if claim.note and word != NOT_JUDGED else ""
        chance = (chances or {}).get(claim.id, DASH)
        quote = f"“{claim.quote.strip()}”{note}"
        rows.append([str(index), quote, claim.judged_as, claim.place, paper, ours, chance, word])
    return Table("claims", f"Claims: {protocol.words}", header, rows, labels=len(header))


def _said(statement):
    """What a statement says beyond "better": ", within -0.1 and +0.5"."""
    if statement.is_gain:
        return ""
    return f" (between {signed(statement.least, 1)} and {signed(statement.most, 1)})"


def statement_tables(claims, judged):
    """For each table of the paper, every comparison that the claims make in it."""
    header = ["Network", "Data", "A", "B", "claims", "paper A - B", "ours A - B", "95 % interval"]
    header += ["P(A above B)", "n", "p", "p (Holm)", "A above B?"]
    tables = []
    for number, statements in families(claims).items():
        family, rows = [judged[statement] for statement in statements], []
        for part in family:
            s, ours = part.statement, part.comparison
            about = [str(n) for n, claim in enumerate(claims, 1) if s in claim.statements]
            row = [NETWORK_TITLE[s.model], DATA_TITLE[s.data], s.a, s.b + _said(s)]
            row += [", ".join(about), signed(s.paper), signed(ours.mean), interval(ours)]
            row += [rounded(ours.wins, 2), str(ours.n), p_value(ours.p), p_value(part.adjusted_p)]
            rows.append([*row, in_words(part.verdict, ours.n, part.needed)])
        needed = pairs_to_reach(len(rows))
        note = f"{len(rows)} comparisons: with fewer than {needed} pairs none can be significant."
        notes = [note, *pair_notes([part.pairs for part in family])]
        records = pd.DataFrame({"n": [part.comparison.n for part in family]})
        name, title = f"claims-table{number}", f"Comparisons of Table {number}"
        tables.append(Table(name, title, header, rows, notes, records, labels=4))
    return tables


def claims_in_short(results):
    """How many claims there are, which of them the paper's own numbers contradict, our verdicts."""
    contradicted = [
        str(index)
        for index, result in enumerate(results, 1)
        if result.paper.startswith("CONTRADICT")
    ]
    return (
        f"{len(results)} comparative claims of the paper. Its own numbers contradict "
        f"{len(contradicted)} of them (number {' and '.join(contradicted) or '-'}). Our verdicts: "
        f"{_count(result.verdict for result in results)}."
    )


def read_chances(results):
    """{claim's id: "20 / 25"} of power.csv; empty where it was not made."""
    file = Path(results) / "power.csv"
    if not file.exists():
        return {}
    rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    return {row.claim: f"{row.half} / {row.four_fifths}" for row in rows.itertuples()}


def claims_page(claims, runs, protocol, complexity, chances=None):
    """results/claims.md as text."""
    judged = judge_statements(claims, select(runs, protocol))
    results = judge(claims, judged, complexity)
    parts = [
        f"# What the paper claims, and what the runs say ({protocol.words})",
        "Made by `python scripts/tables.py` from `results/claims.yaml`, `results/paper.csv`, "
        "`results/power.csv` and `results/runs.csv`. The paper is retracted; it reports one number "
        "for each network and no deviation.",
        claims_in_short(results),
        markdown_rows(summary_table(results, protocol, chances)),
        METHOD,
    ]
    for table in statement_tables(claims, judged):
        parts += [f"## {table.title}", markdown_rows(table), *table.notes]
    return "\n\n".join(parts) + "\n"
