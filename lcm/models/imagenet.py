"""torchvision's ResNet-50, ResNeXt-50 and DenseNet-121, used as they are, with sites for attention.

Importing this module imports torchvision, which takes a second: no other module of lcm.models does.
"""

import torchvision
from torch import nn
from torchvision.models.densenet import _DenseLayer
from torchvision.models.resnet import BasicBlock, Bottleneck

from lcm.models.attended import unwrapped
from lcm.models.places import Site, places
from lcm.models.weights import FanInConv2d, FanOutConv2d, ZeroBiasLinear


class SiteBasicBlock(BasicBlock):
    """torchvision's basic block, 3x3, BN, ReLU, 3x3, BN, with a site before the addition."""

    def forward(self, x):
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.site(self.bn2(self.conv2(branch)))
        return self.relu(branch + (x if self.downsample is None else self.downsample(x)))


class SiteBottleneck(Bottleneck):
    """torchvision's bottleneck, 1x1, BN, ReLU, 3x3, BN, ReLU, 1x1, BN, site; then the addition."""

    def forward(self, x):
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.site(self.bn3(self.conv3(branch)))
        return self.relu(branch + (x if self.downsample is None else self.downsample(x)))


class SiteDenseLayer(_DenseLayer):
    """torchvision's dense layer, BN, ReLU, 1x1, BN, ReLU, 3x3, with a site for its k new maps."""

    def forward(self, x):
        return self.site(super().forward(x))


WITH_SITE = {
    BasicBlock: SiteBasicBlock,
    Bottleneck: SiteBottleneck,
    _DenseLayer: SiteDenseLayer,
}


def give_sites(network):
    """Give torchvision's blocks in a network their sites: each takes a class whose forward pass has
    the site in it.

    The blocks of one parent, such as `layer1` or `denseblock1`, are a stage. Raises ValueError,
    before anything changes, where a block's class is derived from torchvision's: its forward pass
    may be another.
    """
    blocks = [(name, parent, unwrapped(module)) for name, parent, _, module in places(network)]
    blocks = [found for found in blocks if isinstance(found[-1], tuple(WITH_SITE))]
    for name, _, block in blocks:
        # An instance's own `forward` (a checkpoint around it) would hide that of the new class.
        if type(block) not in (*WITH_SITE, *WITH_SITE.values()) or "forward" in vars(block):
            raise ValueError(
                f"{name} is a {type(block).__name__}, which may compute something else than "
                "torchvision's: name the modules that attention is to follow "
                '(after="layer*.*.bn3")'
            )
    stages = {}
    for _, parent, block in blocks:
        if type(block) in WITH_SITE:
            last = block.conv3 if isinstance(block, Bottleneck) else block.conv2
            stage = stages.setdefault(parent, len(stages) + 1)
            # The same object: parameters, hooks and whatever refers to the block stay.
            block.__class__ = WITH_SITE[type(block)]
            block.site = Site(last.out_channels, stage).train(block.training)


def resnet50(num_classes):
    """ResNet-50, images (N, 3, 224, 224) -> logits (N, num_classes); 16 blocks, a site in each."""
    return _prepare(torchvision.models.resnet50(num_classes=num_classes), {nn.Conv2d: FanOutConv2d})


def resnext50_32x4d(num_classes):
    """ResNeXt-50 (32x4d), shapes and sites as in `resnet50`."""
    return _prepare(
        torchvision.models.resnext50_32x4d(num_classes=num_classes), {nn.Conv2d: FanOutConv2d}
    )


def densenet121(num_classes):
    """DenseNet-121, shapes as in `resnet50`, with a site in each of its 58 dense layers."""
    return _prepare(
        torchvision.models.densenet121(num_classes=num_classes),
        {nn.Conv2d: FanInConv2d, nn.Linear: ZeroBiasLinear},
    )


def _prepare(network, own_rules):
    """Add the sites; give each layer the rule by which torchvision's loop drew its weights."""
    for layer in network.modules():
        # Nothing but `reset_parameters` changes, which `draw_weights` calls.
        if type(layer) in own_rules:
            layer.__class__ = own_rules[type(layer)]
    give_sites(network)
    return network


for _network in (resnet50, resnext50_32x4d, densenet121):
    _network.drawn_by_layer = True  # see lcm.models.weights.new_module
