"""The parts. Each measures one group of sides after another and yields the rows of a group as soon as it has them.

On a GPU, tf32 is compared with a reference that has TF32 as well, fp32 and bf16 with one without it.
"""

import statistics
from functools import partial

from benchmark.packed import packed
from benchmark.sides import Side, take_turns
from benchmark.table import faster, larger, slower, summarise
from benchmark.worker import rate

VARIANTS = {
    "reference": ("fp32", "fp32 compiled", "bf16", "bf16 compiled")
}  # what is measured beside each reference
HOW = ("eager", "captured", "captured NCHW", "captured compiled")
GPU_VARIANTS = {
    "reference": [f"{precision} {how}" for precision in ("fp32", "bf16") for how in HOW],
    "reference tf32": [f"tf32 {how}" for how in HOW],
}
ATTENTIONS = ("none", "se", "cbam", "nonlocal", "gc", "lcm1", "lcm2")
LARGE = "densenet100"  # the network of the part `memory`
PLAIN_BATCHES = (64, 128, 256, 512)  # of the plain evaluation loop
TEST_BATCHES = 8  # batches of a test set for each of an epoch: 160, as CIFAR has; each pass folds batch norms once


def groups(options, what):
    """The sides of `step` and `epoch`: for each network a reference and this project's variants beside it."""
    for network in options.networks:
        spec = {
            "network": network,
            "steps": 1 if what == "step" and not options.gpu else options.steps,
        }
        for name, variants in (GPU_VARIANTS if options.gpu else VARIANTS).items():
            reference = Side(options, what, name, side="reference", **spec)
            yield [
                reference,
                *(Side(options, what, variant, base=reference, **spec) for variant in variants),
            ]


def training(what, options):
    for sides in groups(options, what):
        yield summarise(take_turns(what, sides, options), what)


def attention(options):
    for network in options.networks:
        for variant in (
            ("fp32", "bf16")
            if network.startswith("densenet")
            else ("fp32", "fp32 compiled", "bf16")
        ):
            none, *others = [
                Side(options, "step", variant, network=network, attention=name)
                for name in ATTENTIONS
            ]
            for side in others:
                side.base = none
            yield summarise(take_turns("attention", [none, *others], options), "attention", slower)


def assembly(options):
    reference = Side(options, "assembly", "reference", side="reference", network="-", threads=1)
    sides = [
        reference,
        Side(options, "assembly", "project", base=reference, network="-", threads=1),
    ]
    yield summarise(take_turns("assembly", sides, options), "assembly")


def evaluation(options):
    for network in options.networks:
        plain = [
            Side(
                options,
                "evaluation",
                f"reference, batch {batch}",
                side="reference",
                network=network,
                batch=batch,
            )
            for batch in PLAIN_BATCHES
        ]
        steps = TEST_BATCHES * options.steps
        ours = [
            Side(options, "evaluation", variant, network=network, steps=steps)
            for variant in ("fp32", "bf16")
        ]
        rounds = take_turns("evaluation", [*plain, *ours], options)

        def images_per_second(side, rounds=rounds):
            return (
                0.0
                if side.refused
                else statistics.median(rate(reports[side]) for reports in rounds.reports)
            )

        for side in rounds.sides:
            side.base = max(plain, key=images_per_second)
        yield summarise(rounds, "evaluation")


def memory(options):
    steps = min(options.steps, 20) if options.gpu else 1  # a step takes seconds on a CPU
    spec = {"network": LARGE, "seconds": 1e-9, "steps": steps}
    plain = Side(options, "step", "reference", side="reference", **spec)
    sides = [plain]
    for precision in ("fp32 ", "bf16 ") if options.gpu else ("",):
        for kind in ("fast", "linear"):
            variant = f"{precision}memory={kind}"
            sides.append(
                Side(options, "step", variant, base=plain, overrides={"memory": kind}, **spec)
            )
    rounds = take_turns("memory", sides, options, stay=False)
    yield summarise(rounds, "step", faster) + summarise(rounds, "memory", larger)


def startup(options):
    plain = Side(options, "plain", "plain Hydra application", side="startup", seconds=1e-9)
    sides = [plain, Side(options, "train", "train.py", side="startup", base=plain, seconds=1e-9)]
    rows = summarise(take_turns("startup", sides, options), "startup", slower)
    for side, row in zip(sides, rows, strict=True):
        if not side.refused:  # the memory is that of the process that waits for the command
            seconds, cpu, _ = (
                row.pop(key) for key in ("images_per_second", "cpu_seconds_per_image", "peak_mb")
            )
            words = [f"{1 / seconds:.2f} s, {cpu:.2f} CPU-s", row["remark"]]
            row["remark"] = "; ".join(filter(None, words))
    yield rows


PARTS = {"step": partial(training, "step"), "epoch": partial(training, "epoch")}
GPU_PARTS = PARTS | {"packed": packed, "memory": memory}
PARTS |= {part.__name__: part for part in (attention, assembly, evaluation, startup, memory)}
