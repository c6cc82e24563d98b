"""Networks of other libraries with attention behind their layers, and everything that copies,
rebuilds or fuses layers.

Whatever the operation: the network computes what it computed before, with its attention, or the
operation fails loudly.
"""

import copy
import io
import pickle

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import fuse_conv_bn_eval, parametrizations, prune

from lcm import fill_sites, remove_attention

tv, slow = torchvision.models, pytest.mark.slow


class Scale(nn.Module):
    """A number a channel: what stands behind a layer and cannot be overlooked."""

    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.7, 1.4, channels))

    def forward(self, x):
        return x * self.scale[:, None, None]


def segmentation():
    return tv.segmentation.fcn_resnet50(weights_backbone=None, num_classes=5)


def lraspp():
    return tv.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=5)


def detection():
    make = tv.detection.fasterrcnn_resnet50_fpn
    return make(weights=None, weights_backbone=None, num_classes=5).backbone


def ssdlite():
    make = tv.detection.ssdlite320_mobilenet_v3_large
    return make(weights=None, weights_backbone=None, num_classes=5).backbone


NETWORKS = {  # how it is made, the layers that attention follows, how many there are
    "norms": (tv.resnet18, "layer*.*.bn2", 8),
    "stages": (tv.resnet18, "layer*", 4),
    "timm": (lambda: timm.create_model("mobilenetv3_small_050"), "blocks.*.*", 12),
    "activations": (tv.resnet18, "layer*.*.relu", 8),
    "blocks": (tv.resnet18, "layer*.*", 8),
    "convolutions": (tv.vgg11_bn, "features.*", 29),
    "mobilenet": (tv.mobilenet_v3_small, "features.*.block.*", 41),
    "efficientnet": (tv.efficientnet_b0, "features.*.*.block.*", 63),
    "convnext": (tv.convnext_tiny, "features.*.*", 26),
    "densenet": (tv.densenet121, "features.denseblock*", 4),
    "timm resnet": (lambda: timm.create_model("resnet26"), "layer*.*.bn3", 8),
    "timm regnet": (lambda: timm.create_model("regnety_002"), "s*.b*.conv3.bn", 13),
    "timm convnext": (lambda: timm.create_model("convnext_atto"), "stages.*.blocks.*", 12),
    "segmentation": (segmentation, "backbone.layer*.*.bn3", 16),
    "lraspp": (lraspp, "backbone.*.block.0", 15),
    "detection": (detection, "body.layer*.*.bn3", 16),
    "detection, one stage": (ssdlite, "features.*.*", 18),
}
FAST = ("norms", "stages", "timm")
NAMES = [name if name in FAST else pytest.param(name, marks=slow) for name in NETWORKS]
_MADE = {}


def tensors(y):
    return list(y.values()) if isinstance(y, dict) else [y]


def settle(network):
    """Let a signal through: no branch times (almost) nothing, and the statistics of real maps."""
    for key, parameter in network.named_parameters():
        if key.endswith(("layer_scale", "gamma")) or (
            key.endswith("weight") and not parameter.any()
        ):
            nn.init.ones_(parameter)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 64, 64))
    network.eval()


def made(name):
    """(the filled network, an image, what the network makes of it, the plain network), once for all
    tests."""
    if name not in _MADE:
        torch.manual_seed(0)
        make, pattern, count = NETWORKS[name]
        plain, x = make().eval(), torch.randn(1, 3, 64, 64)
        settle(plain)
        network = fill_sites(copy.deepcopy(plain), Scale, after=pattern, example=x)
        assert sum(type(module) is Scale for module in network.modules()) == count
        _MADE[name] = network, x, tensors(network(x)), plain
    return _MADE[name]


def same(network, x, expected):
    with torch.no_grad():
        for y, y_ in zip(tensors(network(x)), expected, strict=True):
            assert (y - y_).norm() <= 1e-3 * y_.norm()


def weights_first(network, x):
    """Into another network with attention, by names alone, with the tensors themselves."""
    other = copy.deepcopy(network).to("meta")
    other.load_state_dict(network.state_dict(), assign=True)
    return other


def through_a_file(network, x):
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(network)
    for tensor in other.state_dict().values():
        tensor.zero_()
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def weight_norm(network, x):
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d):
            parametrizations.weight_norm(module)
    return network


def sync_batch_norm(network, x):
    with_activation = any(isinstance(m, timm.layers.BatchNormAct2d) for m in network.modules())
    convert = timm.layers if with_activation else nn.SyncBatchNorm
    network = convert.convert_sync_batchnorm(network)
    assert not any(type(module) is nn.BatchNorm2d for module in network.modules())
    return network


def averaged(network, x):
    mean = torch.optim.swa_utils.AveragedModel(network)
    mean.update_parameters(network)
    return mean.module


def fused_by_fx(network, x):
    try:
        return fuse(network)
    except Exception as error:  # not traceable: no network comes out
        pytest.skip(f"loud: {type(error).__name__}")


OPERATIONS = {
    "copied": lambda network, x: copy.deepcopy(network),
    "pickled": lambda network, x: pickle.loads(pickle.dumps(network)),
    "weights first": weights_first,
    "through a file": through_a_file,
    "SyncBatchNorm": sync_batch_norm,
    "frozen": lambda network, x: timm.layers.freeze_batch_norm_2d(network),
    "converted": lambda n, x: n.double().float().to(memory_format=torch.channels_last),
    "averaged": averaged,
    "weight norm": weight_norm,
    "FX": fused_by_fx,
    "exported": lambda network, x: torch.export.export(network, (x,), strict=False).module(),
    "traced": lambda network, x: torch.jit.trace(network, x, check_trace=False, strict=False),
    "compiled": lambda network, x: torch.compile(network, backend="eager"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "operation",
    [pytest.param(name, marks=slow) if name == "compiled" else name for name in OPERATIONS],
)
@pytest.mark.parametrize("name", NAMES)
def test_the_attention_is_still_there(name, operation):
    network, x, expected, plain = made(name)
    y, y_ = expected[0], tensors(plain(x))[0]
    assert (y - y_).norm() > 0.01 * y_.norm()  # its absence would be seen
    same(OPERATIONS[operation](copy.deepcopy(network), x), x, expected)


@pytest.mark.parametrize("name", NAMES)
def test_weights_keep_their_names(name):
    network, _, _, plain = made(name)
    ours, theirs = network.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    assert all(".attention.scale" in key for key in ours.keys() - theirs.keys())
    missing, unexpected = copy.deepcopy(network).load_state_dict(theirs, strict=False)
    assert set(missing) == ours.keys() - theirs.keys() and not unexpected


@pytest.mark.parametrize("name", NAMES)
def test_attention_is_taken_out_again(name):
    network, x, _, plain = made(name)
    network = remove_attention(copy.deepcopy(network), NETWORKS[name][1])
    assert list(map(str, network.modules())) == list(map(str, plain.modules()))
    same(network, x, tensors(plain(x)))
    with pytest.raises(ValueError, match="no attention stands behind a"):
        remove_attention(network)


def fused_by_hand(network):
    network.conv1 = fuse_conv_bn_eval(network.conv1, network.bn1)
    network.bn1 = nn.Identity()


FAILING = {
    "by hand": (fused_by_hand, "bn1", AttributeError, r"is \.layer\."),
    "pruning": (lambda n: prune.random_unstructured(n.bn1, "weight", 0.5), "bn1", AttributeError, r"\.layer\.weight"),
    "fuse_modules": (
        lambda n: torch.ao.quantization.fuse_modules(n, [["conv1", "bn1", "relu"]], inplace=True),
        "bn1", (AssertionError, NotImplementedError), "fuse",
    ),
    "parts": (lambda n: list(n.features.denseblock1), "features.denseblock1", TypeError, r"\.layer\[\.\.\.\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILING)
def test_what_would_lose_the_attention_fails(case):
    operation, pattern, error, message = FAILING[case]
    network = (tv.densenet121 if case == "parts" else tv.resnet18)().eval()
    fill_sites(network, Scale, after=pattern, example=torch.zeros(1, 3, 32, 32))
    with pytest.raises(error, match=message):
        operation(network)
