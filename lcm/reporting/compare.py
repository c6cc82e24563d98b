"""Any group of runs that differ in attention and seed alone, compared arm by arm, whatever their data and schedule."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import yaml

from lcm.config.identity import NO_DEVIATION, identity, is_under
from lcm.config.options import GROUPS
from lcm.errors import UserError, nearest
from lcm.reporting.collect import Damaged, Run, find_runs, read_run, row
from lcm.reporting.render import DASH, Table, interval, mean_and_deviation, p_value, rounded, signed
from lcm.reporting.selection import DATA_TITLE, NETWORK_TITLE, paired
from lcm.reporting.statistics import compare, holm, pairs_to_reach, verdict

ALWAYS_FREE = ("attention", "seed")  # what the runs of one group may differ in


class Found(NamedTuple):
    """A finished run: its row of runs.csv and its flat config, as far as that can change a number."""

    run: Run
    config: dict


def read_finished(folders):
    """([Found], problems) of the finished runs below folders; problems name what was left out. Raises UserError."""
    found, problems, seen = [], [], {}
    for folder in folders:
        if not Path(folder).is_dir():
            raise UserError(
                f"no folder {folder}: name a folder of runs, or KEY=VALUE to select among the runs of runs/"
            )
        for directory in find_runs(folder):
            try:
                run, _ = read_run(directory)
            except Damaged as fault:
                problems.append(f"{directory}: {fault}")
                continue
            if run.get("state") != "finished":
                problems.append(f"{directory}: {run.get('state')}")
            elif run["run"] in seen:
                problems.append(f"{directory}: a second copy of {seen[run['run']]}")
            else:
                seen[run["run"]] = directory
                found.append(Found(row(run), identity(run.get("config") or {})))
    if not found:
        where = ", ".join(map(str, folders))
        raise UserError("\n".join([f"no finished runs below {where}: train some (python train.py)", *problems]))
    return found, problems


def _key(name):
    return f"{name}.name" if name in GROUPS else name


def _values(text):
    """`0,1` as [0, 1], `[0.5, 0.75]` as one list."""
    try:
        return [yaml.safe_load(part) for part in ([text] if text[:1] in "[{" else text.split(","))]
    except yaml.YAMLError as error:
        raise UserError(f"{text} is no value ({str(error).splitlines()[0]})") from None


def selected(found, overrides):
    """The runs that have the values of all overrides (KEY=VALUE, or KEY=VALUE,VALUE for either). Raises UserError."""
    for override in overrides:
        name, _, text = override.partition("=")
        key, known = _key(name), {key for one in found for key in one.config}
        if key not in known:
            raise UserError(f"{override}: no run has a key {name}{nearest(key, known)}")
        values = _values(text)
        there = [one.config.get(key) for one in found]
        found = [one for one, value in zip(found, there, strict=True) if value in values]
        if not found:
            have = ", ".join(sorted({str(value) for value in there}))
            raise UserError(f"{override}: no finished run has it; what is left to choose from has {name}={have}")
    return found


def refuse_several_groups(found):
    """Raise UserError where runs differ in more than attention and seed."""
    keys = sorted({key for one in found for key in one.config if not is_under(key, ALWAYS_FREE)})
    differing = {key: _distinct(found, key) for key in keys}
    differing = {key: values for key, values in differing.items() if len(values) > 1}
    if differing:
        lines = [f"  {key}: {', '.join(map(str, values))}" for key, values in differing.items()]
        first = {key: values[0] for key, values in differing.items() if isinstance(values[0], (str, int, float))}
        names = {key: value for key, value in first.items() if key.endswith(".name")} or first
        advice = " ".join(f"{key.removesuffix('.name')}={str(value).lower()}" for key, value in names.items())
        raise UserError(
            "\n".join(
                [
                    "these runs differ in more than attention and seed:",
                    *lines,
                    f"one group alone, for example: {advice}",
                ]
            )
        )


def _distinct(found, key):
    values = []
    for one in found:
        if one.config.get(key) not in values:
            values.append(one.config.get(key))
    return sorted(values, key=str)


def arms_of(found):
    """({label: {seed: Run}}, doubles): an arm is an attention with one set of sizes, named by what tells it from others."""
    by_name = defaultdict(list)
    for one in found:
        by_name[one.run.attention].append(one)
    arms, doubles = {}, []
    for name, runs in by_name.items():
        keys = {key for one in runs for key in one.config if key.startswith("attention.")}
        free = sorted(key for key in keys if len(_distinct(runs, key)) > 1)
        for one in runs:
            label = " ".join([name, *(f"{key.removeprefix('attention.')}={one.config.get(key)}" for key in free)])
            arm = arms.setdefault(label, {})
            if one.run.seed in arm:
                doubles.append(f"{one.run.run}: a second run of seed {one.run.seed}")
            else:
                arm[one.run.seed] = one.run
    return {label: dict(sorted(arms[label].items())) for label in sorted(arms)}, doubles


def heading(found):
    """Data, network, schedule and what deviates from the protocol, of one group."""
    run, config = found[0].run, found[0].config
    told = {key: value for key, value in (run.deviations or {}).items() if not is_under(key, ALWAYS_FREE)}
    rounding = {k: v for k, v in config.items() if is_under(k, NO_DEVIATION) and k in ("precision", "compile")}
    words = ", ".join(f"{key}={value}" for key, value in {"schedule": run.schedule, **rounding}.items())
    deviating = ", ".join(f"{key}={value}" for key, value in told.items()) or "none"
    data, network = DATA_TITLE.get(run.data, run.data), NETWORK_TITLE.get(run.model, run.model)
    return f"{network} on {data}: {words}; deviations from the protocol: {deviating}"


def comparison(found, against="none"):
    """(Table, rows for plots.forest) of one group of runs against the arm `against`. Raises UserError."""
    refuse_several_groups(found)
    arms, doubles = arms_of(found)
    if against not in arms:
        raise UserError(
            f"no arm {against} among these runs: --against one of {', '.join(arms)}{nearest(against, arms)}"
        )
    reference, others = arms.pop(against), arms
    if not others:
        raise UserError(f"only {against} is among these runs: there is nothing to compare it with")
    compared = {label: compare(list(paired(arm, reference).values())) for label, arm in others.items()}
    adjusted = holm([c.p for c in compared.values()], family=len(compared))
    rows, records, plotted = [], [], []
    for label, arm in {against: reference, **others}.items():
        mean, deviation = mean_and_deviation([run.test_top1 for run in arm.values()])
        c = compared.get(label)
        p = adjusted[list(compared).index(label)] if c else None
        word = verdict(c, p) if c and c.n else DASH
        cells = [signed(c.mean), interval(c), str(c.n), p_value(c.p), p_value(p), word] if c else [DASH] * 6
        rows.append([label, str(len(arm)), f"{rounded(mean, 2)} ± {rounded(deviation, 2)}", *cells])
        record = {"attention": label, "n": len(arm), "seeds": " ".join(map(str, arm)), "mean": mean}
        record |= {"deviation": deviation, "against": against, "pairs": c.n if c else None}
        record |= {"difference": c.mean if c else None, "low": c.low if c else None, "high": c.high if c else None}
        records.append(record | {"p": c.p if c else None, "p_holm": p, "verdict": word if c else None})
        if c:
            plotted.append((label, c.mean, c.low, c.high, c.differences, None, word if c.n else None))
    needed, have = pairs_to_reach(len(others)), [c.n for c in compared.values()]
    notes = [
        f"Pairs needed before a corrected p-value can reach 0.05: {needed} ({len(others)} comparisons); there are "
        f"{min(have)}{f' to {max(have)}' if min(have) < max(have) else ''}. Differences are paired by seed; 95 % BCa "
        "bootstrap interval; p: exact two-sided sign-flip test; Holm's correction over the rows; verdict: on `better`."
    ]
    if doubles:
        notes.append(f"Left out: {'; '.join(doubles)}.")
    header = [
        "attention",
        "seeds",
        "top-1 (%)",
        f"minus {against}",
        "95 % interval",
        "pairs",
        "p",
        "p (Holm)",
        "verdict",
    ]
    return Table("compare", heading(found), notes, header, rows, [], records, []), plotted


def terminal(table):
    """A table for the terminal: its title, columns of equal width, its notes."""
    lines = [table.header, *table.rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(table.header))]
    body = [
        "  ".join(
            cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([table.title, "", *body, "", *table.notes])
