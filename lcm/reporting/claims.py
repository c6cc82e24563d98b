"""The paper's comparative statements, judged by paired runs: results/claims.yaml -> results/claims.md."""

import difflib
import statistics
from pathlib import Path
from typing import NamedTuple

import yaml

from lcm.errors import UserError
from lcm.reporting.render import DASH, Table, interval, markdown_rows, p_value, rounded, signed
from lcm.reporting.selection import DATA_TITLE, METRIC_TITLE, NETWORK_TITLE, paired, select
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

KINDS = ("every", "on_average", "cost", "not_judged")


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
    def holds_in_the_paper(self):
        return self.paper > -self.margin


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
    """A contest, what the runs say about it, and how many pairs would show a difference of the paper's size."""

    contest: Contest
    comparison: Comparison
    adjusted_p: float | None
    verdict: str
    seeds_needed: int | None


class CostRow(NamedTuple):
    """How much arm `a` costs above arm `b`, in percent, by the exact counts."""

    model: str
    a: str
    b: str
    params: float
    gfloat: float
    macs: float
    added_params: int


class JudgedClaim(NamedTuple):
    claim: Claim
    verdict: str | None  # None where no number of this repository decides it
    paper: str  # what the paper's own numbers say
    ours: str  # what the runs say, in short
    comparison: Comparison | None = None  # of an average


def read_claims(file):
    """claims.yaml as a list of Claim. Raises UserError where it is malformed."""
    try:
        entries = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing: it belongs to the repository; bring it back with git checkout") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not YAML: {error}") from None
    own, claims = {}, []
    known = {"id", "place", "quote", "holds_if", "margin", "comparisons", "comparisons_of", "note", "cost", "limits"}
    try:
        for entry in entries:
            for key in entry.keys() - known:
                near = difflib.get_close_matches(key, known, 1)
                raise UserError(f"{file}: {entry.get('id')}: no key {key}" + (f"; nearest: {near[0]}" if near else ""))
            if entry["holds_if"] not in KINDS:
                raise UserError(
                    f"{file}: {entry['id']}: holds_if is one of {', '.join(KINDS)}, not {entry['holds_if']}"
                )
            if entry["id"] in own:
                raise UserError(f"{file}: two claims are called {entry['id']}")
            margin = float(entry.get("margin", 0))
            own[entry["id"]] = [Contest(**comparison, margin=margin) for comparison in entry.get("comparisons", [])]
        for entry in entries:
            contests = [c for other in entry.get("comparisons_of", []) for c in own[other]] + own[entry["id"]]
            facts = {key: entry[key] for key in ("id", "place", "quote", "holds_if")}
            extra = {key: entry[key] for key in ("note", "cost", "limits") if key in entry}
            claims.append(
                Claim(**facts, contests=tuple(sorted(dict.fromkeys(contests), key=lambda c: c.table)), **extra)
            )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{file}: a claim is malformed ({type(error).__name__}: {error}); its head says what one has"
        ) from None
    return claims


def _differences(selection, contest):
    a, b = (selection.arm(contest.data, contest.model, arm) for arm in (contest.a, contest.b))
    return paired(a, b, contest.metric)


def judge_contests(claims, runs, protocol):
    """{contest: Judged} for every contest of the claims, in the order of the paper's tables and networks.

    Holm's correction is over the contests of one of the paper's tables.
    """
    selection = select(runs, protocol)
    networks = list(NETWORK_TITLE)
    contests = sorted(
        {contest for claim in claims for contest in claim.contests},
        key=lambda c: (c.table, networks.index(c.model), c.data, c.b != "none", c.b, c.a, c.margin),
    )
    judged = {}
    for table in sorted({contest.table for contest in contests}):
        family = [contest for contest in contests if contest.table == table]
        compared = [compare(list(_differences(selection, c).values()), null=-c.margin) for c in family]
        for contest, comparison, p in zip(family, compared, holm([c.p for c in compared]), strict=True):
            needed = seeds_needed(contest.paper + contest.margin, comparison.deviation, len(family))
            judged[contest] = Judged(contest, comparison, p, verdict(comparison, p, -contest.margin), needed)
    return judged


def cost_rows(claim, complexity):
    """What a claim about cost compares: one CostRow for each network and arm, in the paper's order."""
    rows = {}
    for (table, model, attention), counts in complexity.items():
        base = complexity.get((table, model, claim.cost["b"]))
        if attention in claim.cost["a"] and base:
            above = [100 * (float(x) / float(y) - 1) for x, y in zip(counts, base, strict=True)]
            rows.setdefault(
                (model, attention), CostRow(model, attention, claim.cost["b"], *above, added_params=counts[0] - base[0])
            )
    return list(rows.values())


def _average(claim, selection):
    """The mean over the claim's contests, seed by seed: only seeds that every contest has."""
    differences = [_differences(selection, contest) for contest in claim.contests]
    seeds = sorted(set.intersection(*map(set, differences)))
    return compare([statistics.fmean(d[seed] for d in differences) for seed in seeds])


def _count(words):
    words = list(words)
    return ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(words))


def judge(claims, judged, runs, protocol, complexity):
    """Every claim judged, in order: a list of JudgedClaim. `judged` is what `judge_contests` returned."""
    selection = select(runs, protocol)
    results = []
    for claim in claims:
        contests = claim.contests
        if claim.holds_if == "every":
            against = [c for c in contests if not c.holds_in_the_paper]
            paper = f"hold in {len(contests) - len(against)} of {len(contests)}"
            if against:
                paper = f"CONTRADICT it ({_list(against)})"
            words = [judged[c].verdict for c in contests]
            ours = f"{len(words)} comparison{'s' * (len(words) > 1)}: {_count(words)}"
            parts = [(judged[c].comparison, judged[c].adjusted_p, -c.margin) for c in contests]
            results.append(JudgedClaim(claim, every(parts), paper, ours))
        elif claim.holds_if == "on_average":
            mean = statistics.fmean(c.paper for c in contests)
            paper = f"{'hold' if mean > 0 else 'CONTRADICT it'}: {signed(mean)} over {len(contests)} comparisons"
            comparison = _average(claim, selection)
            ours = "no seed has all of them"
            if comparison.n:
                ours = f"{signed(comparison.mean)} {interval(comparison)}, p {p_value(comparison.p)}, n {comparison.n}"
            results.append(JudgedClaim(claim, verdict(comparison, comparison.p), paper, ours, comparison))
        elif claim.holds_if == "cost":
            rows = cost_rows(claim, complexity)
            word, ours = UNTESTABLE, "not counted: `python scripts/complexity.py --csv results/complexity.csv`"
            if rows:
                worst = {key: max(getattr(row, key) for row in rows) for key in claim.limits}
                word = SUPPORTED if all(worst[key] <= limit for key, limit in claim.limits.items()) else CONTRADICTED
                names = {"params": "parameters", "gfloat": "GFloat", "macs": "multiply-accumulates"}
                ours = "at most " + ", ".join(f"{signed(worst[key])} % {names[key]}" for key in claim.limits)
                ours += " (limits " + ", ".join(f"{limit} %" for limit in claim.limits.values()) + ")"
            results.append(JudgedClaim(claim, word, "see the counts below", ours))
        else:
            results.append(JudgedClaim(claim, None, DASH, claim.note))
    return results


def _list(contests):
    return "; ".join(
        f"Table {c.table}, {NETWORK_TITLE.get(c.model, c.model)}, {DATA_TITLE[c.data]}: {c.a} against {c.b} {signed(c.paper)}"
        for c in contests
    )


def summary_table(results, protocol):
    """One row a claim."""
    header = ["", "the paper says", "where", "the paper's own numbers", "our runs", "verdict"]
    rows = []
    for index, result in enumerate(results, 1):
        claim = result.claim
        note = f" **Note:** {claim.note}" if claim.note and claim.holds_if != "not_judged" else ""
        word = f"**{result.verdict}**" if result.verdict else "not judged"
        rows.append([str(index), f"“{claim.quote.strip()}”{note}", claim.place, result.paper, result.ours, word])
    return Table("claims", f"Claims: {protocol.words}", [], header, rows, [], [], [], labels=len(header))


def contest_table(number, claims, judged):
    """Every comparison that the claims make in table `number` of the paper."""
    numbers = {}
    for index, claim in enumerate(claims, 1):
        for contest in claim.contests:
            numbers.setdefault(contest, []).append(str(index))
    header = ["Network", "Data", "A", "B", "claims", "paper A - B", "ours A - B", "95 % interval", "P(A above B)", "n"]
    header += ["p", "p (Holm)", "seeds needed", "A above B?"]
    rows, records = [], []
    for contest, (_, comparison, p, word, needed) in judged.items():
        if contest.table != number:
            continue
        metric = f" {METRIC_TITLE[contest.metric]}" if contest.metric != "top1" else ""
        about = f" (by no more than {contest.margin:g} below)" if contest.margin else ""
        rows.append(
            [
                NETWORK_TITLE.get(contest.model, contest.model),
                DATA_TITLE[contest.data] + metric,
                contest.a,
                contest.b + about,
                ", ".join(numbers[contest]),
                signed(contest.paper),
                signed(comparison.mean),
                interval(comparison),
                rounded(comparison.wins, 2),
                str(comparison.n),
                p_value(comparison.p),
                p_value(p),
                str(needed or DASH),
                word,
            ]
        )
        records.append({"n": comparison.n})
    title = f"Comparisons of Table {number}"
    note = (
        f"{len(rows)} comparisons: no corrected p-value can reach 0.05 with fewer than {pairs_to_reach(len(rows))} pairs. "
        "Seeds needed: pairs that would show a difference of the paper's size with probability 0.8 after the correction, given "
        "the deviation of our paired differences."
    )
    return Table(f"claims-table{number}", title, [note], header, rows, [], records, [], labels=4)


def cost_table(claim, complexity):
    header = ["Network", "A", "B", "parameters", "parameters %", "GFloat %", "multiply-accumulates %"]
    rows = [
        [NETWORK_TITLE.get(r.model, r.model), r.a, r.b, f"{r.added_params:+,}" if r.added_params else "0"]
        + [signed(r.params, 2), signed(r.gfloat, 3), signed(r.macs, 3)]
        for r in cost_rows(claim, complexity)
    ]
    return Table(f"claims-{claim.id}", f"Counts: A above B ({claim.id})", [], header, rows, [], [], [], labels=3)


WORDS = (
    "An `every` claim has the worst verdict of its comparisons; a comparison is **supported** (the 95 % interval of "
    "the paired difference lies above zero and the corrected p-value is at most 0.05), **contradicted** (the same "
    "below zero), **inconclusive** (anything else) or **untestable** (fewer than 6 pairs of seeds: an exact two-sided"
    " test cannot reach 0.05). An average is one test of its own. Intervals: BCa bootstrap, too narrow where seeds "
    "are few; p: exact sign-flip test, Holm's correction over the comparisons of one table of the paper; methods and "
    "sources: `lcm/reporting/statistics.py`; what they can see: `results/power.md`."
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
    results = judge(claims, judged, runs, protocol, complexity)
    parts = [
        f"# What the paper claims, and what the runs say ({protocol.words})",
        "Made by `python scripts/tables.py` from `results/claims.yaml`, `results/paper.csv` and `results/runs.csv`. The paper is "
        "retracted; it reports one number for each network and no deviation.",
        claims_in_short(results),
        markdown_rows(summary_table(results, protocol)),
        WORDS,
    ]
    for number in sorted({contest.table for contest in judged}):
        table = contest_table(number, claims, judged)
        parts += [f"## {table.title}", markdown_rows(table), *table.notes]
    for claim in claims:
        if claim.holds_if == "cost" and cost_rows(claim, complexity):
            table = cost_table(claim, complexity)
            parts += [f"## {table.title}", markdown_rows(table)]
    return "\n\n".join(parts) + "\n"
