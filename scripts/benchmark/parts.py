"""The parts. Each measures one group of sides after another and yields the rows of a group as soon as it has them.

On a GPU, tf32 is compared with a reference that has TF32 as well, fp32 and bf16 with one that has not.
"""

import statistics

from benchmark.gpu import packed
from benchmark.sides import Side, take_turns
from benchmark.table import faster, larger, remarked, slower, summarise
from benchmark.worker import IMAGES, rate

VARIANTS = {"reference": ("fp32", "fp32 compiled", "bf16", "bf16 compiled")}  # what is measured beside each reference
HOW = ("eager", "captured", "captured NCHW", "captured compiled")
GPU_VARIANTS = {
    "reference": [f"{precision} {how}" for precision in ("fp32", "bf16") for how in HOW],
    "reference tf32": [f"tf32 {how}" for how in HOW],
}
ATTENTIONS = ("none", "se", "cbam", "nonlocal", "gc", "lcm1", "lcm2")
LARGE = "densenet100"  # the network of the part `memory`
PLAIN_BATCHES = (64, 128, 256, 512)  # of the plain evaluation loop


def groups(options, what):
    """The sides of `step` and `epoch`: for each network a reference and this project's variants beside it."""
    for network in options.networks:
        steps = 1 if what == "step" and not options.gpu else options.steps
        spec = {"network": network, "steps": steps}
        for name, variants in (GPU_VARIANTS if options.gpu else VARIANTS).items():
            reference = Side(options, what, name, side="reference", **spec)
            yield [reference, *(Side(options, what, variant, base=reference, **spec) for variant in variants)]


def step(options):
    for sides in groups(options, "step"):
        rows = summarise(take_turns("step", sides, options), "step")
        for i, side in enumerate(sides):
            if side.spec.compile and not side.refused:
                rows[i] = remarked(rows[i], f"ready after {side.first:.0f} s")
        yield rows


def epoch(options):
    for sides in groups(options, "epoch"):
        rows = summarise(take_turns("epoch", sides, options), "epoch")
        for i, row in enumerate(rows):
            if "images_per_second" in row:
                minutes = 300 * IMAGES / row["images_per_second"] / 60
                rows[i] = remarked(row, f"300 epochs of CIFAR: {minutes:.3g} min of training")
        yield rows


def attention(options):
    for network in options.networks:
        for variant in ("fp32", "bf16") if network.startswith("densenet") else ("fp32", "fp32 compiled", "bf16"):
            base, sides = None, []
            for name in ATTENTIONS:
                sides.append(Side(options, "step", variant, base=base, network=network, attention=name))
                base = sides[0]
            rounds = take_turns("attention", sides, options)
            yield summarise(rounds, "attention", slower)


def assembly(options):
    reference = Side(options, "assembly", "reference", side="reference", threads=1)
    sides = [reference, Side(options, "assembly", "project", base=reference, threads=1)]
    rows = summarise(take_turns("assembly", sides, options), "assembly")
    yield [row | {"network": "-"} for row in rows]


def evaluation(options):
    for network in options.networks:
        plain = [
            Side(options, "evaluation", f"reference, batch {batch}", side="reference", network=network, batch=batch)
            for batch in PLAIN_BATCHES
        ]
        spec = {"network": network, "steps": options.steps}
        ours = [Side(options, "evaluation", precision, **spec) for precision in ("fp32", "bf16")]
        rounds = take_turns("evaluation", plain + ours, options)
        for side in plain + ours:
            side.base = max(plain, key=lambda side: median_rate(side, rounds))
        yield summarise(rounds, "evaluation")


def median_rate(side, rounds):
    """Images a second of a side; 0 where it failed."""
    return 0.0 if side.refused else statistics.median(rate(reports[side]) for reports in rounds.reports)


def memory(options):
    spec = {
        "network": LARGE,
        "seconds": 1e-9,
        "steps": min(options.steps, 20) or 1,
    }  # a turn is one unit: it takes seconds
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
