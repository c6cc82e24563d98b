"""The paper's 114 cells, exact totals, and the true count against torch's own counter."""

import csv
import dataclasses
from collections import Counter

import complexity as script
import pytest
import torch
import torch.nn.functional as F
import torchvision
from strangers import Calls, state
from tiny import ROOT
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lcm import build_network, count, fill_sites
from lcm.attention import LCM2, NonLocal, SqueezeExcite
from lcm.config.compose import choices


@pytest.fixture(scope="module")
def counts():
    """Every network of the tables, counted once for all tests."""
    with open(ROOT / "results" / "paper.csv", newline="") as file:
        pairs = {(row["model"], row["attention"]) for row in csv.DictReader(file)}
    return {pair: script.paper_complexity(*pair) for pair in pairs}


def test_all_114_cells_are_the_papers(counts, monkeypatch, capsys, tmp_path):
    """And the committed file has the counter's figures, to the last parameter and
    multiply-accumulate."""
    monkeypatch.setattr(script, "paper_complexity", lambda *pair: counts[pair])
    assert script.main(["--csv", str(tmp_path / "complexity.csv")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "114 of 114 cells equal to the paper's" in printed
    assert len(printed) == 1 + 57 + 2
    assert (tmp_path / "complexity.csv").read_bytes() == (
        ROOT / "results" / "complexity.csv"
    ).read_bytes()


def test_a_cell_that_differs_is_told_and_ends_in_1(counts, monkeypatch, capsys):
    changed = counts | {
        ("resnet32", "lcm1"): dataclasses.replace(counts["resnet32", "lcm1"], params=499_000)
    }
    monkeypatch.setattr(script, "paper_complexity", lambda *pair: changed[pair])
    assert script.main([]) == 1
    printed = capsys.readouterr().out
    assert "113 of 114 cells" in printed
    (line,) = (line for line in printed.splitlines() if "differs" in line)
    assert "ResNet-32+LCM1" in line


@pytest.mark.parametrize(
    ("model", "attention", "size"),
    [
        *(
            ("resnet20", attention, 32)
            for attention in ("none", "se", "cbam", "nonlocal", "gc", "lcm1", "lcm2")
        ),
        ("densenet40", "lcm2", 32),
        ("resnext50", "nonlocal", 64),  # grouped convolutions
        ("densenet121", "cbam", 64),
    ],
)
def test_macs_are_half_the_flops_of_torchs_counter(model, attention, size):
    network = build_network(model, attention).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        network(torch.zeros(1, 3, size, size))
    assert 2 * count(network, size).macs == flops.get_total_flops()


def embedding(m, x):
    x = m.block(m.up(m.conv(x)))
    q = x.flatten(2).transpose(1, 2)  # (1, 64, 4)
    x = x + F.scaled_dot_product_attention(q, q, q).transpose(1, 2).unflatten(2, (8, 8))
    return m.old(m.softmax(m.fc(m.pool(x).flatten(1))))


@pytest.mark.filterwarnings("ignore:Implicit dimension")
def test_counts_by_hand():
    convolutions = {
        "conv": nn.Conv2d(3, 8, 3, padding=1, bias=False),
        "up": nn.ConvTranspose2d(8, 4, 2, stride=2),
        "block": NonLocal(4),
    }
    head = {"pool": nn.AdaptiveAvgPool2d(2), "fc": nn.Linear(16, 5), "softmax": nn.Softmax(dim=-1)}
    head["old"] = nn.Softmax()  # without a dimension, as old code has it
    rows = {row.name: row for row in count(Calls(embedding, **convolutions, **head), 4).rows}
    macs = {
        "conv": 16 * 8 * 27,
        "up": 16 * 8 * 4 * 4,
        "block.theta": 64 * 4 * 2,
        "block": 2 * 64 * 64 * 2,  # theta^T phi, and its product with g
        "": 2 * 64 * 64 * 4,  # the scaled dot product
        "fc": 16 * 5,
    }
    assert {name: rows[name].macs for name in macs} == macs
    paper = {
        "conv": 16 * 8 * 27,
        "block.theta": 64 * 2 * (4 + 1),  # and one for the bias
        "block.bn": 4 * 64 * 4,
        "pool": 16 * (16 + 1),
        "fc": 5 * (2 * 16 - 1),
        "softmax": 3 * 5 - 1,
        "block": 0,  # matrix products between tensors: nothing
        "": 0,
    }
    assert {name: round(rows[name].gfloat * 1e9) for name in paper} == paper


def test_rows_add_up_and_nothing_is_left_out(counts):
    for complexity in counts.values():
        for key in ("params", "macs", "gfloat"):
            total = sum(getattr(row, key) for row in complexity.rows)
            assert total == pytest.approx(getattr(complexity, key), rel=1e-12)
        assert complexity.uncounted == []


@pytest.mark.parametrize("attention", choices("attention"))
def test_a_network_without_memory_costs_the_same(attention):
    with torch.device("meta"):
        network = build_network("resnet20", attention)
        found = count(network, 32)
    assert dataclasses.astuple(found) == dataclasses.astuple(
        count(build_network("resnet20", attention), 32)
    )


def test_a_network_that_keeps_its_maps_is_counted():
    def keeping(module, x):
        module.maps = {"last": [module.conv(x)]}
        return module.maps["last"][0].mean((2, 3))

    network = Calls(keeping, conv=nn.Conv2d(3, 4, 3))
    network(torch.zeros(2, 3, 8, 8))
    assert count(network, 8).macs == 36 * 3 * 9 * 4


def test_counting_leaves_the_network_as_it_was():
    network = build_network("resnet20", "lcm2", seed=0)
    network.stage1.eval()
    before = state(network)
    count(network, 32)
    assert state(network) == before and not network.conv._forward_hooks


def test_one_network_module_by_module(capsys):
    assert script.main(["model=resnet20", "attention=lcm2", "reduction=8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    site = next(line.split() for line in lines if line.startswith("stage3.0.site.w1"))
    assert site[1:3] == ["VectorConv", "512"]
    params = sum(p.numel() for p in build_network("resnet20", "lcm2", reduction=8).parameters())
    assert lines[-1].split()[1] == f"{params:,}"
    assert script.main(["model=resnet50", "attention=lcm2"]) == 0  # Table 5 prints 24.97 M
    assert capsys.readouterr().out.splitlines()[-1].split()[1] == "24,971,380"


def several(m, x):
    """One operation of each kind that is no convolution and no linear layer of a map."""
    x = x.flatten(1).unfold(1, 8, 8)  # (1, 6, 8)
    x = m.transformer(x + m.attention(x, x, x, need_weights=False)[0])
    x = m.prelu(m.norm(x)) + m.weight
    heads = torch.stack((x, x), 1)  # (1, 2, 6, 8)
    x = x + F.scaled_dot_product_attention(heads, heads, heads)[:, 0]
    scores = torch.einsum("nid,njd->nij", x, x) + F.linear(x, m.weight)
    return torch.baddbmm(x, scores, x)


@pytest.mark.parametrize("grad", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_attention_and_functional_products_by_hand(grad):
    network = Calls(
        several,
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
        transformer=nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        weight=nn.Parameter(torch.randn(6, 8)),
        norm=nn.LayerNorm(8),
        prelu=nn.PReLU(),
    )
    with grad():
        complexity = count(network, 4)
    attention = 6 * 8 * 24 + 2 * 2 * 6 * 6 * 4 + 6 * 8 * 8  # in, two products of 2 heads, out
    rows = Counter()
    for row in complexity.rows:
        rows[row.name.partition(".")[0]] += row.macs
    assert rows["attention"] == attention
    assert rows["transformer"] == attention + 2 * 6 * 8 * 16
    assert rows[""] == 2 * 2 * 6 * 6 * 8 + 3 * 6 * 6 * 8  # two heads; einsum, linear, baddbmm
    assert complexity.uncounted == []
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv1d(3, 8, 5, padding=2, bias=False), 16 * 8 * 3 * 5),
        (nn.ConvTranspose1d(3, 6, 2, 2, groups=3), 32 * 6 * (2 + 1)),
        (nn.AvgPool1d(2), 8 * 3 * (2 + 1)),
        (nn.AdaptiveAvgPool1d(4), 4 * 3 * (4 + 1)),
        (nn.BatchNorm1d(3), 4 * 16 * 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_papers_rules_are_those_of_any_dimension(layer, expected):
    network = Calls(lambda m, x: m.layer(x.flatten(2)), layer=layer)  # (1, 3, 16)
    assert count(network, 4).gfloat == expected / 1e9


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [("vit_b_16", 224, 17.56), pytest.param("swin_t", 224, 4.49, marks=pytest.mark.slow),
     pytest.param("maxvit_t", 224, 5.56, marks=pytest.mark.slow)],
)  # fmt: skip
def test_transformers_cost_what_torchvision_says(name, size, expected):
    complexity = count(torchvision.models.get_model(name), size)
    assert round(complexity.macs / 1e9, 2) == expected and complexity.uncounted == []


@pytest.mark.parametrize(
    ("layer", "call", "expected"),
    [
        (nn.LSTM(16, 4), lambda layer, x: layer(x), "layer: "),
        (nn.Bilinear(16, 16, 2), lambda layer, x: layer(x, x), "layer: aten._trilinear"),
        (nn.Linear(1, 1), lambda _, x: torch.cdist(x, x), ": aten._cdist_forward"),
        (nn.Linear(1, 1), lambda _, x: torch.vdot(x.flatten(), x.flatten()), ": aten.vdot"),
        (nn.Linear(1, 1), lambda _, x: torch.addr(x[0], x[0, :, 0], x[0, 0]), ": aten.addr"),
        (nn.Linear(1, 1), lambda _, x: torch.sspaddmm(torch.zeros(3, 3).to_sparse(),
            torch.zeros(3, 3).to_sparse(), x[0, :, :3]), ": aten.sspaddmm"),
        (
            nn.Parameter(torch.ones(2, 3, 3, 3)),
            lambda w, x: torchvision.ops.deform_conv2d(x[..., None], torch.ones(1, 18, 14, 1), w,
                padding=(0, 1)),
            ": torchvision.deform_conv2d",
        ),
    ],
    ids=["lstm", "bilinear", "cdist", "vdot", "addr", "sspaddmm", "deformable"],
)  # fmt: skip
def test_what_no_rule_counts_is_named(layer, call, expected):
    network = Calls(lambda m, x: call(m.layer, x.flatten(2)), layer=layer)  # (1, 3, 16)
    network.register_forward_pre_hook(lambda _, args: (2 * args[0],))  # as weight_norm's
    (found,) = count(network, 4).uncounted
    assert expected in found


def test_a_compiled_network_is_counted_as_it_was_before():
    network = build_network("resnet20", "lcm2", layers=8)
    assert count(torch.compile(network, backend="eager"), 32) == count(network, 32)


@pytest.mark.parametrize("make", [lambda c: LCM2(c, 4), lambda c: SqueezeExcite(c, 4)])
def test_the_counts_do_not_say_where_in_a_block(make):
    """They fix stages and widths."""
    plain = count(build_network("resnet20"), 32)
    images = torch.zeros(2, 3, 32, 32)
    ours = count(fill_sites(build_network("resnet20"), make), 32)
    assert ours.params > plain.params
    # Behind the first norm, before the last norm, behind the addition and its ReLU.
    for place in ("stage*.*.bn1", "stage*.*.conv2", "stage*.*"):
        there = count(fill_sites(build_network("resnet20"), make, after=place, example=images), 32)
        assert (there.params, there.gfloat, there.macs) == (ours.params, ours.gfloat, ours.macs)
