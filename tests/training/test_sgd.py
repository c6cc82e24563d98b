"""SGD against torch.optim's, bit for bit."""

import subprocess
import sys

import pytest
import torch

from lcm.training.sgd import SGD


def parameters(dtype, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 3, 3, 3), (16,), (7, 16, 1, 1), (5, 33), (1,)]
    drawn = [torch.randn(shape, generator=generator, dtype=dtype).to(device) for shape in shapes]
    drawn[0] = drawn[0].contiguous(memory_format=torch.channels_last)
    return [tensor.requires_grad_() for tensor in drawn]


def give_gradients(pars, step):
    generator = torch.Generator().manual_seed(step + 1)
    for i, parameter in enumerate(pars):
        gradient = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype).to(parameter.device)
        parameter.grad = None
        if not (i == 3 and step % 2):  # one parameter misses every second step
            (parameter * gradient).sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "momentum, nesterov, weight_decay", [(0.9, True, 1e-4), (0.9, False, 1e-4), (0.0, False, 1e-4), (0.5, True, 0.0)]
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_takes_the_steps_of_torch(dtype, momentum, nesterov, weight_decay, device):
    ours, theirs = parameters(dtype, device), parameters(dtype, device)
    mine = SGD(ours, 0.1, momentum, nesterov, weight_decay)
    reference = torch.optim.SGD(
        theirs, torch.tensor(0.1, device=device), momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True
    )
    if momentum:
        for parameter in theirs:
            reference.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    for step in range(6):
        if step == 3:
            mine.rate.fill_(0.01)
            reference.param_groups[0]["lr"].fill_(0.01)
        give_gradients(ours, step), give_gradients(theirs, step)
        mine.step(), reference.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_follows_its_equation():
    p = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    optimizer = SGD([p], 0.5, momentum=0.9, nesterov=True, weight_decay=0.1)
    expected, m = p.detach().clone(), torch.zeros(2, dtype=torch.float64)
    for g in ([1.0, 2.0], [-3.0, 0.5]):
        p.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
        g = torch.tensor(g, dtype=torch.float64) + 0.1 * expected
        m = 0.9 * m + g
        expected = expected - 0.5 * (g + 0.9 * m)
    torch.testing.assert_close(p.detach(), expected, rtol=1e-7, atol=1e-7)  # the rate is a float32
    torch.testing.assert_close(optimizer.momenta[0], m, rtol=1e-12, atol=1e-12)


def test_found_inf_stops_it():
    pars = parameters(torch.float32)
    optimizer = SGD(pars, 0.1, momentum=0.9)
    optimizer.found_inf = torch.ones(1)
    before = [p.detach().clone() for p in pars]
    give_gradients(pars, 0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(pars, before, strict=True))
    assert not any(m.any() for m in optimizer.momenta)


def test_imports_no_dynamo():
    code = (
        "import sys, torch; from lcm.training.sgd import SGD; p = torch.ones(3, requires_grad=True);"
        "o = SGD([p], 0.1, 0.9, True); p.sum().backward(); o.step(); o.zero_grad(); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
