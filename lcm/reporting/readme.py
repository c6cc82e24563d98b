"""The result blocks of a README, generated between `<!-- results:begin NAME -->` and `<!-- results:end -->`."""

import re
from collections import Counter
from pathlib import Path

from lcm.errors import UserError
from lcm.reporting.claims import claims_in_short, judge, judge_statements, read_claims
from lcm.reporting.cost import card_steps, cells, cost_block, cost_cpu_block, duration, hours
from lcm.reporting.protocol import (
    ATTENTIONS,
    DATA_TITLE,
    NETWORK_TITLE,
    Protocol,
    in_order,
    protocols,
    select,
    title,
)
from lcm.reporting.records import read_records
from lcm.reporting.render import (
    DASH,
    accuracy,
    accuracy_in_words,
    as_printed,
    elapsed,
    inert,
    markdown_rows,
    pipes,
    plural,
    rounded,
    signed,
)
from lcm.reporting.statistics import (
    CONTRADICTED,
    MINIMUM_PAIRS,
    SUPPORTED,
    VERDICTS,
    pairs_to_reach,
)
from lcm.reporting.tables import build, comparison_table, counts, read_complexity, read_paper

_BLOCK = re.compile(r"(<!-- results:begin (\S+) -->\n).*?(<!-- results:end -->)", re.DOTALL)
REACHED = 0.6  # points from the paper's number within which a baseline counts as reached


def _difference(record):
    """`+0.12 [-0.10, +0.34]`, bold where the verdict is decided; `+0.12 (2 pairs)` where these are too few for an interval."""
    if record is None or not record.pairs:
        return DASH
    text = signed(record.difference)
    if record.low is None:
        return f"{text} ({plural(record.pairs, 'pair')})"
    text += f" [{signed(record.low)}, {signed(record.high)}]"
    return f"**{text}**" if record.verdict in (SUPPORTED, CONTRADICTED) else text


def summary(runs, results):
    """What was found so far: the difference of every attention from none on each network and data set that has runs, and how many
    claims have which verdict."""
    others = [name for name in in_order([*ATTENTIONS, *runs["attention"]]) if name != "none"]
    header, rows = ["data", "network", "schedule", "precision", "none", *others], []
    for protocol in protocols(runs):
        selection = select(runs, protocol)
        records = comparison_table(selection, protocol).records.itertuples()
        records = {(record.data, record.model, record.attention): record for record in records}
        for (data, model), own in selection.groups().items():
            names = [DATA_TITLE.get(data, data), NETWORK_TITLE.get(model, model)]
            names += [protocol.schedule_of(data), protocol.precision]
            baseline = accuracy(own.loc[own["attention"] == "none", "test_top1"])
            rows.append(
                [
                    *names,
                    baseline,
                    *(_difference(records.get((data, model, other))) for other in others),
                ]
            )
    claims = read_claims(Path(results) / "claims.yaml")
    judged = judge_statements(claims, runs, Protocol())
    verdicts = claims_in_short(judge(claims, judged, read_complexity(results)))
    if not rows:
        return f"Nothing was run yet. {verdicts}"
    legend = (
        "Test top-1 (%) of the last epoch for `none`, mean ± standard deviation (seeds); for the others the paired "
        "difference from it, mean and 95 % interval over the seeds (too narrow where they are few). Bold: interval "
        "and exact test, corrected for the comparisons of the row, agree that it is not zero; with fewer than "
        f"{pairs_to_reach(len(others))} seeds nothing in a row of {len(others)} comparisons can be bold."
    )
    return f"{pipes(header, rows, labels=4)}\n\n{legend}\n\n{verdicts}"


def findings(runs, results):
    """The state of knowledge, {heading: words}: the paper's counts, its accuracies, and what would decide about the modules."""
    judged = judge_statements(read_claims(Path(results) / "claims.yaml"), runs, Protocol())
    return {
        "Counts": _counts(results),
        "Accuracy": " ".join(
            filter(None, [_baselines(runs, results), _effort(runs, results), _modules(judged)])
        ),
        "What would decide": _decisive(results, judged),
    }


def bullets(found):
    """`findings` as a list in Markdown."""
    return "\n".join(f"* **{name}**: {words}" for name, words in found.items())


def _counts(results):
    """How many of the paper's printed counts equal ours, rounded as the paper rounded them."""
    paper = read_paper(results).drop_duplicates(["table", "label"])
    ours = paper.merge(read_complexity(results), how="left", on=["table", "model", "attention"])
    params = zip(ours["params"] / 1e6, ours["params_m"], strict=True)
    gfloat = zip(ours["gfloat"], ours["gflops"], strict=True)
    equal = sum(as_printed(exact, printed) == printed for exact, printed in [*params, *gfloat])
    return f"the networks here have {equal} of the paper's {2 * len(ours)} printed counts (`results/complexity.csv`)."


def _baselines(runs, results):
    """Whether the networks without attention reach the paper's accuracies under its own schedule."""
    near, far = (
        f"within {REACHED} points of the paper's number",
        f"more than {REACHED} points from the paper's number",
    )
    arms, words = select(runs, Protocol()).arms(), {near: [], far: []}
    paper = read_paper(results).drop_duplicates(["data", "model", "attention", "metric"])
    baselines = paper[(paper["attention"] == "none") & (paper["metric"] == "top1")]
    for row in baselines.itertuples():
        arm = arms.get((row.data, row.model, "none"))
        if arm is not None:
            difference = arm["test_top1"].mean() - row.value
            text = f"{title(row.data, row.model)} ({accuracy_in_words(arm['test_top1'])}, "
            text += f"{signed(difference)} from the paper's {rounded(row.value, 2)})"
            words[near if abs(difference) <= REACHED else far].append(text)
    if not any(words.values()):
        return (
            f"none of the paper's {len(baselines)} baselines (networks without attention) was run under its own schedule yet"
            f"{' (shorter ones: table below)' if len(runs) else ''}, so its accuracies are untested."
        )
    found = [f"{word}: {', '.join(names)}" for word, names in words.items() if names]
    missing = len(baselines) - sum(map(len, words.values()))
    ending = f" Not run yet: the other {missing} baselines." if missing else ""
    return f"baselines (networks without attention) {'; '.join(found)}.{ending}"


def _effort(runs, results):
    """How long the runs of the paper's protocol took, on which devices, and how often they were interrupted."""
    runs = select(runs, Protocol()).runs
    if runs.empty:
        return ""
    records, _ = read_records(Path(results) / "metrics")
    names = set(runs["run"])
    count = sum(run.get("interruptions", 0) for run, _ in records if run["run"] in names)
    devices = inert("; ".join(sorted(set(runs["device"]))))
    return (
        f"Under the paper's schedule {plural(len(runs), 'run')} took {elapsed(runs['seconds'].sum())} in all, on {devices}, "
        f"with {plural(count, 'interruption')}."
    )


def _modules(judged):
    """What the number of pairs under the paper's schedule can say about the modules."""
    pairs = max((part.comparison.n for part in judged.values()), default=0)
    if pairs < MINIMUM_PAIRS:
        have = f"no comparison has more than {pairs}" if pairs else "there is none yet"
        return f"Nothing can be said about the modules: a test needs {MINIMUM_PAIRS} pairs of runs, and {have}."
    words = [part.verdict for part in judged.values()]
    counts = ", ".join(f"{words.count(word)} are {word}" for word in VERDICTS)
    return f"Of the comparisons that the paper makes {counts}."


def _decisive(results, judged):
    """The cheapest table of the paper, with the fewest seeds that can decide."""
    seconds, how = card_steps(results)
    families = Counter(statement.table for statement in judged)
    options = []
    for table, runs in cells(results).items():
        seeds, time = pairs_to_reach(families[table]), hours(runs, seconds)
        options.append((float("inf") if time is None else time * seeds, table, seeds, len(runs)))
    time, table, seeds, runs = min(options)
    time = duration(None if time == float("inf") else time, 1)
    known = "as measured" if how.startswith("Measured") else "at least, as computed"
    return (
        f"`python train.py experiment=table{table} seed='range({seeds})'`: {seeds * runs} runs, {time} on one card {known}. "
        f"After correction for the table's {families[table]} comparisons no test of fewer than {seeds} seeds can decide."
    )


def fill_readme(text, blocks):
    """`text` with every part between `<!-- results:begin NAME -->` and `<!-- results:end -->` replaced by `blocks[NAME]`.

    Raises UserError for a name that there is no block for.
    """

    def fill(match):
        if match[2] not in blocks:
            raise UserError(
                f"README: no result is called {match[2]}; there are {', '.join(sorted(blocks))}"
            )
        return f"{match[1]}{blocks[match[2]]}\n{match[3]}"

    return _BLOCK.sub(fill, text)


def readme_blocks(runs, results):
    """{name: Markdown} of all blocks that a README may show: `findings`, `summary`, `cost` and others, and every table."""
    found = findings(runs, results)
    blocks = {
        "accuracies": found["Accuracy"][0].upper() + found["Accuracy"][1:],
        "counts": markdown_rows(counts(runs)) if len(runs) else "Nothing was run yet.",
        "findings": bullets(found),
        "summary": summary(runs, results),
        "cost": cost_block(results),
        "cost_cpu": cost_cpu_block(results),
    }
    for protocol in protocols(runs):
        for table in build(runs, protocol, results):
            hint = (
                f"\n\nDashes: not run yet; the commands are in `results/{table.name}.md`."
                if table.missing
                else ""
            )
            blocks[table.name] = markdown_rows(table) + hint
    return blocks
