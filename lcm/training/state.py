"""What a step adds up, every tensor that a training step changes (what a checkpoint holds), and a
rehearsal of both.
"""

import torch
import torch.nn.functional as F

from lcm.complexity import count
from lcm.errors import NotFinite
from lcm.training.schedule import make_optimizer


def not_finite(what, epoch):
    """The exception for a loss or weight that became infinite or NaN in an epoch."""
    return NotFinite(
        f"{what} stopped being a finite number in epoch {epoch}; the last checkpoint is from "
        "before it. Lower schedule.learning_rate, or set precision=fp32"
    )


class Sums:
    """Loss, hits and images of an epoch so far: float64 on the device, read once an epoch.

    Args:
        device: of the tensors.
        top5: whether to count the hits among the five largest logits, too.

    `values` are (loss, top-1 hits, images) and, with `top5`, top-5 hits. `bad` becomes 1 with the
    first loss that is not finite.
    """

    def __init__(self, device, top5=False):
        self.values = torch.zeros(4 if top5 else 3, dtype=torch.float64, device=device)
        self.bad = torch.zeros((), device=device)

    def tensors(self):
        """The tensors that `add` changes."""
        return [self.values, self.bad]

    def clear(self):
        """Begin an epoch."""
        # `bad` stays: a run does not go on after it.
        self.values.zero_()

    @torch.no_grad()
    def add(self, loss, logits, labels):
        """Add a batch: the sum of its losses, logits (B, classes), labels (B,)."""
        # All in place: a captured step adds at these addresses, and the optimiser's `found_inf`
        # is this very tensor.
        self.bad.copy_(torch.maximum(self.bad, (~loss.isfinite()).float()))
        # Not the first of topk: among equal logits, of which bf16 has many, it is any.
        self.values[1] += (logits.argmax(1) == labels).sum()
        if len(self.values) > 3:
            # (B, k), at most one hit in a row
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices
            self.values[3] += (best == labels[:, None]).sum()
        self.values[0] += loss.double()
        self.values[2] += len(labels)

    def check(self, what, epoch):
        """Raise NotFinite where a loss was not finite; `what` names the loss. Waits for a GPU."""
        if self.bad:
            raise not_finite(what, epoch)

    def means(self, prefix):
        """{"<prefix>_loss": mean, "<prefix>_top1": percent, ...} over the images so far."""
        loss, top1, images, *top5 = self.values.tolist()
        shares = {"top1": top1, **({"top5": top5[0]} if top5 else {})}
        percent = {f"{prefix}_{name}": 100 * hits / images for name, hits in shares.items()}
        return {f"{prefix}_loss": loss / images} | percent


class TrainingState:
    """Every tensor that a training step changes: weights, statistics, the optimiser's own, sums.

    Args:
        network: trained by `optimizer`.
        optimizer: torch.optim.SGD or AdamW. Its tensors are made here, as zeros, because a captured
            step cannot allocate them.
        sums: the Sums of training.
    """

    def __init__(self, network, optimizer, sums):
        self.network = network
        self.sums = sums
        self.kept = {}  # the optimiser's name for a tensor -> {parameter's name: tensor}
        (group,) = optimizer.param_groups
        # Zeros give torch's own first step: SGD begins a momentum with the gradient, which is
        # also momentum * 0 + gradient, the dampening being 0; AdamW begins with zeros.
        for name, parameter in network.named_parameters():
            own = optimizer.state[parameter]
            if isinstance(optimizer, torch.optim.AdamW):
                own["step"] = torch.zeros((), device=parameter.device)
                own["exp_avg"] = torch.zeros_like(parameter)
                own["exp_avg_sq"] = torch.zeros_like(parameter)
            elif group["momentum"]:
                own["momentum_buffer"] = torch.zeros_like(parameter)
            for key, tensor in own.items():
                self.kept.setdefault(key, {})[name] = tensor

    def tensors(self):
        """The tensors themselves, in a list."""
        own = [tensor for tensors in self.kept.values() for tensor in tensors.values()]
        network = self.network
        return [*network.parameters(), *network.buffers(), *own, *self.sums.tensors()]

    def snapshot(self, epoch):
        """A checkpoint's tensors, on the CPU.

        Raises NotFinite for a loss or weight that is not finite, found in epoch `epoch`.
        """
        self.sums.check("the training loss", epoch)
        # A finite loss can have infinite gradients. A buffer may be infinite: a mask, say.
        finite = [parameter.isfinite().all() for parameter in self.network.parameters()]
        if not torch.stack(finite).all():
            raise not_finite("a weight", epoch)
        # On a CPU .cpu() copies nothing: a snapshot has to be written before the next step. A
        # module's extra state may be anything.
        model = {
            name: value.cpu() if isinstance(value, torch.Tensor) else value
            for name, value in self.network.state_dict().items()
        }
        # SGD's buffers have a key of their own in the format, `optimizer` the tensors of
        # others. `bad` is left out: with 1 in it `check` has raised.
        own = {key: {n: t.cpu() for n, t in tensors.items()} for key, tensors in self.kept.items()}
        momentum = own.pop("momentum_buffer", {})
        saved = {"totals": self.sums.values.cpu(), "model": model, "momentum": momentum}
        return saved | ({"optimizer": own} if own else {})

    @torch.no_grad()
    def restore(self, saved):
        """Load a `snapshot`. Raises KeyError or RuntimeError where it is another network's."""
        # Into the tensors that exist: graphs and optimiser hold their addresses.
        self.network.load_state_dict(saved["model"])
        found = {"momentum_buffer": saved["momentum"]} | saved.get("optimizer", {})
        for key, tensors in self.kept.items():
            for name, tensor in tensors.items():
                tensor.copy_(found[key][name])
        self.sums.values.copy_(saved["totals"])


def leaves(result):
    """The tensors to which the backward pass of a result gives a gradient."""
    todo, seen = [result.grad_fn], {None}
    while todo:
        if (node := todo.pop()) not in seen:
            seen.add(node)
            todo += [before for before, _ in node.next_functions]
            if hasattr(node, "variable"):  # a leaf of the graph
                yield node.variable


def rehearse(network, images, schedule, channels_last, bf16):
    """One training step, an evaluation of one image, a count, a snapshot and back, on the CPU:
    raises what they raise.

    The weights stay (the rate is 0), the running statistics do not.

    Args:
        network: images (N, 3, H, W) -> logits.
        schedule, channels_last: the config's. bf16: whether under autocast.
    """
    known = {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    if not known:
        raise ValueError("it has no parameter that learns")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network.to(memory_format=layout)
    images = images.contiguous(memory_format=layout)
    optimizer = make_optimizer(schedule, network)
    state = TrainingState(network, optimizer, Sums("cpu"))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    network.train()
    with autocast:
        logits = network(images)
    if any(id(leaf) not in known for leaf in leaves(logits)):
        raise ValueError(
            "it has a weight in a list or a plain tensor, which no optimiser and no checkpoint "
            "would know: use nn.ModuleList, nn.ParameterList or nn.Parameter"
        )
    F.cross_entropy(logits.float(), torch.zeros(len(images), dtype=torch.int64)).backward()
    optimizer.step()
    network.eval()
    with autocast, torch.inference_mode():
        network(images[:1])
    count(network, images.shape[-1])
    state.restore(state.snapshot(1))
