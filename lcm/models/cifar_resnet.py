"""Residual networks for 32x32 images, 6n+2 layers.

K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section
4.2, https://arxiv.org/abs/1512.03385.
"""

import torch.nn.functional as F
from torch import nn

from lcm.models.places import Site
from lcm.models.weights import FanOutConv2d


class BasicBlock(nn.Module):
    """Residual branch: 3x3, BN, ReLU, 3x3, BN, site; plus the shortcut; ReLU.

    The shortcut has no parameters (option A): where the branch halves the map and widens it, every
    second row and column is kept and the new channels are zero.
    """

    def __init__(self, in_channels, channels, stride, stage):
        super().__init__()
        self.conv1 = FanOutConv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = FanOutConv2d(channels, channels, kernel_size=3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.site = Site(channels, stage)
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, x):
        branch = F.relu(self.bn1(self.conv1(x)), inplace=True)
        branch = self.site(self.bn2(self.conv2(branch)))
        # F.pad counts from the last dimension: its last pair puts channels behind the old ones.
        if self.new_channels:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(branch + x, inplace=True)


class CifarResNet(nn.Module):
    """3x3 convolution to 16 channels, three stages of n basic blocks at 16, 32 and 64 channels,
    average pool, linear.

    Args:
        layers: depth 6n + 2: 20, 32, 50, ... ValueError otherwise.
        num_classes: width of the last layer.

    Images (N, 3, 32, 32), logits (N, num_classes). The blocks of stage i hold the sites of stage i.
    """

    drawn_by_layer = True

    def __init__(self, layers, num_classes):
        super().__init__()
        if layers < 8 or layers % 6 != 2:
            raise ValueError(
                "a ResNet for 32x32 images has 6n + 2 layers (8, 14, 20, 26, 32, ...), "
                f"not {layers}"
            )
        # Three stages of n blocks of two convolutions; the 2 are the stem and the linear layer.
        blocks = (layers - 2) // 6
        self.conv = FanOutConv2d(3, 16, kernel_size=3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.stage1 = self._stage(16, 16, blocks, stage=1)
        self.stage2 = self._stage(16, 32, blocks, stage=2)
        self.stage3 = self._stage(32, 64, blocks, stage=3)
        # A module, which the paper's counter counts; a function it would not see.
        self.pool = nn.AvgPool2d(8, ceil_mode=True)  # drops no border of a larger map
        self.fc = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(in_channels, channels, blocks, stage):
        first = BasicBlock(in_channels, channels, 1 if stage == 1 else 2, stage)
        return nn.Sequential(
            first, *(BasicBlock(channels, channels, 1, stage) for _ in range(blocks - 1))
        )

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)), inplace=True)  # (N, 16, 32, 32)
        x = self.stage1(x)
        x = self.stage2(x)  # (N, 32, 16, 16)
        x = self.stage3(x)  # (N, 64, 8, 8)
        return self.fc(self.pool(x).flatten(1))
