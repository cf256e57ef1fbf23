"""The network's shapes, sign, size and reach."""

import numpy as np
import pytest
import torch

from n2s_utils.unet import OUTPUT_SCALE, RECEPTIVE_RADIUS, STRIDE, RoundedLeakyReLU, UNet


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 96), (160, 64)])
def test_output_has_the_shape_of_the_input(channels, height, width):
    y = torch.rand(2, channels, height, width)
    score = _network(channels)(y)
    assert score.shape == y.shape and score.dtype == torch.float32


def test_output_stays_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert _network(3)(torch.rand(1, 3, 32, 32)).dtype == torch.float32


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
        torch.testing.assert_close(network(y), -score + 0.5 * OUTPUT_SCALE)


def test_rounded_activation_is_leaky_relu_but_near_its_kink():
    x = torch.tensor([-3.0, -0.5, 0.5, 3.0])
    leaky = torch.tensor([-0.3, -0.05, 0.5, 3.0])
    torch.testing.assert_close(RoundedLeakyReLU(0.0)(x.clone()), leaky)
    torch.testing.assert_close(RoundedLeakyReLU(0.05)(x.clone()), leaky, rtol=0, atol=1e-5)
    zero = torch.zeros(1, requires_grad=True)
    rounded = RoundedLeakyReLU(0.05)(zero)
    rounded.backward()
    assert rounded.item() == pytest.approx(0.9 * 0.05 * np.log(2)) and zero.grad.item() == pytest.approx(0.55)


@pytest.mark.parametrize("channels", [1, 3])
def test_rescaled_network_is_the_score_after_a_change_of_variables(channels):
    torch.manual_seed(0)
    model = UNet(channels, kink_width=0.05)
    for parameter in model.parameters():  # biases too
        torch.nn.init.normal_(parameter, std=0.1)
    y = torch.rand(1, channels, 64, 64)
    with torch.no_grad():
        expected = 0.5 * model(0.5 * y)
        assert not torch.allclose(model(y), expected, rtol=0.1)
        model.rescale(0.5)
        torch.testing.assert_close(model(y), expected)


def test_number_of_parameters():
    """0.99 M in colour: the blocks are not shared (sharing leaves about 0.70 M)."""
    count = {channels: sum(p.numel() for p in UNet(channels).parameters()) for channels in (1, 3)}
    assert count[3] == 991_203
    # Two input channels fewer in the first layer and in the head, two output channels fewer in the last.
    assert count[3] - count[1] == 2 * 9 * 48 + 2 * 9 * 64 + 2 * (9 * 32 + 1)


def test_same_seed_gives_the_same_network():
    first, second = _network(3).state_dict(), _network(3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_reach_is_within_the_claimed_radius():
    """An impulse through positive weights reaches every output that depends on its place: none cancels, none loses a maximum."""
    network = UNet(1)
    for parameter in network.parameters():
        parameter.data.fill_(0.02 if parameter.ndim == 4 else 0.0)
    width = 3 * RECEPTIVE_RADIUS
    width += -width % STRIDE
    reach = []
    for phase in range(STRIDE):  # where the pixel lies in its pooling cell matters
        place = width // 2 + phase
        y = torch.zeros(1, 1, STRIDE, width)
        y[..., place] = 1
        with torch.no_grad():
            reached = network(y)[0, 0].sum(0).nonzero().flatten()
        reach += [place - reached.min().item(), reached.max().item() - place]
    assert RECEPTIVE_RADIUS / 2 < max(reach) <= RECEPTIVE_RADIUS


def test_nothing_beyond_the_radius_changes_an_output():
    network, rng = _network(1), np.random.default_rng(0)
    height, width, row, column = 32, 2 * RECEPTIVE_RADIUS + 128, 16, RECEPTIVE_RADIUS + 64
    y = rng.random((1, 1, height, width), np.float32)
    far = np.abs(np.arange(width) - column) > RECEPTIVE_RADIUS
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
