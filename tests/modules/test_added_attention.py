"""ECA, SimAM and coordinate attention against their papers' equations, in float64 with numpy and plain loops."""

import math

import numpy as np
import pytest
import torch

from lcm.attention import ECA, CoordinateAttention, SimAM

N, C, H, W = 3, 8, 4, 5
BATCH_NORM = 1e-5  # added to the variance


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def eca(x, p, training):
    """Eqs. (1), (9): weight of channel i from the means of the k channels around it, zeros beyond the ends."""
    kernel = p["conv.weight"][0, 0]
    out = np.empty_like(x)
    for n in range(N):
        means = [x[n, c].sum() / (H * W) for c in range(C)]
        for c in range(C):
            score = 0.0
            for j, weight in enumerate(kernel):
                neighbour = c + j - len(kernel) // 2
                score = score + (weight * means[neighbour] if 0 <= neighbour < C else 0)
            out[n, c] = x[n, c] * sigmoid(score)
    return out


def simam(x, p, training):
    """Eq. (5): e = 4 (variance + lambda) / ((t - mean)^2 + 2 variance + 2 lambda); Eq. (6): x sigmoid(1 / e)."""
    lam = 1e-4
    out = np.empty_like(x)
    for n in range(N):
        for c in range(C):
            mean = x[n, c].sum() / (H * W)
            variance = ((x[n, c] - mean) ** 2).sum() / (H * W - 1)
            for h in range(H):
                for w in range(W):
                    t = x[n, c, h, w]
                    energy = 4 * (variance + lam) / ((t - mean) ** 2 + 2 * variance + 2 * lam)
                    out[n, c, h, w] = t * sigmoid(1 / energy)
    return out


def coordinate(x, p, training):
    """Eqs. (4) to (9); the batch norm's statistics are over the batch and all H + W positions."""
    positions = np.empty((N, C, H + W), dtype=x.dtype)
    for h in range(H):
        positions[:, :, h] = sum(x[:, :, h, w] for w in range(W)) / W  # Eq. (4)
    for w in range(W):
        positions[:, :, H + w] = sum(x[:, :, h, w] for h in range(H)) / H  # Eq. (5)

    def one_by_one(x, name):
        weight, bias = p[f"{name}.weight"][:, :, 0, 0], p[f"{name}.bias"]
        return np.stack([sum(weight[o, i] * x[:, i] for i in range(x.shape[1])) + bias[o] for o in range(len(bias))], 1)

    f = one_by_one(positions, "conv")
    for m in range(f.shape[1]):
        if training:
            mean = f[:, m].sum() / f[:, m].size
            variance = ((f[:, m] - mean) ** 2).sum() / f[:, m].size
        else:
            mean, variance = p["bn.running_mean"][m], p["bn.running_var"][m]
        normal = (f[:, m] - mean) / np.sqrt(variance + BATCH_NORM)
        f[:, m] = normal * p["bn.weight"][m] + p["bn.bias"][m]
    f = f * np.where(f.real <= -3, 0, np.where(f.real >= 3, 1, (f + 3) / 6))  # hard swish
    g_h = sigmoid(one_by_one(f[:, :, :H], "rows"))  # Eq. (7)
    g_w = sigmoid(one_by_one(f[:, :, H:], "columns"))  # Eq. (8)
    return x * g_h[:, :, :, None] * g_w[:, :, None, :]  # Eq. (9)


CASES = {"eca": (ECA, eca), "simam": (SimAM, simam), "ca": (CoordinateAttention, coordinate)}


def example(name, training):
    """A module with weights that are neither zeros nor ones, a map, and the weights of a loss."""
    module = CASES[name][0](C).double().train(training)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 2 - 0.5)
            if tensor.dim() == 1:
                tensor.abs_().add_(0.1)
    x, weights = torch.randn(2, N, C, H, W, generator=generator, dtype=torch.float64)
    return module, x, weights


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_forward_follows_the_equations(name, training):
    module, x, _ = example(name, training)
    p = {key: value.numpy().copy() for key, value in module.state_dict().items()}
    expected = CASES[name][1](x.numpy(), p, training)
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_derivatives_of_the_equations(name, training):
    """The equations at x + ih have the derivative Im f / h, without the rounding of a difference: the complex step."""
    module, x, weights = example(name, training)
    equations, step = CASES[name][1], 1e-30
    values = {key: value.numpy().astype(complex) for key, value in module.state_dict().items()} | {
        "x": x.numpy().astype(complex)
    }
    x = x.requires_grad_()
    (module(x) * weights).sum().backward()
    gradients = {"x": x.grad} | {key: parameter.grad for key, parameter in module.named_parameters()}

    for key, gradient in gradients.items():
        flat = values[key].reshape(-1)
        indices = range(flat.size) if flat.size <= 80 else range(0, flat.size, 7)
        for index in indices:
            original = flat[index]
            flat[index] = original + 1j * step
            out = equations(values["x"], values, training)
            flat[index] = original
            expected = (out * weights.numpy()).sum().imag / step
            assert abs(gradient.reshape(-1)[index].item() - expected) <= 1e-10 * max(1, abs(expected)), (key, index)
        # in training the norm takes the mean, and with it the shift by conv.bias, out again
        assert gradient.abs().max() > 1e-6 or (key == "conv.bias" and training), f"{key} is not tested"


def test_hard_swish_is_tested_on_all_three_pieces():
    module, x, _ = example("ca", True)
    seen = []
    module.bn.register_forward_hook(lambda _, args, y: seen.append(y.detach()))
    with torch.no_grad():
        module.bn.weight.mul_(3)
    y = module(x)
    assert (seen[0] < -3).any() and (seen[0] > 3).any() and (seen[0].abs() < 3).any()
    p = {key: value.numpy().copy() for key, value in module.state_dict().items()}
    np.testing.assert_allclose(y.detach().numpy(), coordinate(x.numpy(), p, True), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("channels", "k"), [(8, 3), (12, 3), (16, 3), (32, 3), (64, 3), (128, 5), (256, 5), (512, 5), (1024, 5), (2048, 7)]
)
def test_kernel_of_eca(channels, k):
    """|log2(C)/2 + 1/2| cut to a whole number and, where that is even, one more; no bias. The paper has 5 for 256."""
    t = int(abs(math.log(channels, 2) / 2 + 1 / 2))
    assert k == (t if t % 2 else t + 1)
    assert [tuple(p.shape) for p in ECA(channels).parameters()] == [(1, 1, k)]
    assert ECA(channels, gamma=1, b=0).conv.kernel_size[0] % 2 == 1


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        (SimAM(64), 0),
        (ECA(64), 3),
        (ECA(256), 5),
        (CoordinateAttention(16), 16 * 8 + 8 + 2 * 8 + 2 * (8 * 16 + 16)),  # 16 // 32 is below 8
        (CoordinateAttention(512), 512 * 16 + 16 + 2 * 16 + 2 * (16 * 512 + 512)),
        (CoordinateAttention(64, reduction=4), 64 * 16 + 16 + 2 * 16 + 2 * (16 * 64 + 64)),
    ],
    ids=str,
)
def test_parameter_count_by_hand(module, parameters):
    assert sum(p.numel() for p in module.parameters()) == parameters


@pytest.mark.parametrize("module", [ECA(8), SimAM(8), CoordinateAttention(8)], ids=list(CASES))
def test_a_map_of_one_position(module):
    x = torch.randn(4, 8, 1, 1)
    y = module(x)
    assert y.shape == x.shape and torch.isfinite(y).all()


def test_a_constant_map_has_the_least_importance():
    x = torch.full((1, 2, 3, 3), 2.0)
    torch.testing.assert_close(SimAM(2)(x), x * torch.sigmoid(torch.tensor(0.5)))
