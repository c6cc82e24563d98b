"""The paper's comparative statements, judged by paired runs: results/claims.yaml -> results/claims.md."""

from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pandas as pd
import yaml

from lcm.errors import UserError
from lcm.reporting import statistics
from lcm.reporting.paired import pair_notes, paired
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
from lcm.reporting.statistics import (
    Comparison,
    compare,
    every,
    holm,
    pairs_to_reach,
    seeds_needed,
    verdict,
)

COUNTS = {"params": "parameters", "gfloat": "GFloat", "macs": "multiply-accumulates"}
NOT_JUDGED = "not judged"
METHOD = (
    "An `every` claim has the worst verdict of its comparisons; a comparison is **supported** (the 95 % interval of "
    "the paired difference lies above zero and the corrected p-value is at most 0.05), **contradicted** (the same "
    "below zero), **inconclusive** (anything else) or **untestable** (fewer than 6 pairs of seeds: an exact two-sided"
    " test cannot reach 0.05). One contradicted comparison contradicts such a claim only where its p-value, corrected over the "
    "claim's own comparisons, is at most 0.05 too. An average is one test of its own. Intervals: BCa bootstrap, too narrow "
    "where seeds are few; p: exact sign-flip test, Holm's correction over all comparisons of one table of the paper, with runs "
    "or without; methods and sources: `lcm/reporting/statistics.py`; error rates and power: `results/power.md`."
)


class Statement(NamedTuple):
    """One comparison of the paper in top-1: arm `a`, said to be better, against arm `b`; `paper` is its a - b in points."""

    table: int
    model: str
    data: str
    a: str
    b: str
    paper: float
    margin: float = 0.0


class Claim(NamedTuple):
    """A sentence of the paper with the statements it rests on; results/claims.yaml explains the fields."""

    id: str
    place: str
    quote: str
    holds_if: str
    statements: tuple = ()
    note: str = ""
    cost: dict | None = None
    limits: dict | None = None


class Judged(NamedTuple):
    """What the runs say about a statement, and how many pairs would show a difference of the paper's size."""

    statement: Statement
    pairs: pd.DataFrame
    comparison: Comparison
    adjusted_p: float | None
    verdict: str
    seeds_needed: int | None


class JudgedClaim(NamedTuple):
    """A claim with its verdict, and in words what the paper's own numbers and what the runs say."""

    claim: Claim
    verdict: str
    paper: str
    ours: str


def read_claims(file):
    """claims.yaml as a list of Claim. Raises UserError where it is missing."""
    try:
        entries = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{file} is missing: it belongs to the repository; bring it back with git checkout"
        ) from None
    own = {
        entry["id"]: [
            Statement(**facts, margin=entry.get("margin", 0.0))
            for facts in entry.get("comparisons", [])
        ]
        for entry in entries
    }
    claims = []
    for entry in entries:
        statements = [s for other in entry.get("comparisons_of", []) for s in own[other]] + own[
            entry["id"]
        ]
        statements = tuple(sorted(dict.fromkeys(statements), key=lambda s: s.table))
        facts = {key: value for key, value in entry.items() if key in Claim._fields}
        claims.append(Claim(**facts, statements=statements))
    return claims


def judge_statements(claims, runs, protocol):
    """{statement: Judged} for every statement of the claims, in the order of the paper's tables and networks.

    Holm's correction is over all statements about one of the paper's tables, those without runs too.
    """
    selection = select(runs, protocol)
    arms, empty, networks, judged = selection.arms(), selection.runs[:0], list(NETWORK_TITLE), {}
    statements = sorted(
        {statement for claim in claims for statement in claim.statements},
        key=lambda s: (s.table, networks.index(s.model), s.data, s.b != "none", s.b, s.a, s.margin),
    )
    for table in sorted({statement.table for statement in statements}):
        family = [statement for statement in statements if statement.table == table]
        pairs = [
            paired(*(arms.get((s.data, s.model, arm), empty) for arm in (s.a, s.b))) for s in family
        ]
        compared = [
            compare(found["difference"], null=-s.margin)
            for s, found in zip(family, pairs, strict=True)
        ]
        adjusted = holm([comparison.p for comparison in compared])
        for statement, found, comparison, p in zip(family, pairs, compared, adjusted, strict=True):
            needed = seeds_needed(
                statement.paper + statement.margin, comparison.deviation, len(family)
            )
            word = verdict(comparison, p, -statement.margin)
            judged[statement] = Judged(statement, found, comparison, p, word, needed)
    return judged


def judge(claims, judged, complexity):
    """Every claim judged, in order: a list of JudgedClaim. `judged` is what `judge_statements` returned."""
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
        f"Table {s.table}, {NETWORK_TITLE[s.model]}, {DATA_TITLE[s.data]}: {s.a} against {s.b} {signed(s.paper)}"
        for s in claim.statements
        if s.paper <= -s.margin
    )
    paper = f"CONTRADICT it ({against})" if against else f"hold in {len(parts)} of {len(parts)}"
    word = every((part.comparison, part.adjusted_p, -part.statement.margin) for part in parts)
    return (
        word,
        paper,
        f"{plural(len(parts), 'comparison')}: {_count(part.verdict for part in parts)}",
    )


def _on_average(claim, parts):
    """By the mean over the claim's statements, seed by seed: only seeds that every statement has."""
    mean = fmean(s.paper for s in claim.statements)
    paper = (
        f"{'hold' if mean > 0 else 'CONTRADICT it'}: {signed(mean)} over {len(parts)} comparisons"
    )
    differences = [
        dict(zip(part.pairs["seed"], part.pairs["difference"], strict=True)) for part in parts
    ]
    seeds = sorted(set.intersection(*map(set, differences)))
    comparison = compare([fmean(d[seed] for d in differences) for seed in seeds])
    ours = "no seed has all of them"
    if comparison.n:
        ours = f"{signed(comparison.mean)} {interval(comparison)}, p {p_value(comparison.p)}, n {comparison.n}"
    return verdict(comparison, comparison.p), paper, ours


def _cost(claim, complexity):
    """By the exact counts: what an arm `a` adds to arm `b`, in percent, where it adds most."""
    base = complexity[complexity["attention"] == claim.cost["b"]]
    rows = complexity[complexity["attention"].isin(claim.cost["a"])].merge(
        base, on=["table", "model"]
    )
    paper = "see Tables 1 to 5"
    if rows.empty:
        return (
            statistics.UNTESTABLE,
            paper,
            "not counted: `python scripts/complexity.py --csv results/complexity.csv`",
        )
    most = {
        key: 100 * (rows[f"{key}_x"].astype(float) / rows[f"{key}_y"].astype(float) - 1).max()
        for key in claim.limits
    }
    within = all(most[key] <= limit for key, limit in claim.limits.items())
    word = statistics.SUPPORTED if within else statistics.CONTRADICTED
    ours = "at most " + ", ".join(
        f"{signed(percent)} % {COUNTS[key]}" for key, percent in most.items()
    )
    return (
        word,
        paper,
        f"{ours} (limits {', '.join(f'{limit} %' for limit in claim.limits.values())})",
    )


def _count(words):
    return ", ".join(f"{count} {word}" for word, count in Counter(words).items())


def summary_table(results, protocol):
    """One row per claim."""
    header = ["", "the paper says", "where", "the paper's own numbers", "our runs", "verdict"]
    rows = []
    for index, (claim, word, paper, ours) in enumerate(results, 1):
        note = f" **Note:** {claim.note}" if claim.note and word != NOT_JUDGED else ""
        rows.append([str(index), f"“{claim.quote.strip()}”{note}", claim.place, paper, ours, word])
    return Table("claims", f"Claims: {protocol.words}", header, rows, labels=len(header))


def statement_tables(claims, judged):
    """For each table of the paper, every comparison that the claims make in it."""
    header = [
        "Network",
        "Data",
        "A",
        "B",
        "claims",
        "paper A - B",
        "ours A - B",
        "95 % interval",
        "P(A above B)",
        "n",
    ]
    header += ["p", "p (Holm)", "seeds needed", "A above B?"]
    tables = []
    for number in sorted({statement.table for statement in judged}):
        family = [part for statement, part in judged.items() if statement.table == number]
        rows = []
        for statement, _, comparison, p, word, needed in family:
            about = f" (by no more than {statement.margin:g} below)" if statement.margin else ""
            names = [
                NETWORK_TITLE[statement.model],
                DATA_TITLE[statement.data],
                statement.a,
                statement.b + about,
            ]
            numbers = ", ".join(
                str(n) for n, claim in enumerate(claims, 1) if statement in claim.statements
            )
            ours = [
                signed(statement.paper),
                signed(comparison.mean),
                interval(comparison),
                rounded(comparison.wins, 2),
            ]
            tests = [
                str(comparison.n),
                p_value(comparison.p),
                p_value(p),
                str(needed or DASH),
                word,
            ]
            rows.append([*names, numbers, *ours, *tests])
        note = (
            f"{len(rows)} comparisons: no corrected p-value can reach 0.05 with fewer than {pairs_to_reach(len(rows))} "
            "pairs. Seeds needed: pairs that would show a difference of the paper's size with probability 0.8 after the "
            "correction, given the deviation of our paired differences."
        )
        notes = [note, *pair_notes([part.pairs for part in family])]
        records = pd.DataFrame({"n": [part.comparison.n for part in family]})
        name = f"claims-table{number}"
        tables.append(
            Table(name, f"Comparisons of Table {number}", header, rows, notes, records, labels=4)
        )
    return tables


def claims_in_short(results):
    """How many claims there are, which the paper's own numbers contradict, and our verdicts, in three sentences."""
    contradicted = [
        str(index)
        for index, result in enumerate(results, 1)
        if result.paper.startswith("CONTRADICT")
    ]
    return (
        f"{len(results)} comparative claims of the paper. Its own numbers contradict {len(contradicted)} of them "
        f"(number {' and '.join(contradicted) or '-'}). Our verdicts: {_count(result.verdict for result in results)}."
    )


def claims_page(claims, runs, protocol, complexity):
    """results/claims.md as text."""
    judged = judge_statements(claims, runs, protocol)
    results = judge(claims, judged, complexity)
    parts = [
        f"# What the paper claims, and what the runs say ({protocol.words})",
        "Made by `python scripts/tables.py` from `results/claims.yaml`, `results/paper.csv` and `results/runs.csv`. The paper is "
        "retracted; it reports one number for each network and no deviation.",
        claims_in_short(results),
        markdown_rows(summary_table(results, protocol)),
        METHOD,
    ]
    for table in statement_tables(claims, judged):
        parts += [f"## {table.title}", markdown_rows(table), *table.notes]
    return "\n\n".join(parts) + "\n"
