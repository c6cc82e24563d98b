"""Global context block.

Y. Cao, J. Xu, S. Lin, F. Wei, H. Hu, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks
and Beyond", ICCVW 2019, https://arxiv.org/abs/1904.11492.
"""

import torch.nn.functional as F
from torch import nn

from lcm.attention.layers import VectorConv, full_precision, hidden_width


class ZeroVectorConv(VectorConv):
    """A 1x1 convolution that starts at zero, so that the branch it ends starts as nothing."""

    def reset_parameters(self):
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class GlobalContext(nn.Module):
    """Eq. (5): x + Wv2 ReLU(LN(Wv1 c)), c = sum_j softmax_j(Wk x_j) x_j over all positions j.

    Args:
        channels: C of the map (N, C, H, W); the result has the same shape.
        reduction: r; the hidden width is C // r. ValueError if it is less than 2.
    """

    def __init__(self, channels, reduction):
        super().__init__()
        hidden = hidden_width(channels, reduction)
        if hidden == 1:
            raise ValueError(
                f"reduction {reduction} leaves one of {channels} channels, and a layer norm of one "
                "channel is constant: choose one that leaves at least two"
            )
        self.wk = nn.Conv2d(channels, 1, kernel_size=1)
        # A module: the paper's counter counts it, a functional softmax it would not see.
        self.softmax = nn.Softmax(dim=-1)
        self.wv1 = VectorConv(channels, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.wv2 = ZeroVectorConv(hidden, channels)

    def forward(self, x):
        mask = self.softmax(self.wk(x).flatten(1))  # (N, HW)
        # (N, C, HW) x (N, HW, 1) -> (N, C, 1)
        context = x.flatten(2) @ mask.to(x.dtype)[:, :, None]
        with full_precision(x):
            context = context.flatten(1).to(self.wv1.weight.dtype)
            z = self.wv2(F.relu(self.norm(self.wv1(context))))  # (N, C)
            return x + z.to(x.dtype)[:, :, None, None]
