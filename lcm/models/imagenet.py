"""torchvision's ResNet-50, ResNeXt-50 and DenseNet-121, used as they are, with sites for attention.

Importing this module imports torchvision, which takes a second: nothing else in the package does.
"""

import torchvision
from torch import nn
from torchvision.models.densenet import DenseNet, _DenseLayer
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from lcm.models.sites import Site
from lcm.models.weights import FanInConv2d, FanOutConv2d, ZeroBiasLinear


class SiteBasicBlock(BasicBlock):
    """torchvision's basic block, 3x3, BN, ReLU, 3x3, BN, with a site before the addition."""

    def forward(self, x):
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.site(self.bn2(self.conv2(branch)))
        return self.relu(branch + (x if self.downsample is None else self.downsample(x)))


class SiteBottleneck(Bottleneck):
    """torchvision's bottleneck, 1x1, BN, ReLU, 3x3, BN, ReLU, 1x1, BN, with a site before the addition."""

    def forward(self, x):
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.site(self.bn3(self.conv3(branch)))
        return self.relu(branch + (x if self.downsample is None else self.downsample(x)))


class SiteDenseLayer(_DenseLayer):
    """torchvision's dense layer, BN, ReLU, 1x1, BN, ReLU, 3x3, with a site for its k new maps."""

    def forward(self, x):
        return self.site(super().forward(x))


def add_sites(network):
    """Give each block of torchvision's residual and dense networks its site; other networks are left as they are.

    A block changes its class, for one whose forward pass has the site in it, and nothing else: its layers, their names
    and their weights stay.
    """
    if isinstance(network, ResNet):
        for stage in (1, 2, 3, 4):
            for block in getattr(network, f"layer{stage}"):
                if type(block) is BasicBlock:
                    block.__class__, channels = SiteBasicBlock, block.bn2.num_features
                elif type(block) is Bottleneck:
                    block.__class__, channels = SiteBottleneck, block.bn3.num_features
                else:
                    continue
                block.site = Site(channels, stage)
    elif isinstance(network, DenseNet):
        for stage in (1, 2, 3, 4):
            for layer in network.features.get_submodule(f"denseblock{stage}").values():
                if type(layer) is _DenseLayer:
                    layer.__class__ = SiteDenseLayer
                    layer.site = Site(layer.conv2.out_channels, stage)


def resnet50(num_classes):
    """ResNet-50, images (N, 3, 224, 224) -> logits (N, num_classes), with a site in each of its 16 blocks."""
    return _prepare(torchvision.models.resnet50(num_classes=num_classes), {nn.Conv2d: FanOutConv2d})


def resnext50_32x4d(num_classes):
    """ResNeXt-50 (32x4d), images (N, 3, 224, 224) -> logits (N, num_classes), with a site in each of its 16 blocks."""
    return _prepare(
        torchvision.models.resnext50_32x4d(num_classes=num_classes), {nn.Conv2d: FanOutConv2d}
    )


def densenet121(num_classes):
    """DenseNet-121, images (N, 3, 224, 224) -> logits (N, num_classes), with a site in each of its 58 dense layers."""
    own_rules = {nn.Conv2d: FanInConv2d, nn.Linear: ZeroBiasLinear}
    return _prepare(torchvision.models.densenet121(num_classes=num_classes), own_rules)


def _prepare(network, own_rules):
    """Add the sites, and give each layer the rule by which torchvision's loop over the network drew its weights."""
    for layer in network.modules():
        if type(layer) in own_rules:
            layer.__class__ = own_rules[type(layer)]
    add_sites(network)
    return network
