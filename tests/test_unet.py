"""The network's shapes, sign, size and reach."""

import numpy as np
import pytest
import torch

from n2s_utils.unet import KINKS, LeakyReLU, UNet

RADIUS, STRIDE = UNet.reach, UNet.stride


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 96), (160, 64)])
def test_output_has_the_shape_of_the_input(channels, height, width):
    y = torch.rand(2, channels, height, width)
    score = _network(channels)(y)
    assert score.shape == y.shape and score.dtype == torch.float32


@pytest.mark.parametrize("kink", KINKS)
def test_output_stays_float32_under_autocast(kink):
    with torch.autocast("cpu", torch.bfloat16):
        assert UNet(3, kink=kink)(torch.rand(1, 3, 32, 32)).dtype == torch.float32


def test_output_takes_both_signs():
    """Also at every pixel of its own, by negating the last layer: no activation follows it."""
    network, y = _network(3), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        score = network(y)
        assert score.min() < 0 < score.max()
        network.head[-1].weight.neg_()
        network.head[-1].bias.neg_()
        torch.testing.assert_close(network(y), -score)
        network.head[-1].bias += 0.5
        torch.testing.assert_close(network(y), -score + 0.5 * network.output_scale)


@pytest.mark.parametrize(
    ("kink", "rounded"),
    [
        ("softplus", lambda x, w: 0.1 * x + 0.9 * w * np.log1p(np.exp(x / w))),
        ("silu", lambda x, w: 0.1 * x + 0.9 * x / (1 + np.exp(-x / w))),
    ],
)
def test_rounded_activation_is_leaky_relu_but_near_its_kink(kink, rounded):
    x = torch.tensor([-3.0, -0.5, 0.5, 3.0])
    leaky = torch.tensor([-0.3, -0.05, 0.5, 3.0])
    torch.testing.assert_close(LeakyReLU("leaky", 0.0)(x.clone()), leaky)
    torch.testing.assert_close(LeakyReLU(kink, 0.05)(x.clone()), leaky, rtol=0, atol=3e-5)
    near = torch.linspace(-0.3, 0.3, 31, dtype=torch.float64)
    np.testing.assert_allclose(LeakyReLU(kink, 0.05)(near).numpy(), rounded(near.numpy(), 0.05), atol=1e-12)
    zero = torch.zeros(1, requires_grad=True)
    at_zero = LeakyReLU(kink, 0.05)(zero)
    at_zero.backward()
    assert at_zero.item() == pytest.approx(rounded(0, 0.05), abs=1e-7) and zero.grad.item() == pytest.approx(0.55)


def test_bad_kinks_are_refused(refused):
    with refused("kink = 'round'", "leaky, softplus, silu"):
        UNet(1, kink="round")
    for kink in ("softplus", "silu"):
        for width in (0.0, -0.1, float("nan"), float("inf")):
            with refused(f"kink_width = {width}", "above 0", kink):
                UNet(1, kink=kink, kink_width=width)


@pytest.mark.parametrize("kink", KINKS)
def test_kink_reaches_every_layer_but_the_last(kink):
    network = UNet(1, kink=kink)
    activations = [module for module in network.modules() if isinstance(module, LeakyReLU)]
    assert {activation.kink for activation in activations} == {kink} and not isinstance(network.head[-1], torch.nn.Sequential)
    y, calls = torch.rand(1, 1, 32, 32), []
    for activation in activations:
        activation.register_forward_hook(lambda *_: calls.append(1))
    network(y)
    assert len(calls) == sum(isinstance(module, torch.nn.Conv2d) for module in network.modules()) - 1


def test_number_of_parameters():
    """0.99 M in colour: the blocks are not shared (sharing leaves about 0.70 M)."""
    count = {channels: sum(p.numel() for p in UNet(channels).parameters()) for channels in (1, 3)}
    assert count[3] == 991_203
    # Two input channels fewer in the first layer and in the head, two output channels fewer in the last.
    assert count[3] - count[1] == 2 * 9 * 48 + 2 * 9 * 64 + 2 * (9 * 32 + 1)


def test_same_seed_gives_the_same_network():
    first, second = _network(3).state_dict(), _network(3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_reach_is_the_claimed_radius():
    """An impulse through positive weights reaches every output that depends on its place: none cancels, none loses a maximum."""
    network = UNet(1)
    for parameter in network.parameters():
        parameter.data.fill_(0.02 if parameter.ndim == 4 else 0.0)
    width = 2 * RADIUS + 2 * STRIDE
    width += -width % STRIDE
    reach = []
    for phase in range(STRIDE):  # where the pixel lies in its pooling cell matters
        place = (width - STRIDE) // 2 + phase
        y = torch.zeros(1, 1, STRIDE, width)
        y[..., place] = 1
        with torch.no_grad():
            reached = network(y)[0, 0].sum(0).nonzero().flatten()
        assert 0 < reached.min() and reached.max() < width - 1
        reach += [place - reached.min().item(), reached.max().item() - place]
    assert max(reach) == RADIUS


def test_nothing_beyond_the_radius_changes_an_output():
    network, rng = _network(1), np.random.default_rng(0)
    height, width, row, column = 32, 2 * RADIUS + 132, 16, RADIUS + 64
    y = rng.random((1, 1, height, width), np.float32)
    far = np.abs(np.arange(width) - column) > RADIUS
    other = np.where(far, 5 * rng.standard_normal(y.shape), y).astype(np.float32)
    assert far.sum() > 100
    with torch.no_grad():
        before, after = network(torch.from_numpy(y)), network(torch.from_numpy(other))
        near = torch.from_numpy(np.where(~far, y + 0.1, y).astype(np.float32))
        assert abs(network(near) - before)[0, 0, row, column] > 1e-2
    assert abs(after - before)[0, 0, row, column] < 1e-5
    assert abs(after - before)[0, 0, row, 0] > 1e-2


def _network(channels: int) -> UNet:
    torch.manual_seed(0)
    return UNet(channels)
