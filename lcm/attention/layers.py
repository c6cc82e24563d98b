"""What the channel attentions share: maps pooled to vectors, and 1x1 convolutions of vectors."""

import torch
import torch.nn.functional as F
from torch import nn


def hidden_width(channels, reduction):
    """C // r, the width between two layers. ValueError where it would be less than one."""
    if reduction < 1:
        raise ValueError(f"reduction {reduction} has to be at least 1")
    if reduction > channels:
        raise ValueError(
            f"reduction {reduction} is larger than the {channels} channels it divides: choose at "
            f"most {channels}"
        )
    return channels // reduction


def full_precision(x):
    """A block without autocast on the device of x."""
    kind = x.device.type
    return torch.autocast("cpu" if kind == "meta" else kind, enabled=False)  # it knows no meta


def type_of(linear):
    """The type of the vectors that a linear layer takes."""
    # The `weight` of a quantised one is a method.
    weight = linear.weight
    return weight.dtype if isinstance(weight, torch.Tensor) else torch.float32


def wide(x):
    """float32 for a float16 x, of which sums overflow; else the type of x."""
    return torch.float32 if x.dtype == torch.float16 else x.dtype


def spatial_mean(x, dtype):
    """Global average pooling (N, C, H, W) -> (N, C), in `dtype`, that of the layers that follow."""
    _, _, h, w = x.shape
    # A sum, because its gradient is a broadcast view; that of `mean` writes a whole map.
    total = x.sum((2, 3), dtype=wide(x))
    # Divided before it is rounded to a float16 `dtype`, in which the total may be infinite.
    return (total.to(torch.promote_types(total.dtype, dtype)) / (h * w)).to(dtype)


def maximum(x, dim):
    """`x.max(dim).values`, with a gradient that deterministic CUDA graphs can hold.

    The gradient of `max` scatters. With deterministic algorithms a GPU sorts for that, and older
    versions of PyTorch wait for the indices, which cannot be captured.
    """
    if torch.are_deterministic_algorithms_enabled():
        return ComparedMaximum.apply(x, dim)
    # Not amax: it divides the gradient among equal maxima.
    return x.max(dim).values


class ComparedMaximum(torch.autograd.Function):
    """The bits of `max`; its gradient goes to the first maximum, found by comparing positions."""

    @staticmethod
    def forward(ctx, x, dim):
        values, index = x.max(dim, keepdim=True)
        ctx.save_for_backward(index)
        ctx.dim, ctx.length = dim % x.dim(), x.shape[dim]
        return values.squeeze(dim)

    @staticmethod
    def backward(ctx, gradient):
        (index,) = ctx.saved_tensors
        # (length, 1, ..., 1); the index, of length 1 along `dim`, makes a mask of it
        positions = torch.arange(ctx.length, device=index.device).view(
            -1, *[1] * (index.dim() - 1 - ctx.dim)
        )
        return torch.where(index == positions, gradient.unsqueeze(ctx.dim), 0), None


class VectorConv(nn.Conv2d):
    """A 1x1 convolution of a 1x1 map held as a vector, (N, C) -> (N, C'): one matrix product.

    Its weight (C', C, 1, 1), its initialisation and its arithmetic are those of `nn.Conv2d`.
    """

    def __init__(self, in_channels, out_channels, bias=True):
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, x):
        return F.linear(x, self.weight.flatten(1), self.bias)
