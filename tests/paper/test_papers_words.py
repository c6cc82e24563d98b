"""Where the paper's words and its printed counts disagree, built as the words say: the printed cell
is missed.

REPRODUCTION.md lists the disagreements. That the networks of this repository meet all 114 cells is
in test_complexity.py.
"""

import pytest
import torch
from plain import digits_top1
from torchvision.models import DenseNet

from lcm.models.build import build_network
from lcm.reporting.render import as_printed

# The head that DenseNet-121's printed counts hold besides the trained one.
EXTRA_HEAD = 8_081_356 - 7_056_356


def parameters(model, attention="none", num_classes=10, **changes):
    with torch.device("meta"):
        return sum(
            p.numel() for p in build_network(model, attention, num_classes, **changes).parameters()
        )


def printed(number, cell):
    return as_printed(number / 1e6, cell)


@pytest.mark.parametrize(
    ("model", "attention", "as_worded", "as_counted", "cell"),
    [
        # Section 4.3: r is 32.
        ("resnext50", "lcm2", {"reduction": 32}, {"reduction": 64}, "23.81"),
        ("resnext50", "se", {"reduction": 32}, {"reduction": 16}, "25.72"),
        ("resnext50", "cbam", {"reduction": 32}, {"reduction": 16}, "25.72"),
        ("resnext50", "gc", {"reduction": 32}, {"reduction": 4}, "33.19"),
        ("resnet50", "se", {"reduction": 32}, {"reduction": 16}, "26.24"),
        ("resnet50", "cbam", {"reduction": 32}, {"reduction": 16}, "26.25"),
        ("resnet50", "gc", {"reduction": 32}, {"reduction": 16}, "26.24"),
        # Section 4.3: r is 1.
        ("densenet121", "lcm2", {"reduction": 1}, {"reduction": 4}, "8.112"),
        ("densenet121", "se", {"reduction": 1}, {"reduction": 4}, "8.113"),
        # Eq. (7): no bias.
        ("densenet64", "lcm2", {"expand_bias": False}, {"expand_bias": True}, "2.840"),
        ("densenet100", "lcm2", {"expand_bias": False}, {"expand_bias": True}, "7.100"),
    ],
)
def test_the_words_miss_the_cell_and_the_counts_meet_it(
    model, attention, as_worded, as_counted, cell
):
    num_classes = 10 if model in ("densenet64", "densenet100") else 100
    for keys in (as_worded, as_counted):
        count = parameters(model, attention, num_classes, **keys) + EXTRA_HEAD * (
            model == "densenet121"
        )
        assert (printed(count, cell) == cell) == (keys is as_counted)


def test_densenet121_has_growth_rate_32():
    """Section 4.3: "each 3 × 3 convolutional layer produces 12 feature maps"; printed: 8.081 M."""
    with torch.device("meta"):
        for start in (24, 64):
            worded = DenseNet(12, (6, 12, 24, 16), start, num_classes=100)
            assert sum(p.numel() for p in worded.parameters()) < 1_500_000


# The weights of W1 and W2 in ResNet-20+LCM1, three sites a stage.
W1_AND_W2 = sum(2 * 3 * c * (c // 4) for c in (16, 32, 64))


@pytest.mark.parametrize(
    ("arguments", "extra", "cell"),
    [
        # Of DenseNet-121 two heads are counted, 8.081: one of 100 classes, and one of 1000.
        (("densenet121", "none", 100), EXTRA_HEAD, "8.081"),
        (("densenet121", "none", 100), 0, "7.056"),
        (("densenet121", "none", 1000), 0, "7.979"),
        (("densenet121", "none", 1000), 1024 * 100 + 100, "8.081"),
        # f is no "convolution operation with the filter size of 3 × 3": 18 weights instead of 2 at
        # each of 96 sites.
        (("densenet100", "lcm2"), 0, "7.100"),
        (("densenet100", "lcm2"), 96 * 16, "7.101"),
        # W1 and W2 are no "Conv, 3 × 3", as Eq. (5) says: 0.278.
        (("resnet20", "lcm1"), 0, "0.278"),
        (("resnet20", "lcm1"), 8 * W1_AND_W2, "0.342"),
        # CIFAR-100's rows are printed with the counts of ten classes.
        (("resnet20", "none", 10), 0, "0.270"),
        (("resnet20", "none", 100), 0, "0.276"),
        (("resnet32", "none", 10), 0, "0.464"),
        (("resnet32", "none", 100), 0, "0.470"),
        (("resnet50_cifar", "none", 10), 0, "0.756"),
        (("resnet50_cifar", "none", 100), 0, "0.762"),
        (("densenet40", "none", 10), 0, "1.059"),
        (("densenet40", "none", 100), 0, "1.100"),
        (("densenet64", "none", 10), 0, "2.830"),
        (("densenet64", "none", 100), 0, "2.897"),
        (("densenet100", "none", 10), 0, "7.084"),
        (("densenet100", "none", 100), 0, "7.189"),
    ],
)
def test_another_reading_is_printed_otherwise(arguments, extra, cell):
    assert printed(parameters(*arguments) + extra, cell) == cell


def test_on_a_1x1_map_only_the_centre_of_a_3x3_convolution_acts():
    """Why 1x1 convolutions compute what 3x3 ones would, with a ninth of the weights."""
    x, weight = (
        torch.randn(2, 6, 1, 1, dtype=torch.float64),
        torch.randn(4, 6, 3, 3, dtype=torch.float64),
    )
    whole = torch.nn.functional.conv2d(x, weight, padding=1)
    assert torch.allclose(
        whole, torch.nn.functional.conv2d(x, weight[:, :, 1:2, 1:2]), rtol=0, atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
# 98.3 and 69.3 when this was written.
@pytest.mark.parametrize("kaiming, low, high", [(False, 95, 100), (True, 0, 85)])
def test_lcm1_hardly_trains_from_kaiming_normal_weights(kaiming, low, high):
    """The paper names no initialisation.

    Six epochs on digits: PyTorch's default and He's normal weights in W1 and W2.
    """
    network = build_network("resnet20", "lcm1", num_classes=10, seed=0)
    torch.manual_seed(0)
    for name, layer in network.named_modules():
        if kaiming and name.endswith((".site.w1", ".site.w2")):
            torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    assert low < digits_top1(network, 6) < high
