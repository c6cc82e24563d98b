"""The fast path against plain PyTorch: the same steps, the same weights, the same results
(tests/data: the same batches).
"""

import pytest
import torch
import torch.nn.functional as F
from plain import (
    CPU,
    digits_top1,
    distance,
    fit,
    in_dtype,
    invented_batches,
    plain_evaluation,
    plain_training,
)
from plain import small_network as small

from lcm.models.build import build_network
from lcm.training.device import keep_pages
from lcm.training.graphs import HostBatches, ResidentBatches, batches_on


# Training amplifies differences. In float64 the fast path stays with the plain one at the
# protocol's own rate. In float32 no two orders of summation stay together there: a ReLU's input of
# 1e-8 changes its sign, and after 20 steps at 0.1 plain eager networks that differ in their memory
# layout alone are 1e-2 apart: hence the smaller rate.
@pytest.mark.parametrize(
    "dtype, rate, tolerance",
    [(torch.float64, 0.1, 1e-10), (torch.float32, 1e-3, 1e-4)],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize(
    "model, memory", [("resnet20", "fast"), ("densenet40", "fast"), ("densenet40", "linear")]
)
def test_twenty_steps(model, memory, dtype, rate, tolerance):
    """Channels-last, allocator, batches from bytes, fused SGD, linear memory: the plain path's
    weights.
    """
    keep_pages()
    network, plain = (small(model, m).to(dtype) for m in (memory, "fast"))
    tests = [invented_batches(50, 25, seed=None) for _ in range(2)]
    (row,) = fit(network, in_dtype(invented_batches(), dtype), in_dtype(tests[0], dtype), rate).rows
    plain_training(plain, invented_batches(), rate)
    assert distance(network, plain) <= tolerance
    found = {key: row[key] for key in ("test_loss", "test_top1", "test_top5")}
    expected = plain_evaluation(plain, in_dtype(tests[1], dtype))
    assert found == pytest.approx(expected, rel=1e-3 if dtype == torch.float32 else 1e-9)


def test_resident_batches_show_those_of_the_host():
    """The GPU's path, run on the CPU: the same bits, whatever the epoch, the step in it and the
    size of the last batch.
    """
    batches = invented_batches(70, 16)
    host, resident = batches_on(CPU, batches), ResidentBatches(batches, CPU)
    assert type(host) is HostBatches
    for epoch, start in ((1, 0), (8, 0), (8, 3)):
        host.start(epoch, start), resident.start(epoch, start)
        for step in range(start, 5):
            (theirs, their_labels), (ours, our_labels) = (
                host.take(),
                resident.take(resident.size(step)),
            )
            assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()
            assert torch.equal(our_labels, their_labels)


@pytest.mark.slow
def test_bf16_learns_the_digits_as_float32_does():
    """Within the spread of the seeds.

    Where the processor has no bf16 it is emulated: the same rounding, slowly.
    """
    plain, half = (
        torch.tensor(
            [
                digits_top1(build_network("resnet20", "lcm2", seed=s), 4, s, precision=precision)
                for s in range(4)
            ]
        )
        for precision in ("fp32", "bf16")
    )
    assert plain.mean() > 95
    assert (plain.mean() - half.mean()).abs() <= plain.std().clamp_min(0.5)


def test_training_metrics_are_means_over_images():
    """At a rate of almost 0, where plain PyTorch sees the same weights in each batch."""
    network, batches = small("resnet20"), invented_batches(70, 16)  # the last batch is smaller
    rows = fit(network, batches, rate=1e-30, epochs=2).rows
    for epoch, row in enumerate(rows, 1):
        parts = [batches.prepare(raw, CPU) for raw in batches.iterate(epoch)]
        labels = torch.cat([labels for _, labels in parts])
        with torch.no_grad():
            logits = torch.cat([network.train()(images) for images, _ in parts])
        assert row["train_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        hits = (logits.argmax(1) == labels).double().mean().item()
        assert row["train_top1"] == pytest.approx(100 * hits, rel=1e-5)


@pytest.mark.parametrize(
    "switch, layout", [("true", torch.channels_last), ("false", torch.contiguous_format)]
)
def test_channels_last_is_the_layout_of_weights_and_images(tiny, ends, tmp_path, switch, layout):
    """In training and evaluation: no convolution has to convert."""

    def watch():
        original = torch.nn.Conv2d.forward

        def watched(self, x):
            assert len(x) == 1 or all(
                t.is_contiguous(memory_format=layout) for t in (x, self.weight)
            ), x.stride()
            return original(self, x)

        torch.nn.Conv2d.forward = watched

    words = [
        "schedule.epochs=1",
        "attention=none",
        f"channels_last={switch}",
    ]
    ends(tiny(f"runs={tmp_path}", *words), 0, prepare=watch)
