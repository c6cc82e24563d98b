"""One training step and one evaluation step.

Learning rate, metrics and the check for finite losses are tensors on the device: the CPU waits for a GPU once an epoch only, and a
whole step can be captured as a CUDA graph (lcm/training/graphs.py). On a CPU the same code runs operation by operation.
"""

import torch
import torch.nn.functional as F

from lcm.errors import NotFinite


def in_float32(logits):
    """Logits in float32 at least, in which the loss is computed."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def not_finite(what, epoch):
    """The exception for a loss or weight that became infinite or NaN in an epoch."""
    return NotFinite(
        f"{what} stopped being a finite number in epoch {epoch}; the last checkpoint is from before it. "
        "Lower schedule.learning_rate, or take precision=fp32"
    )


class TrainStep:
    """Forward, loss, backward, SGD; adds loss, hits and images to `totals` (float64, on the device).

    `bad` becomes 1 with the first loss that is not finite. As the optimizer's `found_inf` it prevents any further update, so that
    the CPU need not read each loss from a GPU.

    Args:
        network: trained; each step sets it to training mode.
        optimizer: torch.optim.SGD(fused=True) on the network's parameters, its learning rate a tensor on their device.
        autocast: the context of the forward pass.
        compiled: called for the forward pass instead of `network`, for example `lcm.training.compilation.compiled`.
        layout: memory layout of the images, as of the network's weights: torch.channels_last or torch.contiguous_format.
    """

    def __init__(
        self, network, optimizer, autocast, device, compiled=None, layout=torch.channels_last
    ):
        self.network, self.optimizer, self.autocast, self.layout = (
            network,
            optimizer,
            autocast,
            layout,
        )
        self.forward = network if compiled is None else compiled
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)
        self.bad = optimizer.found_inf = torch.zeros(1, device=device)
        self.momenta = {}  # parameter's name -> momentum; allocated here, because a captured step cannot do it
        (group,) = optimizer.param_groups
        if group["momentum"]:
            for name, parameter in network.named_parameters():
                momentum = optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(
                    parameter
                )
                self.momenta[name] = momentum

    def __call__(self, images, labels):
        if not self.network.training:
            self.network.train()
        self.optimizer.zero_grad()
        with self.autocast:
            logits = self.forward(images.contiguous(memory_format=self.layout))
        loss = F.cross_entropy(in_float32(logits), labels)
        self.bad.copy_(torch.maximum(self.bad, (~loss.isfinite()).float()))
        loss.backward()
        self.optimizer.step()
        hits = (logits.argmax(1) == labels).sum()
        self.totals[0] += loss.detach().double() * len(labels)
        self.totals[1] += hits
        self.totals[2] += len(labels)

    def state(self):
        """Every tensor that a step changes."""
        return [*self.network.state_dict().values(), *self.momenta.values(), self.totals, self.bad]

    def snapshot(self, epoch):
        """A checkpoint's tensors: weights, momenta and totals, on the CPU. Raises NotFinite for a loss or weight that is not."""
        if self.bad:
            raise not_finite("the training loss", epoch)
        model = {name: tensor.cpu() for name, tensor in self.network.state_dict().items()}
        if not all(tensor.isfinite().all() for tensor in model.values()):
            raise not_finite("a weight", epoch)  # a finite loss can have infinite gradients
        momenta = {name: tensor.cpu() for name, tensor in self.momenta.items()}
        return {"totals": self.totals.cpu(), "model": model, "momentum": momenta}

    @torch.no_grad()
    def restore(self, saved):
        """Load a `snapshot`. Raises KeyError or RuntimeError where it is another network's."""
        self.network.load_state_dict(saved["model"])
        for name, momentum in self.momenta.items():
            momentum.copy_(saved["momentum"][name])
        self.totals.copy_(saved["totals"])


class TestStep:
    """Forward in evaluation mode; adds loss, top-1 hits, top-5 hits and images to `totals` (float64, on the device).

    Args:
        network: evaluated; each step sets it to evaluation mode.
        layout: as of a TrainStep.
    """

    __test__ = False  # not a pytest class

    def __init__(self, network, autocast, device, layout=torch.channels_last):
        self.network, self.autocast, self.layout = network, autocast, layout
        self.totals = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.inference_mode()
    def __call__(self, images, labels):
        if self.network.training:
            self.network.eval()
        with self.autocast:
            logits = in_float32(self.network(images.contiguous(memory_format=self.layout)))
        top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        self.totals[0] += F.cross_entropy(logits, labels, reduction="sum").double()
        self.totals[1] += top5[:, 0].sum()
        self.totals[2] += top5.sum()
        self.totals[3] += len(labels)

    def state(self):
        return [self.totals]
