"""Parameters, the paper's "GFloat", and true multiply-accumulates of a network.

The paper counts as the `thop` package did in 2019, by one rule for each kind of module:
multiply-accumulates of convolutions, multiplications and additions of linear layers, batch norms,
average pools and softmaxes, and nothing outside modules. It leaves out matrix products between
tensors, so that the count of a Non-local block is too small. The true count has the
multiply-accumulates of all convolutions and matrix products, in modules or not, and nothing else.
`Complexity.uncounted` names the operations that it does not know.
"""

import math
import re
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lcm.copies import twin

aten = torch.ops.aten


@dataclass
class Row:
    """One module with parameters or operations of its own, those of its submodules not included."""

    name: str
    kind: str
    params: int = 0
    gfloat: float = 0.0
    macs: int = 0


@dataclass
class Complexity:
    """What a network costs for one image.

    Attributes:
        params: number of parameters.
        gfloat: the paper's count, in units of 10^9.
        macs: true multiply-accumulates.
        rows: the same for each module, in the network's order; they add up to the totals.
        uncounted: "module: operation" for each operation with parameters or matrix products that no
            rule here counts, such as a recurrent layer; [] where `macs` is complete.
    """

    params: int
    gfloat: float
    macs: int
    rows: list[Row] = field(repr=False)
    uncounted: list[str] = field(default_factory=list)


@torch.inference_mode(False)  # in which linear and matmul are not made of basic operations
@torch.no_grad()
def count(network, image_size):
    """Count the parameters and the operations of a network for one image (1, 3, image_size,
    image_size).

    A copy of it runs once, in evaluation mode and without gradients.
    """
    # Hooks are put on a copy: the caller's network needs no tidying up, whatever happens.
    # torch.compile's network in place of what it compiles: it would compile the counter, too.
    network = twin(getattr(network, "_orig_mod", network))
    counter = _Counter(network)
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    image = like.new_zeros(1, 3, image_size, image_size)
    fused = torch.backends.mha.get_fastpath_enabled()  # whole transformer layers in one operation
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with counter:
            network(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    rows = [row for row in counter.rows.values() if row.params or row.gfloat or row.macs]
    params = sum(p.numel() for p in network.parameters())
    gfloat = round(sum(row.gfloat for row in rows), 9)  # 1e-9 is one operation
    return Complexity(params, gfloat, sum(row.macs for row in rows), rows, list(counter.uncounted))


def _paper_operations(module, args, y):
    """The paper's count for one call of a module, y = module(*args)."""
    # The rules of thop's count_hooks.py
    match module:
        case nn.modules.conv._ConvNd(in_channels=c, groups=groups, kernel_size=k, bias=bias):
            return y.numel() * (c // groups * math.prod(k) + (bias is not None))
        case nn.Linear():
            # Multiplications, and one addition less
            return y.numel() * (2 * module.in_features - 1)
        case nn.modules.batchnorm._BatchNorm():
            # Subtract, divide, scale, shift
            return 4 * y.numel()
        case nn.modules.pooling._AvgPoolNd(kernel_size=k):
            # thop multiplies the sizes in `kernel_size`: an int k gives k, not k squared.
            return y.numel() * ((k if isinstance(k, int) else math.prod(k)) + 1)
        case nn.modules.pooling._AdaptiveAvgPoolNd():
            return y.numel() * (math.prod(args[0].shape[2:]) // math.prod(y.shape[2:]) + 1)
        case nn.Softmax(dim=int(dim)):
            # For n values: n exponentials, n - 1 additions, n divisions
            n = y.shape[dim]
            return y.numel() // n * (3 * n - 1)
    return 0


# Of ATen's operations these multiply matrices in other ways, or may: by a word in their names.
MATRIX = re.compile(r"mm|matmul|conv|attention|rnn|lstm|gru|linear|cdist|linalg|dot|addr|affine")
# These read parameters and multiply no matrices; so do views and what works element by element.
FREE = re.compile(
    r"norm|embedding|clone|copy|cat|stack|index|gather|sum|mean|max|min|softmax|upsample|_pad"
    r"|roll|flip|repeat|prelu|pool|empty|new_|_local_scalar|\b(var|std|prod|tri[lu]|sort|topk|any)\b"
)


class _Counter(TorchDispatchMode):
    """Counts what the modules of a network run, each operation for the innermost module.

    Attributes:
        rows: {module: its `Row`}.
        running: the rows of the modules whose forward pass has begun and not ended.
        uncounted: a set, in order, of operations that read parameters or are named like matrix
            products, and that no rule counts.
    """

    def __init__(self, network):
        super().__init__()
        self.rows, self.uncounted = {}, {}
        # By storage: a view of a weight, such as its transpose, is another tensor. Not by its
        # `data_ptr`, which is 0 on the meta device.
        self.parameters = {p.untyped_storage()._cdata for p in network.parameters()}
        holder = {}  # of a parameter: the first module that has it
        for name, module in network.named_modules():
            own = [p for p in module.parameters(False) if holder.setdefault(p, module) is module]
            self.rows[module] = Row(name, type(module).__name__, sum(p.numel() for p in own))
            module.register_forward_pre_hook(self.enter)
            module.register_forward_hook(self.leave)
        # The network's own pre-hooks, as weight_norm's, run before `enter`.
        self.running = [self.rows[network]]

    def enter(self, module, args):
        self.running.append(self.rows[module])

    def leave(self, module, args, output):
        self.running.pop().gfloat += _paper_operations(module, args, output) / 1e9

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # the default imports torch._dynamo: two seconds, and nothing compiles here

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        # A dispatch mode works below autograd, where only basic operations arrive: matmul,
        # linear and einsum have become mm, bmm and addmm.
        operation, row = function._overloadpacket, self.running[-1]
        match operation:
            case aten.convolution:
                # Each output value takes a filter, (in / groups, k, k); in a transposed
                # convolution each input value takes one, (out / groups, k, k).
                maps, filters, transposed = args[0], args[1], args[6]
                row.macs += (maps if transposed else result).numel() * filters[0].numel()
            case aten.mm | aten.bmm | aten.mv | aten.dot:
                row.macs += result.numel() * args[0].shape[-1]
            # args[0] is what is added to the product.
            case aten.addmm | aten.baddbmm | aten.addmv:
                row.macs += result.numel() * args[1].shape[-1]
            case _ if operation.__name__.startswith("_scaled_dot_product"):
                q, k, v = args[:3]  # (N, heads, L, E), (N, heads, S, E), (N, heads, S, V)
                # E products for the score of a query and a key, V for the value it weights
                row.macs += q[..., 0].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])
            case _ if self._is_unknown(function, (*args, *kwargs.values())):
                self.uncounted[f"{row.name or row.kind}: {operation}"] = None
        return result

    def _is_unknown(self, function, arguments):
        name = function._overloadpacket.__name__
        # Of other libraries nothing is known but torchvision's two, which multiply no matrices.
        if function.namespace != "aten":
            return name not in ("nms", "roi_align")
        # FREE before MATRIX, which finds `linear` in upsample_bilinear2d and `mm` in cummax.
        if function.is_view or torch.Tag.pointwise in function.tags or FREE.search(name):
            return False
        # A sparse tensor has no storage that could be compared.
        tensors = [x for x in arguments if isinstance(x, torch.Tensor)]
        read = {x.untyped_storage()._cdata for x in tensors if x.layout == torch.strided}
        return bool(MATRIX.search(name) or read & self.parameters)
