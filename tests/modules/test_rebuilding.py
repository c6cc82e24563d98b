"""Networks of other libraries with attention behind their layers, and everything that copies,
rebuilds or fuses layers.

Whatever the operation: the network computes what it computed before, with its attention, or the
operation fails loudly.
"""

import copy
import functools
import io
import pickle

import pytest
import timm
import torch
import torchvision
from strangers import Scale, images
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import fuse_conv_bn_eval, parametrizations, prune
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.feature_extraction import create_feature_extractor

from lcm import fill_sites, remove_attention
from lcm.attention import LCM2

tv, slow = torchvision.models, pytest.mark.slow
make_timm = functools.partial(functools.partial, timm.create_model)
segmentation = {"weights_backbone": None, "num_classes": 5}


def detection(name):
    return tv.get_model(name, weights=None, **segmentation).backbone


NETWORKS = {  # how it is made, the layers that attention follows, how many there are
    "norms": (tv.resnet18, "layer*.*.bn2", 8),
    "stages": (tv.resnet18, "layer*", 4),
    "timm mobilenet": (make_timm("mobilenetv3_small_050"), "blocks.*.*", 12),
    "timm nfnet": (make_timm("test_nfnet"), "stages.*.*", 4),
    "timm efficientnet": (make_timm("test_efficientnet"), "blocks.*.*", 5),
    "timm byobnet": (make_timm("test_byobnet"), "stages.*.*", 4),
    "timm convnext": (make_timm("test_convnext"), "stages.*.blocks.*", 9),
    "timm resnet": (make_timm("test_resnet"), "layer*.*.bn2", 4),
    "activations": (tv.resnet18, "layer*.*.relu", 8),
    "blocks": (tv.resnet18, "layer*.*", 8),
    "convolutions": (tv.vgg11_bn, "features.*", 29),
    "mobilenet": (tv.mobilenet_v3_small, "features.*.block.*", 41),
    "efficientnet": (tv.efficientnet_b0, "features.*.*.block.*", 63),
    "convnext": (tv.convnext_tiny, "features.*.*", 26),
    "densenet": (tv.densenet121, "features.denseblock*", 4),
    "timm regnet": (make_timm("regnety_002"), "s*.b*.conv3.bn", 13),
    "timm repvit": (make_timm("repvit_m0_9"), "stages.*.blocks.*.token_mixer", 20),
    "fcn": (lambda: tv.segmentation.fcn_resnet50(**segmentation), "backbone.layer*.*.bn3", 16),
    "lraspp": (lambda: tv.segmentation.lraspp_mobilenet_v3_large(**segmentation),
        "backbone.*.block.0", 15),
    "deeplab": (lambda: tv.segmentation.deeplabv3_mobilenet_v3_large(**segmentation),
        "classifier.0.convs.*", 5),
    "faster rcnn": (lambda: detection("fasterrcnn_resnet50_fpn"), "body.layer*.*.bn3", 16),
    "frozen norms": (lambda: resnet_fpn_backbone(backbone_name="resnet18", weights=None),
        "body.layer*.*.bn2", 8),
    "ssdlite": (lambda: detection("ssdlite320_mobilenet_v3_large"), "features.*.*", 18),
}  # fmt: skip
NAMES = [*list(NETWORKS)[:8], *(pytest.param(name, marks=slow) for name in list(NETWORKS)[8:])]


def tensors(y):
    return list(y.values()) if isinstance(y, dict) else [y]


def settle(network):
    """Let a signal through: no branch times (almost) nothing, and the statistics of real maps."""
    for key, parameter in network.named_parameters():
        zeros = key.endswith("weight") and not parameter.any()
        if zeros or key.endswith(("layer_scale", "gamma", "skipinit_gain")):
            nn.init.ones_(parameter)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(images(64, 4))
    return network.eval()


@functools.cache
def made(name):
    """(the filled network, an image, what the network makes of it, the plain network)."""
    torch.manual_seed(0)
    make, pattern, count = NETWORKS[name]
    plain, x = settle(make()), images(64, 1)
    network = fill_sites(copy.deepcopy(plain), Scale, after=pattern, example=x)
    assert sum(type(module) is Scale for module in network.modules()) == count
    return network, x, tensors(network(x)), plain


def same(network, x, expected):
    with torch.no_grad():
        for y, y_ in zip(tensors(network(x)), expected, strict=True):
            assert (y - y_).norm() <= 1e-3 * y_.norm()


# --------------------------------------------------------------------------------------------------
# Operations: (network, image) -> another network, or the same


def through_a_file(network, x):
    """Into another network with attention, by names alone."""
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(network).to("meta").to_empty(device="cpu")
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def sync_batch_norm(network, x):
    with_activation = any(isinstance(m, timm.layers.BatchNormAct2d) for m in network.modules())
    network = (timm.layers if with_activation else nn.SyncBatchNorm).convert_sync_batchnorm(network)
    assert not any(type(module) is nn.BatchNorm2d for module in network.modules())
    return network


def fused_by_fx(network, x):
    try:
        return fuse(network)
    except Exception as error:  # not traceable: no network comes out
        pytest.skip(f"loud: {type(error).__name__}")


def adapted(network, x):
    """Each convolution within another module, put in by `setattr`, as adapters (LoRA) are."""
    for name, module in list(network.named_modules()):
        if type(module) is nn.Conv2d:
            parent, _, key = name.rpartition(".")
            setattr(network.get_submodule(parent), key, nn.Sequential(module))
    return network


OPERATIONS = {
    "copied": lambda network, x: torch.optim.swa_utils.AveragedModel(network).module,
    "pickled": lambda network, x: pickle.loads(pickle.dumps(network)),
    "through a file": through_a_file,
    "SyncBatchNorm": sync_batch_norm,
    "frozen": lambda network, x: timm.layers.freeze_batch_norm_2d(network),
    "adapted": adapted,
    "converted": lambda n, x: n.double().float().to(memory_format=torch.channels_last),
    "reparameterised": lambda network, x: timm.utils.reparameterize_model(network),
    "functional": lambda n, x: lambda x: functional_call(n, dict(n.named_parameters()), (x,)),
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
def test_weights_keep_their_names_and_attention_is_taken_out_again(name):
    network, x, _, plain = made(name)
    ours, theirs = network.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    assert all(".attention.scale" in key for key in ours.keys() - theirs.keys())
    network = copy.deepcopy(network)
    missing, unexpected = network.load_state_dict(theirs, strict=False)
    assert set(missing) == ours.keys() - theirs.keys() and not unexpected
    network = remove_attention(network)
    assert list(map(str, network.modules())) == list(map(str, plain.modules()))
    same(network, x, tensors(plain(x)))


NOT_OF_IT = r"is \.layer\."
FAILING = {
    "fusing": (lambda n: fuse_conv_bn_eval(n.conv1, n.bn1), "bn1", NOT_OF_IT),
    "pruning": (lambda n: prune.random_unstructured(n.bn1, "weight", 0.5), "bn1", NOT_OF_IT),
    "weight norm": (lambda n: nn.utils.weight_norm(n.conv1), "conv1", NOT_OF_IT),
    "spectral norm": (lambda n: parametrizations.spectral_norm(n.conv1), "conv1", "no parameter"),
    "a method": (lambda n: n.bn1.reset_running_stats(), "bn1", NOT_OF_IT),
    "frozen by name": (lambda n: timm.utils.freeze(n, ["layer1.0.bn1"]), "layer1.0", "bn1"),
    "scripted": (torch.jit.script, "bn1", "variable number of arguments"),
    "parts": (lambda n: list(n.layer1[0]), "layer1.0", "not iterable"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", FAILING)
def test_what_would_lose_the_attention_fails(case):
    operation, pattern, message = FAILING[case]
    network = fill_sites(tv.resnet18().eval(), Scale, after=pattern, example=images(count=1))
    with pytest.raises(Exception, match=message):
        operation(network)


def test_features_are_extracted_with_the_modules_as_leaves():
    network = fill_sites(tv.resnet18().eval(), lambda c: LCM2(c, 16), after="layer*.*.bn2")
    leaves = {"leaf_modules": [LCM2]}
    extractor = create_feature_extractor(network, ["layer3", "fc"], tracer_kwargs=leaves)
    found, x = {}, images(count=2)
    network.layer3.register_forward_hook(lambda module, x, y: found.update(layer3=y))
    found["fc"] = network(x)
    assert all(map(torch.equal, extractor(x).values(), (found["layer3"], found["fc"])))
