"""The parts. Each measures one group of sides after another and yields the rows of a group as soon as it has them.

On a GPU, tf32 is compared with a reference that has TF32 as well, fp32 and bf16 with one without it.
"""

import statistics

from benchmark.packed import packed
from benchmark.sides import Side, take_turns
from benchmark.table import faster, larger, remarked, slower, summarise
from benchmark.worker import rate

VARIANTS = {"reference": ("fp32", "fp32 compiled", "bf16", "bf16 compiled")}  # what is measured beside each reference
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
        spec = {"network": network, "steps": 1 if what == "step" and not options.gpu else options.steps}
        for name, variants in (GPU_VARIANTS if options.gpu else VARIANTS).items():
            reference = Side(options, what, name, side="reference", **spec)
            yield [reference, *(Side(options, what, variant, base=reference, **spec) for variant in variants)]


def step(options):
    for sides in groups(options, "step"):
        yield summarise(take_turns("step", sides, options), "step")


def epoch(options):
    for sides in groups(options, "epoch"):
        yield summarise(take_turns("epoch", sides, options), "epoch")


def attention(options):
    for network in options.networks:
        for variant in ("fp32", "bf16") if network.startswith("densenet") else ("fp32", "fp32 compiled", "bf16"):
            none, *others = [Side(options, "step", variant, network=network, attention=name) for name in ATTENTIONS]
            for side in others:
                side.base = none
            yield summarise(take_turns("attention", [none, *others], options), "attention", slower)


def assembly(options):
    reference = Side(options, "assembly", "reference", side="reference", threads=1)
    sides = [reference, Side(options, "assembly", "project", base=reference, threads=1)]
    yield [row | {"network": "-"} for row in summarise(take_turns("assembly", sides, options), "assembly")]


def evaluation(options):
    for network in options.networks:
        plain = [
            Side(options, "evaluation", f"reference, batch {batch}", side="reference", network=network, batch=batch)
            for batch in PLAIN_BATCHES
        ]
        spec = {"network": network, "steps": TEST_BATCHES * options.steps}
        sides = plain + [Side(options, "evaluation", precision, **spec) for precision in ("fp32", "bf16")]
        rounds = take_turns("evaluation", sides, options)

        def images_per_second(side, rounds=rounds):
            return 0.0 if side.refused else statistics.median(rate(reports[side]) for reports in rounds.reports)

        for side in sides:
            side.base = max(plain, key=images_per_second)
        yield summarise(rounds, "evaluation")


def memory(options):
    spec = {
        "network": LARGE,
        "seconds": 1e-9,
        "steps": min(options.steps, 20) if options.gpu else 1,
    }  # a unit takes seconds
    plain = Side(options, "step", "reference", side="reference", **spec)
    sides = [plain]
    for precision in ("fp32 ", "bf16 ") if options.gpu else ("",):
        for kind in ("fast", "linear"):
            variant = f"{precision}memory={kind}"
            sides.append(Side(options, "step", variant, base=plain, overrides={"memory": kind}, **spec))
    rounds = take_turns("memory", sides, options, stay=False)
    yield summarise(rounds, "step", faster) + summarise(rounds, "memory", larger)


def startup(options):
    plain = Side(options, "plain", "plain Hydra application", side="startup", seconds=1e-9)
    sides = [plain, Side(options, "train", "train.py", side="startup", base=plain, seconds=1e-9)]
    rows = summarise(take_turns("startup", sides, options), "startup", slower)
    for i, row in enumerate(rows):
        if not sides[i].refused:  # the memory is that of the process that waits for the command
            seconds, cpu, _ = (row.pop(key) for key in ("images_per_second", "cpu_seconds_per_image", "peak_mb"))
            rows[i] = remarked(row, f"{1 / seconds:.2f} s, {cpu:.2f} CPU-s")
    yield rows


PARTS = {part.__name__: part for part in (step, epoch, attention, assembly, evaluation, startup, memory)}
GPU_PARTS = {part.__name__: part for part in (step, epoch, packed, memory)}
