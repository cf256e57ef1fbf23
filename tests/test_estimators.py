"""The estimators that notebook 09 compares, where the score is known: x ~ N(0, tau^2), all pixels independent."""

import numpy as np
import pytest
import torch

from n2s_utils import noise
from n2s_utils.denoiser import Denoiser
from n2s_utils.report import estimators

SIGMA, TAU = 25.0, 20.0  # both on the 0-255 scale
TOGETHER = np.hypot(SIGMA, TAU)


class Normal(torch.nn.Module):
    """The exact score of y / sigma."""

    channels, stride, reach, regression = 1, 1, 0, False

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))

    def forward(self, c, noise):
        return -c / (1 + (TAU / SIGMA) ** 2)


@pytest.fixture(scope="module")
def y():
    return (TOGETHER / 255 * np.random.default_rng(0).standard_normal((256, 256, 1))).astype(np.float32)


@pytest.mark.parametrize("estimator", [estimators.score_shift, estimators.rounded_shift, estimators.unsure, estimators.least_variation])
def test_estimators_that_take_all_variance_for_noise(estimator, y):
    """sigma^2 + tau^2 is what their formulas give here; for UNSURE that is sigma^2 / (1 - MSE / sigma^2)."""
    assert estimator(y, Denoiser(Normal(), noise.Gaussian(SIGMA))) == pytest.approx(TOGETHER, rel=0.02)


def test_score_and_divergence_find_the_level_from_a_wrong_one(y):
    assert estimators.consistent(y, Denoiser(Normal(), noise.Gaussian(1.3 * SIGMA))) == pytest.approx(SIGMA, rel=0.01)


@pytest.mark.parametrize("model", [noise.Gaussian(25.0), noise.Poisson(0.02), noise.Gamma(60.0)], ids=lambda model: model.name)
@pytest.mark.parametrize("estimator", [estimators.wavelets, estimators.stabilised_patches, estimators.patches])
def test_estimators_without_a_score_on_a_smooth_picture(estimator, model):
    x = np.broadcast_to(np.linspace(0.4, 0.6, 96), (96, 96))[:, :, None].astype(np.float32)
    y = noise.realization(x, model, "s", "smooth", 0)
    assert estimator(y, Denoiser(Normal(), model)) == pytest.approx(model.parameter, rel=0.12)


class Known(Normal):
    """The score of counts with read-out noise, taken as Gaussian, around a known picture x (H, W)."""

    def __init__(self, x):
        super().__init__()
        self.x = torch.from_numpy(x)

    def forward(self, c, noise):
        counts = self.x / noise.zeta
        return (counts - c) / (counts + noise.read_variance)


@pytest.mark.parametrize("model", [noise.PoissonGaussian(0.01, 10.0), noise.PoissonGaussian(0.04, 20.0)], ids=str)
def test_the_loss_is_least_at_the_noise_of_the_picture(model):
    x = np.outer(np.linspace(0.2, 1, 200), np.linspace(0.1, 1, 200)).astype(np.float32)
    found = estimators.least_loss(noise.realization(x[:, :, None], model, "s", "ramp", 0), Denoiser(Known(x), model))
    assert (found.zeta, found.sigma) == pytest.approx((model.zeta, model.sigma), rel=0.2)


def test_the_least_of_a_grid_is_found_between_its_points():
    """Of a tilted valley exactly, as it is a quadratic itself."""
    a, b = np.mgrid[0:5, 0:6] - np.array([2.3, 2.8])[:, None, None]
    np.testing.assert_allclose(estimators.least_of(a**2 + b**2 + 1.2 * a * b), [2.3, 2.8])
    np.testing.assert_allclose(estimators.least_of((a + 3) ** 2 + b**2), [0, 3])  # at an edge, the point itself


def test_rounding_snaps_to_hundredths(monkeypatch):
    for model, found, rounded in (
        (noise.Poisson(0.01), 0.0134, 0.01),
        (noise.Gamma(60.0), 70.0, 100.0),
        (noise.Gamma(60.0), 300.0, np.inf),
    ):
        monkeypatch.setattr(estimators, "score_shift", lambda y, single, found=found: found)
        assert estimators.rounded_shift(np.zeros((4, 4, 1)), Denoiser(Normal(), model)) == pytest.approx(rounded)
