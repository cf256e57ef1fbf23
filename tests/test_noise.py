"""Each noise model samples what it says, and its Tweedie formula gives the posterior functional it claims."""

import numpy as np
import pytest
import torch

from n2s_utils import noise

GAUSSIAN, POISSON, GAMMA = noise.Gaussian(25.0), noise.Poisson(0.01), noise.Gamma(50.0)
MODELS = pytest.mark.parametrize("model", [GAUSSIAN, POISSON, GAMMA], ids=lambda model: model.name)
PIXELS = 400_000


@pytest.mark.parametrize("level", [0.05, 0.5, 1.0])
@pytest.mark.parametrize(
    ("model", "variance"),
    [
        (GAUSSIAN, lambda x: (25 / 255) ** 2),
        (POISSON, lambda x: 0.01 * x),
        (GAMMA, lambda x: x**2 / 50),
        (noise.Gaussian(5.0), lambda x: (5 / 255) ** 2),
        (noise.Poisson(0.1), lambda x: 0.1 * x),
        (noise.Gamma(4.0), lambda x: x**2 / 4),
    ],
)
def test_mean_and_variance(model, variance, level):
    y = model.sample(np.full(PIXELS, level, np.float32), np.random.default_rng(1)).astype(np.float64)
    expected = variance(level)
    assert abs(y.mean() - level) < 4 * np.sqrt(expected / PIXELS)
    # The variance of a sample variance is (kurtosis - 1) / n times the squared variance.
    kurtosis = ((y - y.mean()) ** 4).mean() / y.var() ** 2
    assert abs(y.var() / expected - 1) < 4 * np.sqrt((kurtosis - 1) / PIXELS)


def test_psnr_at_sigma_25_is_20_17_before_clipping():
    x = np.random.default_rng(0).random(PIXELS).astype(np.float32)
    y = GAUSSIAN.sample(x, np.random.default_rng(1))
    assert -10 * np.log10(np.mean((y - x) ** 2)) == pytest.approx(20.172, abs=0.02)
    assert -10 * np.log10(np.mean((y.clip(0, 1) - x) ** 2)) > 20.3


@MODELS
def test_float32_of_the_same_shape_unclipped_unrounded(model):
    x = np.concatenate([np.full((20, 30, 3), 0.02), np.full((20, 30, 3), 0.98)]).astype(np.float32)
    y = model.sample(x, np.random.default_rng(0))
    assert y.dtype == np.float32 and y.shape == x.shape
    assert y.max() > 1
    if model is GAUSSIAN:
        assert y.min() < 0
    if model is not POISSON:
        assert np.unique(y).size > 0.99 * y.size  # 8 bits would leave a few hundred values


def test_poisson_counts_lie_on_the_lattice():
    counts = POISSON.sample(np.full(1000, 0.5), np.random.default_rng(0)) / 0.01
    np.testing.assert_allclose(counts, counts.round(), atol=1e-4)
    assert np.unique(counts.round()).size > 20


def test_gaussian_formula_is_the_posterior_mean():
    centre, spread, std = 0.4, 0.2, GAUSSIAN.std  # x ~ N(centre, spread^2)
    y = np.linspace(-0.5, 1.5, 21)
    score = -(y - centre) / (spread**2 + std**2)
    expected = (spread**2 * y + std**2 * centre) / (spread**2 + std**2)
    np.testing.assert_allclose(GAUSSIAN.posterior_mean(y, score), expected, rtol=1e-12)

    x = np.linspace(-3, 4, 70_001)
    log_weight = -((x - centre) ** 2) / (2 * spread**2) - (y[:, None] - x) ** 2 / (2 * std**2)
    np.testing.assert_allclose(expected, _posterior_average(x, log_weight, x), rtol=1e-9)


def test_poisson_formula_is_the_geometric_mean():
    shape, rate, zeta = 3.0, 0.1, POISSON.zeta  # x / zeta ~ Gamma(shape, rate)
    counts = np.array([0, 1, 2, 5, 10, 30, 100, 300.0])
    # Counts are negative binomial; their log density is continued between the integers by the gamma function.
    score = _digamma(counts + shape) - _digamma(counts + 1) - np.log(1 + rate)
    ours = POISSON.posterior_mean(zeta * counts, score)

    photons = np.geomspace(1e-6, 1500, 200_001)
    log_weight = (shape - 1) * np.log(photons) - rate * photons + counts[:, None] * np.log(photons) - photons
    log_weight += np.log(photons)  # the grid is even in log x
    expected = zeta * np.exp(_posterior_average(photons, log_weight, np.log(photons)))
    np.testing.assert_allclose(expected, zeta * np.exp(_digamma(counts + shape)) / (1 + rate), rtol=1e-6)
    # The formula replaces digamma(n + 1) by log(n + 1/2), which is smaller by less than 1 / (24 (n + 1/2)^2).
    shortfall = -np.log(ours / expected)
    assert (shortfall > -1e-6).all() and (shortfall < 1 / (24 * (counts + 0.5) ** 2) + 1e-6).all()
    arithmetic = zeta * (counts + shape) / (1 + rate)
    assert (ours < arithmetic).all() and (np.abs(ours / arithmetic - 1) > 5 * shortfall)[2:].all()


def test_gamma_formula_is_the_harmonic_mean():
    shape, scale, k = 5.0, 2.0, GAMMA.k  # x ~ inverse gamma(shape, scale)
    y = np.linspace(0.05, 2, 12)
    score = (k - 1) / y - (shape + k) * k / (scale + k * y)
    ours = GAMMA.posterior_mean(y, score)
    np.testing.assert_allclose(ours, (scale + k * y) / (shape + k), rtol=1e-12)

    x = np.geomspace(1e-3, 1e2, 200_001)
    log_weight = -(shape + 1) * np.log(x) - scale / x - k * np.log(x) - k * y[:, None] / x
    log_weight += np.log(x)  # the grid is even in log x
    np.testing.assert_allclose(ours, 1 / _posterior_average(x, log_weight, 1 / x), rtol=1e-9)
    assert (_posterior_average(x, log_weight, x) / ours > 1.01).all()  # and not the arithmetic mean


def _posterior_average(x, log_weight, values):
    weight = np.exp(log_weight - log_weight.max(1, keepdims=True))
    return (weight * values).sum(1) / weight.sum(1)


def _digamma(x):
    return torch.digamma(torch.as_tensor(x, dtype=torch.float64)).numpy()


@pytest.mark.parametrize("value", [0, 0.0, -25.0, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("name", "symbol"), [("gaussian", "sigma"), ("poisson", "zeta"), ("gamma", "k")])
def test_bad_parameter_is_refused(refused, name, symbol, value):
    with refused(f"{symbol} = {value}"):
        noise.make(name, value)


@pytest.mark.parametrize("k", [1.0, 0.999, 0.5])
def test_gamma_shape_must_exceed_one(refused, k):
    with refused(f"k = {k}", "above 1"):
        noise.Gamma(k)


def test_unknown_noise_is_refused(refused):
    with refused("'salt'", "gaussian, poisson, gamma"):
        noise.make("salt", 1.0)


def test_make_gives_the_model_and_its_parameter():
    for model in (GAUSSIAN, POISSON, GAMMA):
        assert noise.make(model.name, model.parameter) == model


@MODELS
def test_realization_is_a_pure_function_of_its_key(model):
    x = np.full((8, 8, 3), 0.5, np.float32)
    first = noise.realization(x, model, "Set12", "01", 0)
    np.random.default_rng(3).random(5)  # other random numbers in between change nothing
    assert np.array_equal(first, noise.realization(x, model, "Set12", "01", 0))
    twin = type(model)(int(model.parameter)) if model is not POISSON else model  # 25 and 25.0 are the same noise
    assert np.array_equal(first, noise.realization(x, twin, "Set12", "01", 0))
    others = [
        noise.realization(x, model, "Kodak", "01", 0),
        noise.realization(x, model, "Set12", "02", 0),
        noise.realization(x, model, "Set12", "01", 1),
        noise.realization(x, type(model)(model.parameter * 1.1), "Set12", "01", 0),
    ]
    for other in others:
        assert (first != other).mean() > 0.5


@pytest.mark.parametrize(
    ("model", "recorded"),
    [
        (GAUSSIAN, [0.522345, 0.454784, 0.55187, 0.579009]),
        (POISSON, [0.5, 0.5, 0.56, 0.45]),
        (GAMMA, [0.479189, 0.456121, 0.444846, 0.589949]),
    ],
)
def test_the_noise_stream_has_not_changed(model, recorded):
    """If this fails, every recorded result was measured on other noise."""
    y = noise.realization(np.full((1, 4, 1), 0.5, np.float32), model, "Set12", "01", 0)
    np.testing.assert_allclose(y.ravel(), recorded, atol=2e-6)
