"""Clipped noise: its mean in closed form, and the way back."""

import numpy as np
import pytest
from scipy.stats import norm

from n2s_utils import noise
from n2s_utils.clipping import mean_of_clipped, unclipped

X = np.linspace(0, 1, 41)


@pytest.mark.parametrize("sigma", [5.0, 25.0, 60.0])
def test_mean_of_clipped_gaussian_noise_is_the_closed_form(sigma):
    s = sigma / 255
    a, b = -X / s, (1 - X) / s
    expected = X * (norm.cdf(b) - norm.cdf(a)) + s * (norm.pdf(a) - norm.pdf(b)) + norm.sf(b)
    np.testing.assert_allclose(mean_of_clipped(X, noise.Gaussian(sigma)), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("model", "lower", "tolerance"),
    [
        (noise.Gaussian(40.0), 0, 1e-3),
        (noise.PoissonGaussian(0.01, 15.0), 0, 1e-3),
        (noise.Poisson(0.02), -np.inf, 3e-3),
        (noise.Gamma(50.0), -np.inf, 3e-3),
    ],
    ids=str,
)
def test_mean_of_clipped_noise_is_that_of_many_draws(model, lower, tolerance):
    """Counts and speckle are only nearly Gaussian at white."""
    rng = np.random.default_rng(0)
    mean = np.mean([model.sample(X, rng).clip(lower, 1) for _ in range(100_000)], 0, dtype=float)
    np.testing.assert_allclose(mean_of_clipped(X, model), mean, atol=tolerance)


@pytest.mark.parametrize("model", [noise.Gaussian(25.0), noise.Gaussian(60.0), noise.Poisson(0.05), noise.Gamma(20.0)], ids=str)
def test_the_way_back_undoes_the_mean(model):
    np.testing.assert_allclose(unclipped(mean_of_clipped(X, model), model), X, atol=2e-3)
    beyond = unclipped(np.array([-1.0, 2.0]), model)
    assert beyond.dtype == np.float32 and list(beyond) == [0, 1]
