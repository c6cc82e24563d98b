"""Non-local block, embedded Gaussian.

X. Wang, R. Girshick, A. Gupta, K. He, "Non-local Neural Networks", CVPR 2018,
https://arxiv.org/abs/1711.07971.
"""

from torch import nn

from lcm.attention.layers import full_precision, hidden_width, wide


class ZeroBatchNorm2d(nn.BatchNorm2d):
    """A batch norm whose scale starts at zero: its branch starts as nothing (section 4.1)."""

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.zeros_(self.weight)


class NonLocal(nn.Module):
    """Eqs. (1), (3), (6): x + BN(W y), y_i = sum_j softmax_j(theta(x_i) . phi(x_j)) g(x_j).

    j: all positions; theta, phi, g and W: 1x1 convolutions with biases. Nothing is subsampled:
    memory grows as (H W)^2.

    Args:
        channels: C of the map (N, C, H, W); the result has the same shape.
        reduction: the embeddings have C // reduction channels. ValueError if it is larger than C.
    """

    def __init__(self, channels, reduction=2):
        super().__init__()
        hidden = hidden_width(channels, reduction)
        self.theta = nn.Conv2d(channels, hidden, kernel_size=1)
        self.phi = nn.Conv2d(channels, hidden, kernel_size=1)
        self.g = nn.Conv2d(channels, hidden, kernel_size=1)
        self.w = nn.Conv2d(hidden, channels, kernel_size=1)
        self.bn = ZeroBatchNorm2d(channels)

    def forward(self, x):
        h, w = x.shape[2:]
        # (N, C/2, HW) each
        theta, phi, g = (embed(x).flatten(2) for embed in (self.theta, self.phi, self.g))
        with full_precision(x):  # sums of products overflow in float16
            theta, phi = theta.to(wide(theta)), phi.to(wide(phi))
            # No factor 1 / sqrt(C/2): the embedded Gaussian, unlike a transformer, has none.
            products = theta.transpose(1, 2) @ phi  # (N, HW, HW)
        weights = products.softmax(-1)
        y = weights.to(g.dtype) @ g.transpose(1, 2)  # (N, HW, HW) x (N, HW, C/2) -> (N, HW, C/2)
        return x + self.bn(self.w(y.transpose(1, 2).unflatten(2, (h, w))))
