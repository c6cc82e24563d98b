"""The paper's names, schedules and accuracies, and which runs a table takes.

Without pandas: train.py asks here for the paper's number.
"""

import csv
import json
from pathlib import Path
from typing import NamedTuple

import yaml

from lcm.files import ROOT, read_result

# Section 4.1.2.
PAPER_SCHEDULE = {"cifar10": "cifar", "cifar100": "cifar", "mini_imagenet": "mini_imagenet"}
DATA_TITLE = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "mini_imagenet": "mini-ImageNet",
    "digits": "digits",
}
NETWORK_TITLE = {
    "densenet40": "DenseNet-40",
    "densenet64": "DenseNet-64",
    "densenet100": "DenseNet-100",
    "resnet20": "ResNet-20",
    "resnet32": "ResNet-32",
    "resnet50_cifar": "ResNet-50 (CIFAR)",
    "densenet121": "DenseNet-121",
    "resnet50": "ResNet-50",
    "resnext50": "ResNeXt-50 32x4d",
}
ARM = ["data", "model", "attention"]
METRIC_TITLE = {"top1": "top-1", "top5": "top-5"}
# The paper's, in the order of every table.
ATTENTIONS = ("none", "se", "cbam", "nonlocal", "gc", "lcm1", "lcm2")
PAPER = ROOT / "results" / "paper.csv"


def in_order(names, known=ATTENTIONS):
    """The different `names`, those that the paper knows first and in its order, the others after
    them by name."""
    place = {name: number for number, name in enumerate(known)}
    return sorted(set(names), key=lambda name: (place.get(name, len(place)), name))


def title(data, model):
    """ "ResNet-20 on CIFAR-10" """
    return f"{NETWORK_TITLE.get(model, model)} on {DATA_TITLE.get(data, data)}"


def read_csv(file):
    """The rows of a CSV file as dicts. Raises UserError where it is missing."""
    return list(csv.DictReader(read_result(file).splitlines()))


def paper_comparison(state):
    """What is printed below the result of a finished run (its run.json `state`): the paper's
    numbers, and the settings in which the run differs from the paper's protocol; "" where the paper
    has no such row."""
    names = [state[key] for key in ARM]
    rows = read_csv(PAPER) if PAPER.exists() else []  # a wheel is without it
    # A network can stand in two of the paper's tables, with the same numbers: each metric once.
    printed = {row["metric"]: row["value"] for row in rows if [row[key] for key in ARM] == names}
    if not printed:
        return ""
    # Deviations are counted from the schedule that the run names. That it is not the paper's
    # schedule is no deviation, and has to be said as well.
    differences = dict(state["deviations"])
    if state["schedule"] != PAPER_SCHEDULE[state["data"]]:
        differences = {
            "schedule": state["schedule"],
            "schedule.epochs": state["epochs"],
        } | differences
    words = ", ".join(f"{key}={value}" for key, value in differences.items())
    numbers = ", ".join(f"{METRIC_TITLE[metric]} {value} %" for metric, value in printed.items())
    line = f"the (retracted) paper prints {numbers} for this row"
    return f"{line}, under its own protocol; this run differs: {words}" if words else line


class Protocol(NamedTuple):
    """Which runs a table takes. schedule=None: the paper's own of each data set."""

    schedule: str | None = None
    precision: str = "fp32"

    @property
    def suffix(self):
        """The end of the names of this protocol's files; empty for the paper's schedule in fp32."""
        parts = [self.schedule, None if self.precision == "fp32" else self.precision]
        return "".join(f"-{part}" for part in parts if part)

    @property
    def words(self):
        schedule = f"schedule={self.schedule}" if self.schedule else "the paper's schedule"
        return f"{schedule}, precision={self.precision}"

    def command(self, plan=None, **choices):
        """The command line that trains a run of this protocol, as its plan says if it has one."""
        settings = {**choices, "schedule": self.schedule, "precision": self.precision}
        for key, value in plan["settings"].items() if plan else ():
            # As a command line has it: true, not True; text without quotes. False becomes text
            # too, and is not dropped below with what is empty.
            settings[key] = json.dumps(value).strip('"')
        words = [f"{key}={value}" for key, value in settings.items() if value]
        # fp32 is the default
        return " ".join(["python train.py", *(word for word in words if word != "precision=fp32")])

    def schedule_of(self, data):
        """The schedule's name on a data set; None where the paper has no such data set."""
        return self.schedule or PAPER_SCHEDULE.get(data)

    def takes(self, runs):
        """The mask of the runs that follow this protocol. Runs of the paper's own schedule follow
        no other protocol."""
        # The same name may be the paper's schedule or another one: `cifar` is the paper's on
        # CIFAR; on the digits, which the paper does not have, it is a protocol of its own.
        paper = runs["schedule"] == runs["data"].map(PAPER_SCHEDULE).fillna("")
        schedule = paper if self.schedule is None else (runs["schedule"] == self.schedule) & ~paper
        return schedule & (runs["precision"] == self.precision) & (runs["deviations"] == "{}")


def protocols(runs):
    """The paper's protocol, then, sorted, the others that finished runs follow exactly."""
    followed = runs[(runs["state"] == "finished") & (runs["deviations"] == "{}")]
    found = {
        Protocol(
            None if run.schedule == PAPER_SCHEDULE.get(run.data) else run.schedule, run.precision
        )
        for run in followed.itertuples()
    }
    return [
        Protocol(),
        *sorted(found - {Protocol()}, key=lambda p: (p.schedule or "", p.precision)),
    ]


def read_plan(results, protocol):
    """What was planned for a schedule before its first run (results/plans/NAME.yaml); or None."""
    # The paper's protocol in fp32 has no suffix, and there is no file `.yaml`: no plan.
    file = Path(results, "plans", f"{protocol.suffix.removeprefix('-')}.yaml")
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None


def select(runs, protocol, plan=None):
    """The runs that a protocol takes, as `one_a_seed` gives them; of what was planned, those of the
    plan alone."""
    runs = runs[protocol.takes(runs)]
    if plan:
        # A plan binds its own network and data sets, where further seeds or other settings
        # could change a verdict. Runs of other networks and data sets under its schedule stay.
        planned = (runs["model"] == plan["model"]) & runs["data"].isin(plan["data"])
        as_planned = runs["seed"].isin(plan["seeds"]) & (runs["epochs"] == plan["epochs"])
        for key, value in plan["settings"].items():
            # NA, a run that does not say how it was compiled, is not known to be as planned.
            as_planned &= (runs[key] == value).fillna(False)
        runs = runs[~planned | as_planned]
    return one_a_seed(runs)


def one_a_seed(runs):
    """Runs of one protocol in the order of the tables, with two columns more.

    used: the finished ones, one a seed; of two (compiled or not, say) the plain one, then the
    earlier one. tried: those that a pair may take, that is all finished ones, and those whose loss
    "stopped being a finite number"; another failure says nothing about the arm. Versions of a
    module of one's own are arms of their own.
    """
    for name, known in (("model", NETWORK_TITLE), ("attention", ATTENTIONS)):
        # Among the versions is "", the repository's own module or a record that does not say:
        # it keeps the plain name where the others get their digests.
        digest = runs[f"own_{name}"]
        several = digest.groupby(runs[name]).transform("nunique") > 1
        names = runs[name].mask(several & (digest != ""), runs[name] + " source=" + digest.str[:8])
        runs = runs.assign(
            **{name: names, f"{name}_place": names.map(in_order(names, known).index)}
        )
    runs["compile"] = runs["compile"].fillna(False)
    order = ["data", "model_place", "attention_place", "seed", "compile", "start", "run"]
    runs = runs.sort_values(order).drop(columns=["model_place", "attention_place"])
    finished = runs["state"] == "finished"
    # `finished` is one of the keys: without it a failed run that began earlier would make the
    # finished one of its seed a duplicate.
    first = ~runs.assign(finished=finished).duplicated([*ARM, "seed", "finished"])
    return runs.assign(
        used=finished & first,
        tried=finished | runs["message"].str.contains("stopped being a finite number"),
    )


def arms_of(runs):
    """A function from data, model and attention to their rows of `runs`."""
    # The positions of each arm, found once for all comparisons of a table. An arm without runs
    # is an empty DataFrame, with all columns.
    places = runs.groupby(ARM).indices
    return lambda *arm: runs.iloc[places.get(arm, [])]
