"""One training step and one evaluation step, eager or captured whole in a CUDA graph.

A step takes its batch from a feed. `HostFeed` assembles batches on the CPU; `ResidentFeed` holds the data set and the epoch's
plan on the device and does crop, mirror and normalisation inside the step. Learning rate and metrics are device tensors: on a
GPU nothing waits for the device but once an epoch. The same code runs on a CPU, where nothing is captured.
"""

import torch
import torch.nn.functional as F


def widened(logits):
    """Logits in float32 at least, in which the loss is computed."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class TrainStep:
    """Forward, loss, backward, SGD; adds loss, hits and images to `totals` (float64, on the device).

    `bad` rises to 1 with the first loss that is not finite and from then on keeps the optimiser from touching the weights
    (its `found_inf`), so that a GPU need not be asked each step.
    """

    def __init__(self, network, optimizer, autocast, device):
        self.network, self.optimizer, self.autocast = network, optimizer, autocast
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)
        self.bad = torch.zeros(1, device=device)
        optimizer.found_inf = self.bad

    def __call__(self, images, labels):
        self.optimizer.zero_grad()
        with self.autocast:
            logits = self.network(images)
        loss = F.cross_entropy(widened(logits), labels)
        self.bad.copy_(torch.maximum(self.bad, (~loss.isfinite()).float()))
        loss.backward()
        self.optimizer.step()
        hits = (logits.argmax(1) == labels).sum()
        self.totals[0] += loss.detach().double() * len(labels)
        self.totals[1] += hits
        self.totals[2] += len(labels)

    def state(self):
        """Every tensor that a step changes."""
        return [*self.network.state_dict().values(), *self.optimizer.momenta, self.totals, self.bad]


class TestStep:
    """Forward in evaluation mode; adds loss, top-1 hits, top-5 hits and images to `totals` (float64, on the device)."""

    __test__ = False  # not a pytest class

    def __init__(self, network, autocast, device):
        self.network, self.autocast = network, autocast
        self.totals = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.inference_mode()
    def __call__(self, images, labels):
        with self.autocast:
            logits = self.network(images)
        logits = widened(logits)
        top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        self.totals[0] += F.cross_entropy(logits, labels, reduction="sum").double()
        self.totals[1] += top5[:, 0].sum()
        self.totals[2] += top5.sum()
        self.totals[3] += len(labels)

    def state(self):
        return [self.totals]
