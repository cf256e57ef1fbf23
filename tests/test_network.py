"""The preconditioned network: its change of variables, its weight, and what builds it."""

import math

import numpy as np
import pytest
import torch

from n2s_utils import noise
from n2s_utils.mixture import PerCrop
from n2s_utils.network import NETWORKS, Architecture, ScoreNetwork
from n2s_utils.unet import UNet

SIGMAS = (5.0, 25.0, 80.0)


class Exact(torch.nn.Module):
    """The score of t, by autograd of its log density."""

    channels, stride, reach = 1, 1, 0

    def __init__(self, log_density):
        super().__init__()
        self.log_density = log_density

    def forward(self, t):
        with torch.enable_grad():
            t = t.detach().clone().requires_grad_()
            return torch.autograd.grad(self.log_density(t).sum(), t)[0]


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("deviation", [0.1, 0.5])
def test_score_of_gaussian_data_at_any_sigma(sigma, deviation):
    """Pictures N(m, tau^2) under noise std^2: c is N(m / std, 1 + tau^2 / std^2), t = deviation c."""
    model, centre, tau = noise.Gaussian(sigma), 0.4, 0.2
    mean, variance = centre / model.std, 1 + (tau / model.std) ** 2
    network = ScoreNetwork(Exact(lambda t: -((t - deviation * mean) ** 2) / (2 * deviation**2 * variance)), deviation)
    c = torch.linspace(-3, 20, 16, dtype=torch.float64).view(1, 1, 4, 4)
    torch.testing.assert_close(network(c, model), -(c - mean) / variance)


@pytest.mark.parametrize("model", [noise.Poisson(0.05), noise.PoissonGaussian(0.05, 5.0)], ids=lambda model: model.name)
def test_score_after_a_bent_change_of_variables(model):
    """c of density exp(-c^2 / 200 + c / 7), and t = deviation (w - w_0 + sqrt(3/2)) with w = 2 sqrt(c + 3/8 + v), w_0 that at c = 0:
    black has one place whatever v, and dc/dt = w / (2 deviation).
    """
    deviation, offset = 0.1, 3 / 8 + model.read_variance

    def log_density_of_t(t):
        w = t / deviation + 2 * offset**0.5 - 1.5**0.5
        c = w**2 / 4 - offset
        return -(c**2) / 200 + c / 7 + torch.log(w)

    network = ScoreNetwork(Exact(log_density_of_t), deviation)
    c = torch.linspace(0.01, 40, 16, dtype=torch.float64).view(1, 1, 4, 4)
    torch.testing.assert_close(network(c, model), -c / 100 + 1 / 7)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_network_that_sees_the_picture_as_it_is_gives_the_score_of_y(channels, sigma):
    """With deviation = sigma / 255, as the weights of an older making have it: R(c) / std = N(y)."""
    model = noise.Gaussian(sigma)
    torch.manual_seed(0)
    network = Architecture(deviation=sigma / 255, kink="softplus").build(channels)
    for parameter in network.parameters():  # biases too
        torch.nn.init.normal_(parameter, std=0.1)
    network, y = network.double(), torch.rand(1, channels, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close((network(model.coordinate(y), model) / model.std).float(), network.network(y))


@pytest.mark.parametrize("channels", [1, 3])
def test_network_at_half_the_noise_is_the_score_after_a_change_of_variables(channels):
    """Score R(y) at sigma is factor R(factor y) at sigma / factor."""
    torch.manual_seed(0)
    network = Architecture().build(channels)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    y, models = torch.rand(1, channels, 64, 64), [noise.Gaussian(sigma) for sigma in (25.0, 50.0)]

    def score(y, model):
        return network(model.coordinate(y), model) / model.std

    with torch.no_grad():
        expected = 0.5 * score(0.5 * y, models[0])
        assert not torch.allclose(score(y, models[0]), expected, rtol=0.1)
        torch.testing.assert_close(score(y, models[1]), expected)


@pytest.mark.parametrize(
    "model", [noise.Gaussian(25.0), noise.Poisson(0.05), noise.Gamma(50.0), noise.PoissonGaussian(0.05, 5.0)], ids=lambda model: model.name
)
def test_weight_is_the_squared_scale_of_the_network_s_output(model):
    network = Architecture(deviation=0.2).build(1)
    c = torch.from_numpy(model.coordinate(np.linspace(0.05, 1, 16))).view(1, 1, 4, 4)
    zero, one = (ScoreNetwork(_Constant(value), 0.2)(c, model) for value in (0.0, 1.0))
    torch.testing.assert_close(network.weight(c, model), 1 / (one - zero) ** 2)
    torch.testing.assert_close(zero, model.curvature(c))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_skewness_is_one_more_channel_of_what_the_network_sees(channels):
    seen = []

    class Eye(_Constant):
        def forward(self, t):
            seen.append(t)
            return super().forward(t[:, :channels])

    c, models = torch.rand(2, channels, 4, 4), [noise.Gamma(25.0), noise.Gaussian(25.0)]
    score = ScoreNetwork(Eye(0.0), 0.1, skewness=True)(c, PerCrop(models))
    assert score.shape == c.shape
    torch.testing.assert_close(seen[0][:, :channels], 0.1 * c)
    torch.testing.assert_close(seen[0][:, channels:], torch.tensor([-2.0, 0.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_told_the_skewness_starts_as_one_that_was_not(channels):
    torch.manual_seed(0)
    before, after = Architecture().build(channels), Architecture(skewness=True).build(channels)
    after.start_from(before)
    c, gamma = torch.rand(1, channels, 32, 32), noise.Gamma(25.0)
    with torch.no_grad():
        torch.testing.assert_close(after(c, gamma), before(c, gamma))
        torch.nn.init.ones_(after.network.encoder[0][0][0].weight[:, -1])
        assert not torch.allclose(after(c, gamma), before(c, gamma))
    again = Architecture(skewness=True).build(channels)
    again.start_from(after)
    for name, value in after.network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[name], value)


def test_power_weighs_by_the_variance_of_the_noise():
    network, x = Architecture().build(1), np.array([0.1, 0.4], np.float32).reshape(1, 1, 1, 2)
    for model, variance in (
        (noise.Gaussian(25.0), [1, 1]),
        (noise.Gaussian(50.0), [4, 4]),
        (noise.Poisson(0.001), x.ravel() * 0.001 / noise.REFERENCE),
        (noise.Gamma(100.0), x.ravel() ** 2 / 100 / noise.REFERENCE),
    ):
        c = torch.from_numpy(model.coordinate(x))
        for power in (0.5, 1.0):
            ratio = network.weight(c, model, power) / network.weight(c, model)
            np.testing.assert_allclose(ratio.flatten(), np.float32(variance) ** power, rtol=0.03)


class _Constant(torch.nn.Module):
    channels, stride, reach = 1, 1, 0

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, t):
        return torch.full_like(t, self.value)


def test_options_reach_the_network():
    torch.manual_seed(0)
    network = Architecture(output_scale=3.0, kink="softplus", kink_width=0.2, shared_blocks=True, deviation=0.3).build(3)
    inner = network.network
    assert isinstance(inner, UNet) and (inner.output_scale, inner.activation.kink, inner.activation.width) == (3.0, "softplus", 0.2)
    assert inner.encoder[1] is inner.encoder[4] and network.deviation == 0.3
    assert (network.channels, network.stride, network.reach) == (3, UNet.stride, UNet.reach)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"name": "vit"}, ("'vit'", "unet")),
        ({"deviation": 0.0}, ("deviation = 0.0",)),
        ({"deviation": math.nan}, ("deviation = nan",)),
        ({"output_scale": 0.0}, ("output_scale = 0.0",)),
        ({"output_scale": math.inf}, ("output_scale = inf",)),
        ({"kink_width": -0.1}, ("kink_width = -0.1",)),
        ({"kink": "sharp"}, ("kink = 'sharp'", "leaky")),
    ],
)
def test_bad_architecture_is_refused(refused, changes, parts):
    with refused(*parts):
        Architecture(**changes).build(1)


def test_the_unet_is_registered():
    assert NETWORKS["unet"] is UNet
