"""Score-CAM: class activation maps weighted by the scores of masked images. It uses no gradients.

H. Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks",
CVPR Workshops 2020, https://arxiv.org/abs/1910.01279. With A_k the k-th channel of a layer's output
for the image X, and c a class:

    H_k = s(Up(A_k))                  mask: upsampled to the image's size, then scaled by
                                      s(a) = (a - min a) / (max a - min a)
    S_k = f_c(X * H_k)                probability of the class for the masked image
    L   = s(ReLU(Up(sum_k S_k A_k)))  heatmap

This is the authors' code, github.com/haofanwang/Score-CAM (80326cb), and version 1 of the paper but
for the place of its ReLU; version 2 of the paper, pytorch-grad-cam and torchcam differ from it.
Channels that are constant are left out: upsampling makes them uneven by rounding, and scaling would
blow that up to a mask of noise.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lcm.copies import twin
from lcm.errors import nearest


class ScoreCAM(NamedTuple):
    """Heatmaps of N images.

    heatmap: (N, H, W), each from 0 to 1; 0 everywhere where the weighted sum is nowhere positive.
    probability: (N,), the softmax probability of each image's class.
    weights: (N, C), S_k; 0 for channels that are left out.
    classes, predicted: (N,), the classes explained, and those of the highest logit.
    """

    heatmap: Tensor
    probability: Tensor
    weights: Tensor
    classes: Tensor
    predicted: Tensor


# `_refuse_probabilities` needs autograd, and in inference mode enable_grad has no effect.
@torch.inference_mode(False)
@torch.no_grad()
def score_cam(network, images, classes=None, *, layer=None, chunk=64):
    """Score-CAM of each image for its class.

    network: a classifier, (N, 3, H, W) -> logits (N, classes); a single logit z, (N, 1), is that of
        class 1, and class 0 has the logit 0: their probabilities are sigmoid(z) and 1 - sigmoid(z).
        A copy of it runs, in evaluation mode.
    images: (N, 3, H, W), normalised as in training, on the network's device.
    classes: (N,) class indices; None: the predicted ones.
    layer: dotted name of the module whose channels are used. None: the last map of more than one
        position that the network makes, in general what its global pooling reads: the last stage of
        a ResNet, the last batch norm of a DenseNet with its ReLU in place.
    chunk: masked images in one forward pass; the memory needed grows with it, and not with the
        number of channels.

    Costs C + 1 forward passes an image, less one for each constant channel. Raises ValueError for a
    layer without maps, and for outputs that are probabilities already, or not finite.
    """
    network = twin(network)
    # NHWC memory, which convolutions read faster
    images = images.contiguous(memory_format=torch.channels_last)
    size = images.shape[2:]
    outputs, maps = _forward(network, images, layer)  # (N, classes), (N, C, h, w)
    _refuse_probabilities(network, images, outputs)
    logits = _two_sided(outputs)
    predicted = logits.argmax(1)
    classes = predicted if classes is None else torch.as_tensor(classes, device=images.device)
    n, c = maps.shape[:2]
    # All images' channels in one row, image * C + channel: all chunks but the last are full.
    channels = maps.flatten(0, 1).unsqueeze(1)  # (N * C, 1, h, w)
    varies = channels.amax((1, 2, 3)) > channels.amin((1, 2, 3))
    weights = images.new_zeros(n * c)
    # S_k is the class's probability where the image shows only what channel k responds to.
    for picked in varies.nonzero().squeeze(1).split(chunk):
        image = picked // c
        masks = _scale(F.interpolate(channels[picked], size=size, mode="bilinear"))
        masked = (masks * images[image]).contiguous(memory_format=torch.channels_last)
        scores = _two_sided(network(masked)).softmax(1)
        weights[picked] = scores.gather(1, classes[image, None]).squeeze(1).to(weights.dtype)
    weights = weights.view(n, c)
    # A channel with NaN passes for a constant one, as NaN > NaN is false, and gets no weight:
    # so the maps are asked, too.
    if not (logits.isfinite().all() and maps.isfinite().all() and weights.isfinite().all()):
        raise ValueError("the network's outputs are not finite: has its training diverged?")
    # Upsampling is linear: one small sum is upsampled instead of C maps.
    heatmap = torch.einsum("nc,nchw->nhw", weights, maps).unsqueeze(1)  # (N, 1, h, w)
    heatmap = F.interpolate(heatmap, size=size, mode="bilinear").squeeze(1).relu()  # (N, H, W)
    probability = logits.softmax(1).gather(1, classes[:, None]).squeeze(1)
    return ScoreCAM(_scale(heatmap), probability, weights, classes, predicted)


def _two_sided(logits):
    """Logits of two classes, (N, 2), for a single one; others as they are."""
    if logits.shape[1] > 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], 1)


# What may stand between a softmax or sigmoid and the output, and leaves the values as they are.
_VIEWS = ("View", "ReshapeAlias", "UnsafeView", "Squeeze", "Unsqueeze", "Clone", "ToCopy", "T")


def _refuse_probabilities(network, images, outputs):
    """ValueError where the network ends in a softmax or sigmoid: a second softmax on it is flat.

    A softmax shows in the values, (N, classes). A sigmoid does not, two logits may well lie between
    0 and 1: autograd's record of a forward pass of one image tells which operation was the last.
    """
    sums_to_one = (outputs >= 0).all() and ((outputs.sum(1) - 1).abs() < 1e-4).all()
    # A network with frozen weights leaves a record only where its input requires gradients.
    # That is a copy, as the caller's images stay as they are; times 1, as a network may change
    # its input in place, which a leaf forbids.
    with torch.enable_grad():
        last = network(images[:1].clone().requires_grad_() * 1).grad_fn
    while last is not None and last.name().split("Backward")[0] in _VIEWS:
        last = last.next_functions[0][0]
    kind = "" if last is None else last.name()
    if kind.startswith(("Softmax", "Sigmoid", "Hardsigmoid")) or (
        outputs.shape[1] > 1 and sums_to_one
    ):
        raise ValueError(
            "the network's outputs are probabilities, and Score-CAM takes the softmax itself: "
            "give it the network without its last softmax or sigmoid"
        )


def _scale(x):
    """Each map scaled to [0, 1] over its last two dimensions; a constant map becomes zero."""
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    return (x - low) / torch.where(high > low, high - low, 1)


def _is_skewed(maps, images):
    """Whether (N, C, h, w) has another aspect than its images: (N, h, w, C), or tokens by heads."""
    (h, w), (height, width) = maps.shape[2:], images.shape[2:]
    # h / w against height / width, multiplied out. On small maps the two differ by rounding and
    # padding: hence the factor.
    return max(h * width, w * height) > 3 * min(h * width, w * height)


def _forward(network, images, layer):
    """The network's logits (N, classes) and the layer's output (N, C, h, w)."""
    last = None

    def keep(module, inputs, output):
        nonlocal last
        if layer is not None:
            last = output.clone()  # without what follows in place
        elif getattr(output, "ndim", 0) == 4 and output.shape[2] * output.shape[3] > 1:
            last = output  # with what follows in place: that is what the pooling reads
        elif getattr(output, "ndim", 0) == 3:
            last = None  # tokens (N, L, C): the output reads them, not the map before them

    modules = dict(network.named_modules())
    if layer is not None and layer not in modules:
        raise ValueError(f"the network has no layer {layer!r}{nearest(layer, modules)}")
    # A hook runs when its module's call ends: `last` is the last in time, not in definition.
    for module in modules.values() if layer is None else [modules[layer]]:
        module.register_forward_hook(keep)
    logits = network(images)
    if getattr(last, "ndim", 0) != 4 or _is_skewed(last, images):
        raise ValueError(
            f"the output of {layer or 'the last layer'} must be a map (N, C, h, w): name a layer "
            "whose output is one"
        )
    return logits, last
