"""Two equal forward passes of a dense block: a plain one, and one with memory linear in its depth.

G. Pleiss et al., "Memory-Efficient Implementation of DenseNets", 2017,
https://arxiv.org/abs/1707.06990, keeps one copy of each map and recomputes what batch norm makes of
it. Here the batch statistics of a map are computed once, too.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from lcm.models.attended import Attended
from lcm.models.weights import FanOutConv2d

MAPS = (0, 2, 3)  # what batch norm averages over: all but the channels


def concatenate(layers, x):
    """Dense layers one after the other, each fed with `x` and the new maps of all before it, which
    it concatenates anew.

    Args:
        layers: modules (N, C + i k, H, W) -> (N, k, H, W), i counted from 0.
        x: (N, C, H, W).

    Returns:
        (N, C + layers k, H, W): `x` and all new maps. Memory grows as the square of their number.
    """
    for layer in layers:
        x = torch.cat((x, layer(x)), 1)
    return x


def one_buffer(layers, x):
    """What `concatenate` computes, values, gradients and running statistics up to rounding, in
    memory linear in depth.

    All maps are stored in one buffer, and so are their gradients in the backward pass; the input of
    each convolution is recomputed from the buffer when its gradient is due. Evaluation, `no_grad`
    and blocks with frozen batch norms take `concatenate`, and so do blocks in which a layer, a norm
    or a convolution is wrapped, hooked or of another kind.

    Args:
        layers: BN, ReLU, 3x3, site: modules with `bn`, `conv` (no bias) and `site`, as
            `DenseLayer`. A site may be any module that keeps the shape of the k new maps; what its
            own backward pass needs is kept.
        x: (N, C, H, W), in channels-last memory or not; the result is in the same.
    """
    if torch.compiler.is_compiling():
        # No decorator: it would import torch._dynamo, a second of start-up.
        return torch.compiler.disable(one_buffer)(layers, x)
    if not (torch.is_grad_enabled() and all(map(_is_known, layers))):
        return concatenate(layers, x)
    # Autograd returns gradients to the arguments of `apply` alone: parameters are passed flat,
    # in the order in which `backward` returns theirs.
    parameters = [
        (layer.bn.weight, layer.bn.bias, layer.conv.weight, *_learning(layer.site))
        for layer in layers
    ]
    return _OneBuffer.apply(layers, x, *(parameter for group in parameters for parameter in group))


def _is_known(layer):
    """Whether a layer trains and is what this module computes by itself, without calling it."""
    # An Attended lends its layer's attributes: `bn` and `conv` would be those of the layer, and
    # the attention behind it would be skipped.
    if isinstance(layer, Attended):
        return False
    bn, conv, site = layer.bn, layer.conv, layer.site
    # Exact types: a derived class (a parametrised layer is one) may compute something else. An
    # empty site is not called at all, so that no class derived from Identity may be there.
    plain = (
        type(bn) is nn.BatchNorm2d
        and (bn.training and bn.track_running_stats and bn.affine and bn.momentum is not None)
        and type(conv) is FanOutConv2d
        and (conv.padding_mode, conv.dilation) == ("zeros", (1, 1))
        and (not isinstance(site, nn.Identity) or type(site).forward is nn.Identity.forward)
    )
    # Hooks run when a module is called; `_OneBuffer` calls none of these. Pruning is a hook.
    hooked = any(
        "forward" in vars(module) or getattr(module, f"_{hooks}_hooks")
        for module in (layer, bn, conv, site)
        for hooks in ("forward", "forward_pre", "backward", "backward_pre")
    )
    # a replica of DataParallel has no parameters of its own
    return plain and not hooked and not hasattr(layer, "_is_replica")


def _learning(site):
    return [parameter for parameter in site.parameters() if parameter.requires_grad]


def _normalised(buffer, scale, shift, dtype):
    """ReLU of batch norm, given as a factor and a summand a channel, densely in memory."""
    # Without `out` the sum has the buffer's type, and rounding it takes a second pass.
    result = torch.empty_like(buffer, dtype=dtype)
    return torch.addcmul(shift[:, None, None], buffer, scale[:, None, None], out=result).relu_()


class _OneBuffer(torch.autograd.Function):
    """All layers of a block in one node of the graph.

    Batch norm of a map x, with the batch's mean m and deviation s, is gamma (x - m) / s + beta. A
    reader's gradient g returns to the map itself as g gamma / s, through m and s as sums over the
    batch alone; the sums of all readers are added up, and go to the map once, when the layer that
    made it has its turn.
    """

    @staticmethod
    def forward(ctx, layers, x, *parameters):
        n, channels, h, w = x.shape
        k, count = layers[0].conv.out_channels, n * h * w
        width = channels + len(layers) * k
        kind = x.device.type
        # What convolutions of x compute in; all maps are kept in the wider type.
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        kept = torch.promote_types(x.dtype, dtype)
        nhwc = x.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if nhwc else torch.contiguous_format
        buffer = torch.empty(n, width, h, w, dtype=kept, device=x.device, memory_format=layout)
        precision = layers[0].bn.weight.dtype  # of the statistics
        mean, var = torch.empty(2, width, dtype=precision, device=x.device)

        # A map has one batch mean and variance, whichever layer reads it: both are computed
        # once, when it is made. Layers differ in gamma, beta and eps alone.
        def put(maps, start, stop):
            buffer[:, start:stop] = maps
            var[start:stop], mean[start:stop] = torch.var_mean(
                maps.to(precision), MAPS, correction=0
            )

        put(x, 0, channels)
        ctx.sites = []
        for layer in layers:
            bn, conv = layer.bn, layer.conv
            with torch.autocast(kind, enabled=False):
                # gamma (x - m) / s + beta = scale x + shift
                scale = bn.weight * torch.rsqrt(var[:channels] + bn.eps)
                shift = torch.addcmul(bn.bias, mean[:channels], scale, value=-1)
                a = _normalised(buffer[:, :channels], scale, shift, dtype)
                maps = F.conv2d(a, conv.weight.to(dtype), None, conv.stride, conv.padding)
                del a
                # As nn.BatchNorm2d: the variance over n normalises, that over n - 1 is tracked.
                bn.num_batches_tracked += 1
                bn.running_mean.lerp_(mean[:channels], bn.momentum)
                bn.running_var.lerp_(var[:channels] * (count / (count - 1)), bn.momentum)
            # Autograd records nothing in `forward`: a site gets a graph of its own, which its
            # map begins. It runs under the caller's autocast, as in `concatenate`.
            if not isinstance(layer.site, nn.Identity):
                entering = maps.requires_grad_()
                with torch.enable_grad():
                    leaving = layer.site(entering.clone())  # it may write into its map
                ctx.sites.append((entering, leaving, _learning(layer.site)))
                maps = leaving.detach()
            put(maps, channels, channels + k)
            channels += k
        ctx.layers, ctx.dtype = layers, dtype
        # Not as attributes: a change of weights or maps before `backward` is then an error, and
        # the result and its own node form no reference cycle.
        ctx.save_for_backward(buffer, mean, var, *parameters)
        return buffer

    # dL/dx = D - A / n - B (x - m) / n, n = N H W. D (`gradient`): that of the result, plus
    # g gamma / s of each reader of x. A (`through_mean`): the sum of gamma / s sum(g). B
    # (`through_var`): that of gamma / s^2 times dL/dgamma, which is sum(g (x - m)) / s.
    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        buffer, mean, var, *parameters = ctx.saved_tensors
        n, channels, h, w = buffer.shape
        count = n * h * w
        gradient = gradient.clone()  # of the maps, as far as it is known: each layer adds its share
        # What flows to each map through its batch mean, and through its batch variance, summed over
        # the layers that read it
        through_mean, through_var = torch.zeros(2, channels, dtype=mean.dtype, device=mean.device)

        def gradient_of(start, stop):
            """The whole gradient of maps whose readers are all done."""
            per_deviation = through_var[start:stop] / count
            constant = through_mean[start:stop] / count - mean[start:stop] * per_deviation
            whole = gradient[:, start:stop] - constant[:, None, None].to(gradient.dtype)
            return whole.addcmul_(
                buffer[:, start:stop], per_deviation[:, None, None].to(gradient.dtype), value=-1
            )

        found = []  # the parameters' gradients, in their order
        sites = list(ctx.sites)
        with torch.autocast(buffer.device.type, enabled=False):
            # Backwards: all readers of a layer's maps are done before the layer has its turn.
            for layer in reversed(ctx.layers):
                bn, conv = layer.bn, layer.conv
                k = conv.out_channels
                g = gradient_of(channels - k, channels).to(ctx.dtype)
                g_site = []
                if not isinstance(layer.site, nn.Identity):
                    entering, leaving, learning = sites.pop()
                    parameters = parameters[: len(parameters) - len(learning)]  # [:-0] is empty
                    g, *g_site = torch.autograd.grad(
                        leaving,
                        (entering, *learning),
                        g.to(leaving.dtype),
                        retain_graph=True,  # `backward` may be called again
                        allow_unused=True,
                    )
                *parameters, gamma, beta, weight = parameters
                channels -= k  # from here on: the maps that this layer read
                maps, rstd = buffer[:, :channels], torch.rsqrt(var[:channels] + bn.eps)
                scale = gamma * rstd
                shift = torch.addcmul(beta, mean[:channels], scale, value=-1)
                a = _normalised(maps, scale, shift, ctx.dtype)
                g, g_weight, _ = torch.ops.aten.convolution_backward(
                    g, a, weight.to(ctx.dtype), None, conv.stride, conv.padding, conv.dilation,
                    False, (0, 0), 1, (True, True, False),
                )  # fmt: skip
                # ReLU's result says where it lets a gradient pass. In place: g is large. It
                # becomes the gradient of the batch norm's result.
                g = torch.ops.aten.threshold_backward.grad_input(g, a, 0, grad_input=g)
                del a
                g_beta = g.sum(MAPS, dtype=mean.dtype)
                # sum(g (x - m)) as sum(g x) - m sum(g): no centred copy of the maps is made.
                g_gamma = ((g * maps).sum(MAPS, dtype=mean.dtype) - mean[:channels] * g_beta) * rstd
                gradient[:, :channels].addcmul_(g, scale[:, None, None].to(g.dtype))
                through_mean[:channels] += scale * g_beta
                through_var[:channels] += scale * rstd * g_gamma
                found = [g_gamma, g_beta, g_weight.to(weight.dtype), *g_site, *found]
            return None, gradient_of(0, channels), *found
