"""Repeat a recorded run: the command line that trains it, and what differs from the record."""

import json
import re

from lcm.config.compose import GROUPS, load, option, plain
from lcm.config.identity import NOT_IDENTITY, REMOVED, identity, is_under
from lcm.errors import UserError

FREE = [key for key in NOT_IDENTITY if key not in ("runs", "run_directory")]  # repeat.py has --runs
# Strings that need no quotes.
UNQUOTED = re.compile(r"(?!(true|false|null|nan|inf)$)[a-z/][\w./-]*", re.IGNORECASE | re.ASCII)
TIMES = ("images_per_second", "seconds")  # of an epoch; wall time differs always


def quoted(value):
    """A value as Hydra's grammar reads it back: `true`, `[0.5,0.75]`, `{stages:[2,3]}`,
    `'10 minutes'`.
    """
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{quoted(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(quoted, value))}]"
    if isinstance(value, str) and not UNQUOTED.fullmatch(value):
        return "'" + value.replace("'", r"\'") + "'"
    return value if isinstance(value, str) else json.dumps(value)


def arguments(run, further=()):
    """train.py's arguments for a recorded run: its names, every key that differs, its threads.

    Raises UserError where this version of the program has no such run, and where one of the
    `further` arguments would make it another run.
    """
    for text in further:
        if not is_under(text.partition("=")[0].strip("+~"), FREE):
            raise UserError(
                f"{text}: it would make this another run; only {', '.join(FREE)} can be chosen"
            )
    config = run.get("config") or {}
    names = {group: (config.get(group) or {}).get("name") for group in GROUPS}
    for group, name in names.items():
        load(group, name)  # UserError: another checkout has it
    choice = [f"{group}={option(group, name)}" for group, name in names.items()]
    recorded, standard = identity(config), identity(plain(config))
    # Unknown are keys that one version lacks, and a removed setting with another value than it
    # had in every recorded run.
    unknown = recorded.keys() ^ standard.keys()
    if unknown := sorted(unknown | {key for key in REMOVED if recorded[key] != REMOVED[key]}):
        raise UserError(
            f"{run['run']} was trained by a version with other keys ({', '.join(unknown)}): "
            f"git checkout {run.get('commit')} first"
        )
    changed = [
        f"{key}={quoted(value)}"
        for key, value in recorded.items()
        if key not in REMOVED and value != standard[key]
    ]
    # No part of the identity, but they decide on rounding.
    device = ["device=cpu"] if str(run.get("device")).startswith("cpu") else []
    threads = [f"threads={run['threads']}"] if run.get("threads") else []
    return [*choice, *changed, *device, *threads, *further]


def tolerances(run):
    """{column: relative tolerance} for a recorded run (its run.json); other columns are exact.

    Versions that had `fold_batch_norm` evaluated with batch norms folded into the convolutions
    before them, which changed the test loss by rounding, in float32.
    """
    return {"test_loss": 1e-5} if (run.get("config") or {}).get("fold_batch_norm") else {}


def differences(before, now, tolerance):
    """Where two runs ({column: values}) of one length differ, a line a column; without times.

    tolerance: {column: relative}, as of `tolerances`; columns that are not in it have to be equal.
    """
    lines = []
    for column in compared(before):
        pairs = list(zip(before[column], now[column], strict=True))
        allowed = tolerance.get(column, 0)
        apart = [e for e, (a, b) in enumerate(pairs, 1) if abs(a - b) > allowed * abs(a)]
        if apart:
            largest, (then, here) = max(abs(a - b) for a, b in pairs), pairs[-1]
            lines.append(
                f"{column}: differs from epoch {apart[0]} on, by {largest:.3g} at most; at the end "
                f"{then:.6g} then, {here:.6g} now"
            )
    return lines


def compared(epochs):
    """The columns that are compared."""
    return [column for column in epochs if column not in TIMES]


def other_environment(before, now):
    """In what two run.json differ that can change rounding, or the images: a line each."""
    lines = []
    for key in ("data_fingerprint", "device", "threads", "commit", "dirty", "python", "torch"):
        then, here = (((run.get("versions") or {}) | run).get(key) for run in (before, now))
        if then != here:
            lines.append(f"{key}: {then} then, {here} now")
    # Older records have none of it, and no module of one's own.
    if (before.get("own_source") or {}) != (now.get("own_source") or {}):
        lines.append("own_source: a module of one's own has changed")
    for when, run in (("then", before), ("now", now)):
        if run.get("continued"):
            lines.append(f"{when}: continued in another environment (`continued` in its record)")
    return lines
