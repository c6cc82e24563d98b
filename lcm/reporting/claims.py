"""The paper's comparative statements, judged by paired runs: results/claims.yaml -> claims.md.

A claim is a dict: an entry of claims.yaml, which explains its keys, with `statements`, those of
them that the paper's own numbers do not bear out (`against_it`), and whether these contradict the
claim (`contradicts_itself`). Judged it has three more: `verdict`, and in words what the paper's own
numbers (`paper`) and the runs (`ours`) say.
"""

import itertools
import math
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import pandas as pd
import yaml

from lcm.errors import plural
from lcm.files import read_result
from lcm.reporting.paired import in_family, make_rows, verdict_words
from lcm.reporting.pairs import pair_notes
from lcm.reporting.protocol import DATA_TITLE, NETWORK_TITLE, read_csv, select
from lcm.reporting.render import (
    DASH,
    Table,
    columns,
    interval,
    markdown_rows,
    p_value,
    rounded,
    signed,
)
from lcm.reporting.statistics import (
    CONTRADICTED,
    SUPPORTED,
    compare,
    every,
    pairs_to_reach,
    verdict,
)

COUNTS = {"params": "parameters", "gfloat": "GFloat", "macs": "multiply-accumulates"}
NOT_JUDGED = "not judged"
METHOD = (
    "Accuracies are top-1. A claim has the worst verdict of its comparisons. A comparison is "
    "**supported** (the 95 % interval of the paired difference lies where the claim says and the "
    "corrected p-value is at most 0.05), **contradicted** (the same on the other side), "
    "**inconclusive** (anything else) or **not tested yet** (fewer than 6 pairs of seeds: no exact "
    "two-sided test can reach 0.05). In brackets: the number of pairs, and the fewest with which "
    "any comparison of the table can be significant. One contradicted comparison contradicts a "
    "claim only where its p-value, corrected over the claim's own comparisons, is at most 0.05 "
    "too. A claim about an average is one test. Almost the same: two one-sided tests. Intervals: "
    "BCa bootstrap, too narrow where seeds are few; P: share of pairs with A above B, a tie counts "
    "half; p: sign-flip test, exact up to 20 pairs, 9,999 random patterns above. Holm's correction "
    "is over all comparisons that the claims make in one table of the paper, with runs or without; "
    "a comparison that is in two tables has the larger p-value, and needs the larger number of "
    "seeds, in both. Methods and sources: `lcm/reporting/statistics.py`; error rates and power of "
    "the verdicts: `results/power.md`."
)


class Statement(NamedTuple):
    """One comparison of the paper in top-1: arm `a` minus arm `b` is said to lie between `least`
    and `most`, and is `paper` points in its table."""

    data: str
    model: str
    a: str
    b: str
    least: float
    most: float
    table: int
    paper: float

    @property
    def is_gain(self):
        """Whether it says no more than that `a` is better."""
        return (self.least, self.most) == (0, math.inf)

    @property
    def question(self):
        """What the runs are asked: the same for statements of two tables about one comparison."""
        return self[:6]


def read_claims(file, paper):
    """The claims of claims.yaml, with the differences of the paper's numbers (`read_paper`).

    Raises UserError where it is missing.
    """
    claims = yaml.safe_load(read_result(file))
    names = ["table", "model", "data", "attention"]
    # By table too: a difference is taken within one table, although arms stand in several.
    printed = paper[paper["metric"] == "top1"].set_index(names)["value"].to_dict()
    own = {claim["id"]: [] for claim in claims}
    for claim in claims:
        bounds = claim.get("within", (0.0, math.inf))
        for product in claim.get("comparisons", ()):
            # By position: the keys of a product are in the order table, model, data, a, b.
            lists = (found if isinstance(found, list) else [found] for found in product.values())
            for table, model, data, a, b in itertools.product(*lists):
                found = printed[table, model, data, a] - printed[table, model, data, b]
                # Floats: rounded to the paper's two decimals a difference that is a bound
                # equals the bound, and equal statements of two claims are equal keys.
                own[claim["id"]].append(
                    Statement(data, model, a, b, *bounds, table, round(found, 2))
                )
    # A second pass: `comparisons_of` may name a claim that comes later in the file. What
    # several claims state is one comparison: dict.fromkeys keeps it once.
    for claim in claims:
        found = [s for id in (*claim.get("comparisons_of", ()), claim["id"]) for s in own[id]]
        statements = sorted(dict.fromkeys(found), key=lambda s: s.table)
        against = [s for s in statements if not s.least < s.paper < s.most]
        itself = claim["holds_if"] == "every" and bool(against)
        claim |= {"statements": statements, "against_it": against, "contradicts_itself": itself}
    return claims


def families(claims):
    """{table: [its statements]}: what Holm's correction is over, in the order of the pages."""
    networks = list(NETWORK_TITLE)
    # A set: what several claims state about one table is tested, and counted, once. Other
    # bounds for the same arms are another test; -s.least puts it behind that of the plain gain.
    statements = sorted(
        {statement for claim in claims for statement in claim["statements"]},
        key=lambda s: (s.table, networks.index(s.model), s.data, s.b != "none", s.b, s.a, -s.least),
    )
    return {table: list(own) for table, own in itertools.groupby(statements, lambda s: s.table)}


def judge_statements(claims, runs):
    """{statement: its Row} for every statement of the claims, judged by selected runs.

    Holm's correction is over all statements about one of the paper's tables, those without runs
    too. A comparison that stands in two tables has the larger p-value of both, in both.
    """
    # {question: Row}. The larger p-value holds in both families. The rows are handed out after
    # the last table, since a later one may raise the p-value of an earlier one's row.
    strictest = {}
    found = families(claims)
    for family in found.values():
        rows = in_family(make_rows(runs, [s.question for s in family]))
        for s, row in zip(family, rows, strict=True):
            before = strictest.get(s.question, row)
            strictest[s.question] = row._replace(
                adjusted=None if row.adjusted is None else max(row.adjusted, before.adjusted),
                needed=max(row.needed, before.needed),
            )
    return {s: strictest[s.question] for family in found.values() for s in family}


def judge(claims, judged, complexity):
    """Every claim judged, in order; `judged`: see `judge_statements`."""
    results = []
    for claim in claims:
        parts = [judged[statement] for statement in claim["statements"]]
        match claim["holds_if"]:
            case "every":
                result = _every(claim, parts)
            case "on_average":
                result = _on_average(claim, parts)
            case "cost":
                result = _cost(claim, complexity)
            case _:  # not_judged
                result = NOT_JUDGED, DASH, claim["note"]
        results.append(claim | dict(zip(("verdict", "paper", "ours"), result, strict=True)))
    return results


def _every(claim, parts):
    against = "; ".join(
        f"Table {s.table}, {NETWORK_TITLE[s.model]}, {DATA_TITLE[s.data]}: "
        f"{s.a} against {s.b} {signed(s.paper)}"
        for s in claim["against_it"]
    )
    paper = f"CONTRADICT it ({against})" if against else f"hold in {len(parts)} of {len(parts)}"
    word = every((part.comparison, part.adjusted) for part in parts)
    return word, paper, f"{plural(len(parts), 'comparison')}: {_count(p.verdict for p in parts)}"


def _on_average(claim, parts):
    mean = fmean(s.paper for s in claim["statements"])
    holds = "hold" if mean > 0 else "CONTRADICT it"
    paper = f"{holds}: {signed(mean)} over {len(parts)} comparisons"
    # seed by seed: only seeds that each comparison has
    pairs = [part.pairs.set_index("seed")[["difference", "lost"]] for part in parts]
    # The unit of the test is the seed: seeds are independent, comparisons share arms. All parts
    # bring the same column names: pairs["difference"] is a DataFrame (seeds, comparisons).
    pairs = pd.concat(pairs, axis=1, join="inner").sort_index()
    # one diverged run is enough for its seed to count against the side that lost it
    lost = pairs["lost"].sum(axis=1).clip(-1, 1)
    found, ours = compare(pairs["difference"].mean(axis=1), lost=lost), "no seed has all of them"
    if found.n:
        ends = interval(found.low, found.high)
        ours = f"{signed(found.mean)} {ends}, p {p_value(found.p)}, n {found.n}"
    # A single test: its own p-value, without a correction.
    return verdict(found, found.p), paper, ours


def _cost(claim, complexity):
    """By the exact counts: what an arm `a` adds to arm `b`, in percent, where it adds most."""
    base = complexity[complexity["attention"] == claim["cost"]["b"]]
    arms = complexity[complexity["attention"].isin(claim["cost"]["a"])]
    # In the columns _x is an arm of `a`, _y is `b` in the same table.
    rows = arms.merge(base, on=["table", "model"])
    # Where a claim says that counts are the same, a saving counts as much as an addition.
    size = abs if claim["cost"].get("either_way") else float
    most = {
        key: max(100 * (rows[f"{key}_x"] / rows[f"{key}_y"] - 1), key=size)
        for key in claim["limits"]
    }
    ours = ", ".join(f"{signed(percent)} % {COUNTS[key]}" for key, percent in most.items())
    limits = ", ".join(f"{limit} %" for limit in claim["limits"].values())
    within = all(size(most[key]) <= limit for key, limit in claim["limits"].items())
    word = SUPPORTED if within else CONTRADICTED
    return word, "see Tables 1 to 5", f"at most {ours} (limits {limits})"


def _count(words):
    return ", ".join(f"{count} {word}" for word, count in Counter(words).items())


def summary_table(results, chances):
    """One row per judged claim. chances: {claim's id: "20 / 25"}, the seeds of power.csv."""
    rows = []
    for number, claim in enumerate(results, 1):
        noted = "note" in claim and claim["verdict"] != NOT_JUDGED
        rows.append(
            {
                "": str(number),
                "the paper says": f"“{claim['quote'].strip()}”"
                + (f" **Note:** {claim['note']}" if noted else ""),
                "judged as": claim["judged_as"],
                "where": claim["place"],
                "the paper's own numbers": claim["paper"],
                "our runs": claim["ours"],
                "seeds for a chance of 0.5 / 0.8": chances.get(claim["id"], DASH),
                "verdict": claim["verdict"],
            }
        )
    return Table("claims", "", *columns(rows), labels=len(rows[0]))


def statement_tables(claims, judged):
    """For each table of the paper, every comparison that the claims make in it."""
    tables = []
    for table, family in families(claims).items():
        rows = []
        for s in family:
            ours = judged[s].comparison
            about = [str(n) for n, claim in enumerate(claims, 1) if s in claim["statements"]]
            within = "" if s.is_gain else f" (between {s.least:+.1f} and {s.most:+.1f})"
            rows.append(
                {
                    "Network": NETWORK_TITLE[s.model],
                    "Data": DATA_TITLE[s.data],
                    "A": s.a,
                    "B": s.b + within,
                    "claims": ", ".join(about),
                    "paper A - B": signed(s.paper),
                    "ours A - B": signed(ours.mean),
                    "95 % interval": interval(ours.low, ours.high),
                    "P(A above B)": rounded(ours.wins, 2),
                    "n": str(ours.n),
                    "p": p_value(ours.p),
                    "p (Holm)": p_value(judged[s].adjusted),
                    "A above B?": verdict_words(judged[s].verdict, ours.n, judged[s].needed),
                }
            )
        notes = [
            f"{len(rows)} comparisons: with fewer than {pairs_to_reach(len(rows))} pairs none can "
            "be significant.",
            *pair_notes([judged[s].pairs for s in family]),
        ]
        # For `Table.filled`; there is no CSV file of these tables.
        records = pd.DataFrame({"n": [judged[s].comparison.n for s in family]})
        tables.append(
            Table("", f"Comparisons of Table {table}", *columns(rows), notes, records, labels=4)
        )
    return tables


def read_chances(results):
    """{claim's id: "20 / 25"} of power.csv. Raises UserError where it is missing."""
    return {
        row["claim"]: f"{row['half']} / {row['four_fifths']}"
        for row in read_csv(Path(results) / "power.csv")
    }


def claims_page(claims, runs, protocol, complexity, chances):
    """results/claims.md as text."""
    judged = judge_statements(claims, select(runs, protocol))
    results = judge(claims, judged, complexity)
    contradicted = [
        str(number)
        for number, claim in enumerate(results, 1)
        if claim["paper"].startswith("CONTRADICT")
    ]
    parts = [
        f"# What the paper claims, and what the runs say ({protocol.words})",
        "Made by `python scripts/tables.py` from `results/claims.yaml`, `results/paper.csv`, "
        "`results/power.csv` and `results/runs.csv`. The paper is retracted; it reports one number "
        "for each network and no deviation.",
        f"{len(results)} comparative claims of the paper. Its own numbers contradict "
        f"{len(contradicted)} of them (numbers {' and '.join(contradicted)}). Our verdicts: "
        f"{_count(claim['verdict'] for claim in results)}.",
        markdown_rows(summary_table(results, chances)),
        METHOD,
    ]
    for table in statement_tables(claims, judged):
        parts += [f"## {table.title}", markdown_rows(table), *table.notes]
    return "\n\n".join(parts) + "\n"
