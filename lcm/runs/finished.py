"""Finished runs for Score-CAM: by their directories, or the newest ones of one protocol."""

import json

from lcm.config.compose import load
from lcm.errors import UserError
from lcm.runs.state import read_state

PROTOCOL = (
    "seed",
    "schedule",
    "precision",
    "compile",
    "deviations",
    "data_fingerprint",
)  # what arms have in common


def read_finished(path):
    """(directory, run.json) of a finished run, from its directory or the checkpoint in it. UserError where it is none."""
    directory = path.parent if path.name == "checkpoint.pt" else path
    if not (directory / "run.json").is_file():
        raise UserError(f"{path} is no run: name a directory that holds run.json and checkpoint.pt")
    state = read_state(directory)
    if state["state"] != "finished":
        raise UserError(
            f"{directory} is not finished, its state is {state['state']!r}: the command that trained it continues it"
        )
    return directory, state


def newest_arms(root, data, model, attentions, seed=None):
    """For each attention (directory, run.json) of its newest finished run, all of one `PROTOCOL`, that of the newest run.

    root: the folder of runs. Raises UserError where an attention has no finished run, or the arms have no protocol in common.
    """
    arms = {attention: {} for attention in attentions}  # attention -> {protocol: its newest run}
    for attention, newest in arms.items():
        for file in sorted((root / data / model / attention).glob("seed*/run.json")):
            state = read_state(file.parent)
            if state["state"] == "finished" and seed in (None, state.get("seed")):
                protocol = json.dumps([state.get(key) for key in PROTOCOL])
                newest[protocol] = max(
                    newest.get(protocol, (file.parent, state)), (file.parent, state), key=_ended
                )
    if missing := [attention for attention, newest in arms.items() if not newest]:
        for group, name in (
            ("data", data),
            ("model", model),
            *(("attention", name) for name in missing),
        ):
            load(group, name)  # says so where there is no such thing to train
        command = f"python train.py -m data={data} model={model} attention={','.join(missing)} seed={seed or 0} runs={root}"
        of_seed = "" if seed is None else f" of seed {seed}"
        raise UserError(
            f"{root / data / model} has no finished run{of_seed} with attention {', '.join(missing)}: train it ({command}), "
            "or name other runs (--runs-root, --data, --model, --attention)"
        )
    common = set.intersection(*(set(newest) for newest in arms.values()))
    if not common:
        have = [
            f"\n  {attention}: " + "; ".join(map(_in_words, newest.values()))
            for attention, newest in arms.items()
        ]
        raise UserError(
            "the arms have no protocol in common: name the runs to compare" + "".join(have)
        )
    chosen = max(
        common, key=lambda protocol: max(_ended(newest[protocol]) for newest in arms.values())
    )
    return [newest[chosen] for newest in arms.values()]


def _ended(run):
    return str(run[1].get("end"))


def _in_words(run):
    state = run[1]
    words = f"seed {state.get('seed')}, schedule={state.get('schedule')}, precision={state.get('precision')}"
    return (
        words
        + ", compiled" * bool(state.get("compile"))
        + f" {state.get('deviations') or ''}".rstrip()
    )
