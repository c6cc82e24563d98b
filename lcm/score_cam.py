"""Score-CAM: class activation maps weighted by the scores of masked images. It uses no gradients.

H. Wang et al., "Score-CAM: Score-Weighted Visual Explanations for Convolutional Neural Networks", CVPR Workshops 2020,
https://arxiv.org/abs/1910.01279. With A_k the k-th channel of a layer's output for the image X, and c a class:

    H_k = s(Up(A_k))             mask: upsampled to the image's size and scaled, s(a) = (a - min a) / (max a - min a)
    S_k = f_c(X * H_k)           score of the masked image
    L   = ReLU(sum_k w_k A_k)    heatmap; w_k is made from S_k

The two versions of the paper, its authors' code and the much-used libraries differ in f, w, s and more, and so do their
heatmaps. `VARIANTS` has each of them:

    variant   f            w_k              s               Up of masks     constant A_k  ReLU on
    official  probability  S_k              exact           half-pixel      left out      pixels
    increase  probability  S_k - f_c(X_b)   exact           half-pixel      left out      layer's grid
    paper     probability  softmax over k   exact           half-pixel      left out      layer's grid
    grad_cam  logit        softmax over k   + 1e-8          corner-aligned  mask of 0     layer's grid
    torchcam  logit        softmax over k   + 1e-8, 1st     half-pixel      mask of 0     layer's grid

official: the authors' github.com/haofanwang/Score-CAM (80326cb), and version 1 of the paper but for its ReLU.
increase, paper: version 2 of the paper, by its Definitions 2 and 3 or by its Algorithm 1; where it is silent, as official.
grad_cam: pytorch-grad-cam 1.5 with its default target.
torchcam: torchcam 0.5; it scales on the layer's grid and upsamples then.

Probabilities differ by at most 1, so the weights of `paper` differ at most by the factor e: its heatmaps are near the mean
of all channels, whatever the class. X_b is black, zero after normalisation; Algorithm 1 and torchcam also subtract a score,
but a softmax over k does not see it. A channel counts as constant on the layer's grid: upsampling makes it uneven by
rounding, and min-max scaling would blow that up to a mask of noise (the authors' code and pytorch-grad-cam do so, unless
the constant is 0).
"""

import contextlib
import dataclasses
import difflib
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Variant:
    """What implementations of Score-CAM differ in; see the table at the head of this file.

    score: `probability` (after the softmax over the classes) or `logit`.
    increase: subtract the score of the baseline image.
    channel_softmax: weights are the softmax of the scores over the channels; otherwise the scores themselves.
    epsilon: added to max - min when a mask is scaled. With 0 a constant channel has no mask and is left out; with more
        than 0 its mask is zero everywhere.
    scale_first: scale a mask on the layer's grid, then upsample it; otherwise the other way round.
    align_corners: how a mask is upsampled (bilinear), as in `torch.nn.functional.interpolate`.
    relu_first: ReLU on the layer's grid, then upsample; otherwise the other way round.
    """

    score: str = "probability"
    increase: bool = False
    channel_softmax: bool = False
    epsilon: float = 0.0
    scale_first: bool = False
    align_corners: bool = False
    relu_first: bool = True

    def __post_init__(self):
        if self.score not in ("probability", "logit"):
            raise ValueError(f"score must be 'probability' or 'logit', not {self.score!r}")


VARIANTS = {
    "official": Variant(relu_first=False),
    "increase": Variant(increase=True),
    "paper": Variant(channel_softmax=True),
    "grad_cam": Variant(score="logit", channel_softmax=True, epsilon=1e-8, align_corners=True),
    "torchcam": Variant(score="logit", channel_softmax=True, epsilon=1e-8, scale_first=True),
}


class ScoreCAM(NamedTuple):
    """Heatmaps of N images.

    heatmap: (N, H, W), each from 0 to 1; 0 everywhere where the weighted sum is nowhere positive.
    probability: (N,), the softmax probability of each image's class.
    weights: (N, C), w_k; 0 for channels that are left out.
    classes, predicted: (N,), the classes explained, and those of the highest logit.
    """

    heatmap: Tensor
    probability: Tensor
    weights: Tensor
    classes: Tensor
    predicted: Tensor


@torch.no_grad()
def score_cam(network, images, classes=None, *, variant="official", layer=None, baseline=None, chunk=64):
    """Score-CAM of each image for its class.

    network: a classifier, (N, 3, H, W) -> logits (N, classes). It is run in evaluation mode; afterwards its modes, hooks
        and gradients are what they were.
    images: (N, 3, H, W), normalised as in training, on the network's device.
    classes: (N,) class indices; None: the predicted ones.
    variant: a name in `VARIANTS`, or a `Variant`.
    layer: the layer whose channels are used, a module of the network or its dotted name. None: the last map that the
        network makes, which is what its global pooling reads: the last stage of a ResNet, the last batch norm of a DenseNet
        together with the ReLU that follows it in place.
    baseline: (3, H, W), the image X_b of `increase`, normalised too; None: zeros, as under a mask of 0.
    chunk: masked images in one forward pass; the memory needed grows with it, and not with the number of channels.

    Costs C + 1 forward passes an image for C channels, less one for each constant channel.
    Raises ValueError for a variant, layer, class or shape that does not fit, and for outputs that are not finite.
    """
    rule = _variant(variant)
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must be (N, 3, H, W) with N > 0, not {tuple(images.shape)}")
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    images = images.contiguous(memory_format=torch.channels_last)
    with _evaluation(network):
        logits, maps = _forward(network, images, layer)  # (N, classes), (N, C, h, w)
        predicted = logits.argmax(1)
        classes = predicted if classes is None else _check_classes(classes, logits)
        n, c = maps.shape[:2]

        def score(inputs, classes):
            outputs = network(inputs)
            outputs = outputs.softmax(1) if rule.score == "probability" else outputs
            return outputs.expand(len(classes), -1).gather(1, classes[:, None]).squeeze(1)

        channels = maps.flatten(0, 1).unsqueeze(1)  # (N * C, 1, h, w)
        varies = channels.amax((1, 2, 3)) > channels.amin((1, 2, 3))
        scores = images.new_zeros(n * c)
        for picked in varies.nonzero().squeeze(1).split(chunk):
            image = picked // c
            masked = _masks(channels[picked], images.shape[2:], rule) * images[image]
            scores[picked] = score(masked.contiguous(memory_format=torch.channels_last), classes[image])
        scores, varies = scores.view(n, c), varies.view(n, c)

        zero = torch.zeros_like(images[:1])
        if rule.epsilon > 0:  # all constant channels mask the image to the same zeros
            scores = torch.where(varies, scores, score(zero, classes)[:, None])
        if rule.increase:
            scores = scores - score(zero if baseline is None else baseline.to(images)[None], classes)[:, None]

    used = torch.ones_like(varies) if rule.epsilon > 0 else varies
    if rule.channel_softmax:
        scores = scores.masked_fill(~used, -torch.inf).softmax(1)
    weights = scores.masked_fill(~used, 0)
    if not weights.isfinite().all():
        raise ValueError("the network's outputs on the masked images are not finite: has its training diverged?")
    heatmap = torch.einsum("nc,nchw->nhw", weights, maps).unsqueeze(1)  # (N, 1, h, w)
    heatmap = heatmap.relu() if rule.relu_first else heatmap
    heatmap = F.interpolate(heatmap, size=images.shape[2:], mode="bilinear").squeeze(1).relu()  # (N, H, W)
    probability = logits.softmax(1).gather(1, classes[:, None]).squeeze(1)
    return ScoreCAM(_scale(heatmap), probability, weights, classes, predicted)


def _variant(variant):
    if isinstance(variant, Variant):
        return variant
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r} of Score-CAM; there are {', '.join(VARIANTS)}")
    return VARIANTS[variant]


def _check_classes(classes, logits):
    classes = torch.as_tensor(classes, dtype=torch.int64, device=logits.device)
    n, count = logits.shape
    if classes.shape != (n,):
        raise ValueError(f"classes must hold one index for each of the {n} images, not {tuple(classes.shape)}")
    if classes.min() < 0 or classes.max() >= count:
        raise ValueError(f"classes {classes.tolist()} are not all in 0..{count - 1}")
    return classes


def _masks(channels, size, rule):
    """(B, 1, h, w) -> (B, 1, H, W) in [0, 1]; no channel is constant unless epsilon > 0."""
    if rule.scale_first:
        channels = _scale(channels, rule.epsilon)
    channels = F.interpolate(channels, size=size, mode="bilinear", align_corners=rule.align_corners)
    return channels if rule.scale_first else _scale(channels, rule.epsilon)


def _scale(x, epsilon=0.0):
    """Each map scaled to [0, 1] over its last two dimensions; a constant map becomes zero."""
    low, high = x.amin((-2, -1), keepdim=True), x.amax((-2, -1), keepdim=True)
    span = high - low + epsilon
    return (x - low) / torch.where(span > 0, span, 1)


@contextlib.contextmanager
def _evaluation(network):
    """Evaluation mode inside the block; outside each module has the mode that it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _forward(network, images, layer):
    """The network's logits (N, classes) and the layer's output (N, C, h, w)."""
    last = None

    def keep(module, inputs, output):
        nonlocal last
        if layer is not None:
            last = output.clone()  # without what follows in place
        elif isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            last = output  # with what follows in place: that is what the pooling reads

    handles = [module.register_forward_hook(keep) for module in _hooked(network, layer)]
    try:
        logits = network(images)
    finally:
        for handle in handles:
            handle.remove()
    if last is None:
        raise ValueError("no layer of the network made a map" if layer is None else f"the layer {layer!r} did not run")
    if last.ndim != 4 or len(last) != len(images):
        raise ValueError(f"the layer's output must be (N, C, h, w), not {tuple(last.shape)}")
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"the network's output must be (N, classes), not {tuple(logits.shape)}")
    if not (logits.isfinite().all() and last.isfinite().all()):
        raise ValueError("the network's outputs are not finite: has its training diverged?")
    return logits, last


def _hooked(network, layer):
    """The modules to watch: all of them where no layer is named."""
    if layer is None:
        return list(network.modules())
    if isinstance(layer, str):
        modules = dict(network.named_modules())
        if layer not in modules:
            near = difflib.get_close_matches(layer, modules, n=1)
            raise ValueError(f"the network has no layer {layer!r}" + (f"; the nearest is {near[0]!r}" if near else ""))
        return [modules[layer]]
    if all(module is not layer for module in network.modules()):
        raise ValueError(f"{type(layer).__name__} is not a layer of this network")
    return [layer]
