"""Which runs a table takes: a protocol, the runs that follow it, and the pairs among them."""

from collections import defaultdict
from typing import NamedTuple

PAPER_SCHEDULE = {"cifar10": "cifar", "cifar100": "cifar", "mini_imagenet": "mini_imagenet"}
DATA_TITLE = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mini_imagenet": "mini-ImageNet", "digits": "digits"}
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
METRIC_TITLE = {"top1": "top-1", "top5": "top-5"}
ATTENTIONS = ("none", "se", "cbam", "nonlocal", "gc", "lcm1", "lcm2")


def network_place(model):
    """A sort key: the paper's networks in the paper's order, others after them by name."""
    return _place(NETWORK_TITLE, model)


def _place(order, name):
    return (list(order).index(name), "") if name in order else (len(order), name)


class Protocol(NamedTuple):
    """Which runs a table takes: `schedule=None` stands for the paper's own schedule of each data set."""

    schedule: str | None = None
    precision: str = "fp32"

    @property
    def suffix(self):
        """What the names of this protocol's files carry; nothing for the paper's schedule in fp32."""
        parts = [self.schedule, None if self.precision == "fp32" else self.precision]
        return "".join(f"-{part}" for part in parts if part)

    @property
    def words(self):
        schedule = f"schedule={self.schedule}" if self.schedule else "the paper's schedule"
        return f"{schedule}, precision={self.precision}"

    @property
    def overrides(self):
        """What a command line needs for a run of this protocol."""
        parts = [
            self.schedule and f"schedule={self.schedule}",
            self.precision != "fp32" and f"precision={self.precision}",
        ]
        return [part for part in parts if part]

    def schedule_of(self, data):
        """The schedule's name on a data set; None where the paper has no such data set."""
        return self.schedule or PAPER_SCHEDULE.get(data)

    def takes(self, run):
        schedule = None if run.schedule == PAPER_SCHEDULE.get(run.data) else run.schedule  # None: the paper's own
        return (schedule, run.precision) == self and not run.deviations


def protocols(runs):
    """The paper's protocol, then every other one that finished runs without deviations follow, sorted."""
    found = set()
    for run in runs:
        if run.state == "finished" and not run.deviations:
            schedule = None if run.schedule == PAPER_SCHEDULE.get(run.data) else run.schedule
            found.add(Protocol(schedule, run.precision))
    return [Protocol(), *sorted(found - {Protocol()}, key=lambda p: (p.schedule or "", p.precision))]


class Selection(NamedTuple):
    """The runs of a protocol: {(data, model, attention): {seed: Run}}, and what was left out of it."""

    arms: dict
    failed: list
    doubles: list

    def arm(self, data, model, attention):
        return self.arms.get((data, model, attention), {})

    def groups(self):
        """{(data, model): {attention: {seed: Run}}}, networks and attentions in the paper's order."""
        groups = defaultdict(dict)
        places = {key: (key[0], network_place(key[1]), _place(ATTENTIONS, key[2])) for key in self.arms}
        for data, model, attention in sorted(places, key=places.get):
            groups[data, model][attention] = self.arms[data, model, attention]
        return groups


def select(runs, protocol):
    """The runs that a protocol takes; of two runs of one seed (compiled or not, say) the plain one, then the earlier one."""
    arms, failed, doubles = defaultdict(dict), [], []
    for run in sorted(runs, key=lambda r: (bool(r.compile), r.start or "", r.run)):
        if not protocol.takes(run):
            continue
        if run.state == "failed":
            failed.append(run)
        elif run.seed in arms[run.data, run.model, run.attention]:
            doubles.append(run)
        else:
            arms[run.data, run.model, run.attention][run.seed] = run
    return Selection({key: dict(sorted(arm.items())) for key, arm in arms.items() if arm}, failed, doubles)


def paired(a, b, metric="top1"):
    """{seed: difference} of two arms ({seed: Run}) over the seeds that both have on the same data files."""
    return {
        seed: getattr(a[seed], f"test_{metric}") - getattr(b[seed], f"test_{metric}")
        for seed in sorted(a.keys() & b.keys())
        if a[seed].data_fingerprint == b[seed].data_fingerprint
    }
