"""Stochastic gradient descent in one kernel for all parameters."""

import torch


class SGD:
    """`torch.optim.SGD(..., fused=True)`, bit for bit, without torch._dynamo, which that imports: a second of start-up.

    For each parameter p with gradient g: g += weight_decay p; m = momentum m + g; p -= rate (g + momentum m with Nesterov,
    m without), m from zero.

    Args:
        parameters: the tensors to learn, all on one device and of one type; those without a gradient stay as they are.
        rate: the learning rate; `fill_` the tensor of this name to change it.
        momentum, nesterov, weight_decay: as above.

    Attributes:
        rate: tensor () on the parameters' device, where a captured step reads it.
        momenta: the m, one for each parameter, in order; empty without momentum.
        found_inf: tensor (1,) or None; while it holds 1, `step` changes nothing.
    """

    def __init__(self, parameters, rate, momentum=0.0, nesterov=False, weight_decay=0.0):
        self.parameters = list(parameters)
        self.rate = torch.tensor(float(rate), device=self.parameters[0].device)
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov and momentum > 0, weight_decay
        self.momenta = [torch.zeros_like(p) for p in self.parameters] if momentum else []
        self.found_inf = None

    def zero_grad(self):
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self):
        """Change every parameter by its gradient."""
        learning = [i for i, parameter in enumerate(self.parameters) if parameter.grad is not None]
        if not learning:
            return
        torch._fused_sgd_(
            [self.parameters[i] for i in learning],
            [self.parameters[i].grad for i in learning],
            [self.momenta[i] for i in learning] if self.momenta else [],
            weight_decay=self.weight_decay, momentum=self.momentum, lr=self.rate, dampening=0.0, nesterov=self.nesterov,
            maximize=False, is_first_step=False, grad_scale=None, found_inf=self.found_inf,
        )  # fmt: skip
