"""Densely connected networks for 32x32 images, without bottleneck and without compression.

G. Huang, Z. Liu, L. van der Maaten, K. Q. Weinberger, "Densely Connected Convolutional Networks",
CVPR 2017, section 3, https://arxiv.org/abs/1608.06993.
"""

import torch
import torch.nn.functional as F
from torch import nn

from lcm.models.dense_block import recomputed, with_recomputation
from lcm.models.places import Site
from lcm.models.weights import FanOutConv2d


class DenseLayer(nn.Module):
    """BN, ReLU, 3x3 to k new maps, site."""

    def __init__(self, in_channels, growth_rate, stage):
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = FanOutConv2d(in_channels, growth_rate, kernel_size=3, padding=1)
        self.site = Site(growth_rate, stage)

    def forward(self, x):
        """x: the maps, (N, in_channels, H, W), or a list of them, which is joined twice: here, and
        for the backward pass.
        """
        return self.site(recomputed(self, x) if isinstance(x, list) else self.new_maps(x))

    def new_maps(self, x):
        """(N, k, H, W), before the site."""
        # In place: the backward pass of a batch norm reads its input, not its result.
        return self.conv(F.relu(self.bn(x), inplace=True))


class DenseBlock(nn.ModuleList):
    """Dense layers, each fed with the block's input and the new maps of all layers before it.

    Args:
        in_channels: channels of the block's input.
        layers: number of dense layers.
        growth_rate: k, the new maps of each layer; the result has in_channels + layers * k.
        stage: the stage of the layers' sites, from 1.
        memory: "fast", quadratic in the number of layers, or "linear" (lcm.models.dense_block).
    """

    def __init__(self, in_channels, layers, growth_rate, stage, memory):
        super().__init__(
            DenseLayer(in_channels + i * growth_rate, growth_rate, stage) for i in range(layers)
        )
        self.memory = memory

    def forward(self, x):
        """x (N, in_channels, H, W) -> (N, in_channels + layers * k, H, W): `x` and all new maps."""
        if self.memory == "linear" and torch.is_grad_enabled():
            return with_recomputation(self, x)
        for layer in self:
            x = torch.cat((x, layer(x)), 1)  # the backward pass keeps each of these
        return x


class Transition(nn.Module):
    """BN, ReLU, 1x1 of the same width, 2x2 average pool."""

    def __init__(self, channels):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = FanOutConv2d(channels, channels, kernel_size=1)

    def forward(self, x):
        # A function: the paper's counter sees modules alone, and leaves this pool out.
        return F.avg_pool2d(self.conv(F.relu(self.bn(x), inplace=True)), 2)


class CifarDenseNet(nn.Module):
    """3x3 convolution to 2k channels, three dense blocks with transitions between, BN, ReLU,
    average pool, linear.

    Args:
        layers: depth 3n + 4: 40, 64, 100, ...; n layers a block. ValueError otherwise.
        growth_rate: k, the new maps of each layer.
        num_classes: width of the last layer.
        memory: "fast" concatenates in every layer; "linear" recomputes in the backward pass instead
            of keeping: the same network, up to rounding, in less memory. ValueError for anything
            else.

    Images (N, 3, 32, 32), logits (N, num_classes). The layers of block i hold the sites of stage i.
    """

    drawn_by_layer = True

    def __init__(self, layers, growth_rate, num_classes, memory="fast"):
        super().__init__()
        if layers < 7 or layers % 3 != 1:
            raise ValueError(
                "a DenseNet for 32x32 images has 3n + 4 layers (7, ..., 40, 64, 100, ...), "
                f"not {layers}"
            )
        if memory not in ("fast", "linear"):
            raise ValueError(f"memory={memory!r} is not one of: fast, linear")
        # The other 4 layers: the stem, the two transitions and the linear layer.
        per_block = (layers - 4) // 3
        # Channels that enter blocks 1, 2 and 3, and that leave block 3.
        width = [2 * growth_rate + i * per_block * growth_rate for i in range(4)]
        self.conv = FanOutConv2d(3, width[0], kernel_size=3, padding=1)
        self.block1 = DenseBlock(width[0], per_block, growth_rate, 1, memory)
        self.transition1 = Transition(width[1])
        self.block2 = DenseBlock(width[1], per_block, growth_rate, 2, memory)
        self.transition2 = Transition(width[2])
        self.block3 = DenseBlock(width[2], per_block, growth_rate, 3, memory)
        self.bn = nn.BatchNorm2d(width[3])
        # A module, which the paper's counter counts.
        self.pool = nn.AvgPool2d(8, ceil_mode=True)  # drops no border of a larger map
        self.fc = nn.Linear(width[3], num_classes)

    def forward(self, x):
        x = self.conv(x)  # (N, 2k, 32, 32)
        x = self.transition1(self.block1(x))  # (N, (2 + n) k, 16, 16)
        x = self.transition2(self.block2(x))  # (N, (2 + 2n) k, 8, 8)
        x = F.relu(self.bn(self.block3(x)), inplace=True)  # (N, (2 + 3n) k, 8, 8)
        return self.fc(self.pool(x).flatten(1))
