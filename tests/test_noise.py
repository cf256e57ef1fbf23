"""Each noise model samples what it says, its coordinates fit together, and its Tweedie formula gives the functional it claims."""

import numpy as np
import pytest
import torch
from scipy.stats import nbinom, norm

from n2s_utils import noise

GAUSSIAN, POISSON, GAMMA, CAMERA = noise.Gaussian(25.0), noise.Poisson(0.01), noise.Gamma(50.0), noise.PoissonGaussian(0.02, 10.0)
MODELS = pytest.mark.parametrize("model", [GAUSSIAN, POISSON, GAMMA, CAMERA], ids=lambda model: model.name)
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
        (CAMERA, lambda x: 0.02 * x + (10 / 255) ** 2),
        (noise.PoissonGaussian(0.1, 50.0), lambda x: 0.1 * x + (50 / 255) ** 2),
    ],
)
def test_mean_and_variance(model, variance, level):
    y = model.sample(np.full(PIXELS, level, np.float32), np.random.default_rng(1)).astype(np.float64)
    expected = variance(level)
    assert abs(y.mean() - level) < 4 * np.sqrt(expected / PIXELS)
    # The variance of a sample variance is (kurtosis - 1) / n times the squared variance.
    kurtosis = ((y - y.mean()) ** 4).mean() / y.var() ** 2
    assert abs(y.var() / expected - 1) < 4 * np.sqrt((kurtosis - 1) / PIXELS)
    for full in (np.full, torch.full):
        np.testing.assert_allclose(model.variance(full((2, 3), level)), np.full((2, 3), expected), rtol=1e-6)


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
    if model in (GAUSSIAN, CAMERA):
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
    ours = GAUSSIAN.posterior_mean(GAUSSIAN.coordinate(y), std * score)  # the score of c = y / std
    np.testing.assert_allclose(ours, expected, rtol=1e-12)

    x = np.linspace(-3, 4, 70_001)
    log_weight = -((x - centre) ** 2) / (2 * spread**2) - (y[:, None] - x) ** 2 / (2 * std**2)
    np.testing.assert_allclose(expected, _posterior_average(x, log_weight, x), rtol=1e-9)


def test_published_poisson_formula_is_the_geometric_mean():
    shape, rate, zeta = 3.0, 0.1, POISSON.zeta  # x / zeta ~ Gamma(shape, rate)
    counts = np.array([0, 1, 2, 5, 10, 30, 100, 300.0])
    # Counts are negative binomial; their log density is continued between the integers by the gamma function.
    score = _digamma(counts + shape) - _digamma(counts + 1) - np.log(1 + rate)
    ours = POISSON.published_mean(POISSON.coordinate(zeta * counts), score)

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
    # Of c = sqrt(k) log(1 + y / eps): dy/dc times that of y, and (log dy/dc)'.
    score_of_c = ((y + GAMMA.eps) * score + 1) / np.sqrt(k)
    ours = GAMMA.posterior_mean(GAMMA.coordinate(y), score_of_c)
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
    with refused("'salt'", "gaussian, poisson, poisson-gaussian, gamma"):
        noise.make("salt", 1.0)
    with refused("''", "gaussian"):
        noise.from_table({"sigma": 25.0})


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("gaussian", {}, "give sigma,"),
        ("gaussian", {"zeta": 0.1}, "give sigma,"),
        ("poisson", {"zeta": 0.1, "sigma": 5.0}, "give zeta,"),
        ("poisson-gaussian", {"zeta": 0.1}, "give zeta and sigma,"),
        ("gamma", {"sigma": 5.0}, "give k,"),
    ],
)
def test_parameters_that_do_not_fit_the_model_are_refused(refused, name, parameters, said):
    for make in (lambda: noise.make(name, **parameters), lambda: noise.from_table({"model": name} | parameters)):
        with refused(repr(name), said):
            make()


@MODELS
def test_make_and_from_table_give_the_model_and_its_parameters(model):
    assert noise.make(model.name, **model.parameters) == noise.make(model.name, *model.parameters.values()) == model
    assert noise.from_table({"model": model.name} | model.parameters) == model


def test_labels_and_rows_name_every_parameter():
    models = GAUSSIAN, POISSON, GAMMA, CAMERA
    assert [model.label for model in models] == ["gaussian25", "poisson0.01", "gamma50", "poisson-gaussian0.02+10"]
    assert [model.parameter for model in models] == [25.0, 0.01, 50.0, "0.02+10"]
    assert str(CAMERA) == "poisson-gaussian noise of zeta 0.02, sigma 10"
    assert CAMERA.parameters == {"zeta": 0.02, "sigma": 10.0}


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_bad_read_noise_is_refused(refused, sigma):
    with refused(f"sigma = {sigma}"):
        noise.PoissonGaussian(0.01, sigma)
    with refused(f"zeta = {sigma}"):
        noise.PoissonGaussian(sigma, 5.0)


# The coordinates.


def _coordinates(model) -> np.ndarray:
    """Values of c over its range and, where noise of our own leads there, below 0."""
    highest = model.coordinate(np.array(2.0))
    return np.concatenate([[] if model is GAUSSIAN else np.linspace(-2, -0.1, 8), np.geomspace(0.05, highest, 40)])


@MODELS
def test_slope_and_curvature_are_the_derivatives_of_the_stabilised_coordinate(model):
    c, h = _coordinates(model), 1e-4
    slope = (model.stabilise(c + h) - model.stabilise(c - h)) / (2 * h)
    np.testing.assert_allclose(model.slope(c), slope, rtol=1e-5)
    assert (model.slope(c) > 0).all()
    curvature = (np.log(model.slope(c + h)) - np.log(model.slope(c - h))) / (2 * h)
    np.testing.assert_allclose(model.curvature(c), curvature, atol=1e-5)
    if model in (POISSON, CAMERA):
        assert (model.slope(c) != 1).all() and (model.curvature(c)[c > 0] < 0).all()


@MODELS
def test_noise_has_about_unit_deviation_in_the_stabilised_coordinate(model):
    for level in (0.2, 0.9):
        y = model.sample(np.full(100_000, level, np.float32), np.random.default_rng(0))
        assert model.stabilise(model.coordinate(y)).std() == pytest.approx(1, abs=0.1 if model is GAMMA else 0.04)


@MODELS
def test_skewness_is_that_of_the_stabilised_noise(model):
    y = model.sample(np.full(200_000, 0.9, np.float32), np.random.default_rng(0))
    z = model.stabilise(model.coordinate(y)).astype(float)
    told = model.skewness(z)
    assert told.shape == z.shape and (told == told[0]).all()
    assert ((z - z.mean()) ** 3).mean() / z.std() ** 3 == pytest.approx(told[0], abs=0.03 if model in (GAUSSIAN, GAMMA) else 0.13)
    assert (told[0] != 0) == (model is GAMMA)


@MODELS
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arrays_and_tensors_give_the_same(model, dtype):
    y = np.linspace(0, 1.5, 50).astype(dtype)
    c, score = model.coordinate(y), np.linspace(-0.3, 0.3, 50).astype(dtype)
    same = {"rtol": 1e-5 if dtype is np.float32 else 1e-12, "atol": 1e-6 if dtype is np.float32 else 1e-12}
    np.testing.assert_allclose(model.coordinate(torch.from_numpy(y)).numpy(), c, **same)
    for name in ("stabilise", "slope", "curvature", "variance", "skewness"):
        ours, theirs = getattr(model, name)(c), getattr(model, name)(torch.from_numpy(c))
        assert ours.dtype == dtype and theirs.dtype == torch.from_numpy(y).dtype
        np.testing.assert_allclose(theirs.numpy(), ours, **same)
    for name in ("posterior_mean", *(["published_mean"] if model in (POISSON, CAMERA) else [])):
        ours, theirs = getattr(model, name)(c, score), getattr(model, name)(torch.from_numpy(c), torch.from_numpy(score))
        assert ours.dtype == dtype and theirs.dtype == torch.from_numpy(y).dtype
        np.testing.assert_allclose(theirs.numpy(), ours, **same)


@pytest.mark.parametrize("sigma", [0.05, 10.0, 60.0])
def test_with_read_out_noise_black_lies_where_counts_alone_have_it(sigma):
    model, c = noise.PoissonGaussian(0.01, sigma), np.linspace(0, 100, 5)
    assert model.stabilise(c)[0] == pytest.approx(noise.Poisson(0.01).stabilise(c)[0])
    np.testing.assert_allclose(model.inverse(model.stabilise(c)), 0.01 * (c + 1 / 4))


@pytest.mark.parametrize("model", [POISSON, CAMERA], ids=lambda model: model.name)
def test_the_power_of_the_reading_grows_with_the_counts(model, monkeypatch):
    """Without growth it is Tweedie's formula in z; with a fast one it multiplies w^2 by an exponential, as the published one does."""
    c, score = np.array([0, 1, 5, 50, 500.0]), np.array([2, 0.6, 0.3, -0.3, 0.2])
    monkeypatch.setattr(type(model), "growth", 0.0)
    np.testing.assert_allclose(model.posterior_mean(c, score), model.regression_mean(c, score))
    monkeypatch.setattr(type(model), "growth", 1e6)
    power, square = score - model.curvature(c), c + 3 / 8 + model.read_variance
    expected = model.zeta * (square * np.exp(power) - model.read_variance - 1 / 8)
    np.testing.assert_allclose(model.posterior_mean(c, score)[1:], expected[1:], rtol=1e-5)


def test_below_black_the_reading_of_counts_has_no_power():
    """Only read-out noise leads there; and however far below black a score leads, the reading is finite."""
    c, score = np.array([-12.0, -3.0, -0.5]), np.array([0.3, 0.2, -0.1])
    np.testing.assert_allclose(CAMERA.posterior_mean(c, score), CAMERA.regression_mean(c, score), rtol=1e-5)
    assert np.isfinite(CAMERA.posterior_mean(np.array([0, 3.0, 50.0]), np.array([-20.0, -20.0, -200.0]))).all()


@pytest.mark.parametrize("model", [noise.Poisson(1e-5), noise.PoissonGaussian(1.5e-6, 10.0)], ids=str)
def test_a_small_gain_is_read_in_float32_as_in_float64(model):
    """Millions of counts, of which the score is tiny."""
    y = np.linspace(0.1, 1, 50)
    c, deviation = model.coordinate(y), model.variance(y) ** 0.5
    score = np.linspace(-1, 1, 50) / (deviation / model.zeta)
    narrow = model.posterior_mean(c.astype(np.float32), score.astype(np.float32))
    assert (np.abs(narrow - model.posterior_mean(c, score)) < 0.02 * deviation).all()


@MODELS
def test_black_is_denoised_to_a_finite_value_without_a_warning(model):
    with np.errstate(all="raise"):
        c = model.coordinate(np.zeros((4, 4, 1), np.float32))
        assert np.isfinite(model.posterior_mean(c, np.full_like(c, 0.1))).all() and np.isfinite(model.stabilise(c)).all()


@pytest.mark.parametrize("model", [POISSON, GAMMA], ids=lambda model: model.name)
def test_a_picture_with_negative_intensities_is_refused(refused, model):
    y = np.array([[0.5, -0.25], [0.1, 0.0]], np.float32)
    for picture in (y, torch.from_numpy(y)):
        with refused(model.name, "negative intensities", "-0.25"):
            model.coordinate(picture)
    for other in (GAUSSIAN, CAMERA):  # which give such pictures themselves
        assert (other.coordinate(y) < 0).sum() == 1


@MODELS
def test_realization_is_a_pure_function_of_its_key(model):
    x = np.full((8, 8, 3), 0.5, np.float32)
    first = noise.realization(x, model, "Set12", "01", 0)
    np.random.default_rng(3).random(5)  # other random numbers in between change nothing
    assert np.array_equal(first, noise.realization(x, model, "Set12", "01", 0))
    # 25 and 25.0 are the same noise.
    twin = type(model)(*(int(value) if value == int(value) else value for value in model.parameters.values()))
    assert np.array_equal(first, noise.realization(x, twin, "Set12", "01", 0))
    others = [
        noise.realization(x, model, "Kodak", "01", 0),
        noise.realization(x, model, "Set12", "02", 0),
        noise.realization(x, model, "Set12", "01", 1),
        noise.realization(x, type(model)(*(1.1 * value for value in model.parameters.values())), "Set12", "01", 0),
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


def test_a_number_is_the_same_key_in_every_type_of_float():
    first = noise.rng("a", 25.0).random(4)
    for twin in (np.float64(25), np.float32(25), np.float64("25.0"), 25):
        assert np.array_equal(noise.rng("a", twin).random(4), first), type(twin)
    assert np.array_equal(noise.rng(np.float64(0.05)).random(4), noise.rng(0.05).random(4))
    for other in (25.5, np.float32(26)):
        assert not np.array_equal(noise.rng("a", other).random(4), first)


def test_at_no_count_the_curvature_is_that_of_the_counts_side():
    zero = np.zeros(1)
    assert noise.Poisson(0.05).curvature(zero) == pytest.approx(-4 / 3)
    assert noise.Poisson(0.05).curvature(zero - 0.01) == 0


def test_posterior_mean_of_counts_with_read_noise_against_a_summed_one():
    """lambda ~ Gamma(shape a, mean m): E[lambda | c] = (c + 1 + v l(c + 1)) p(c + 1) / p(c), exactly; the reading of the
    module, from the same score, comes close."""
    model, a, m = noise.PoissonGaussian(0.02, 10.0), 4.0, 8.0
    v, n, c = model.read_variance, np.arange(300), np.linspace(0, 25, 60)[:, None]
    odds = nbinom.pmf(n, a, a / (a + m))

    def p(c):
        return (odds * norm.pdf(c, n, v**0.5)).sum(1)

    def score(c):
        return (odds * norm.pdf(c, n, v**0.5) * (n - c) / v).sum(1) / p(c)

    weights = odds * norm.pdf(c, n, v**0.5)
    summed = (weights * (n + a)).sum(1) / weights.sum(1) / (1 + a / m)
    np.testing.assert_allclose((c[:, 0] + 1 + v * score(c + 1)) * p(c + 1) / p(c), summed, rtol=1e-6)
    reading = model.posterior_mean(c[:, 0], score(c)) / model.zeta
    assert (np.abs(reading - summed) < 0.25 * np.sqrt(summed + v)).all()  # of the noise's own deviation
