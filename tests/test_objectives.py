"""The losses against closed forms: Gaussian data and a linear network R(c) = -a c, where the score is known."""

import inspect

import numpy as np
import pytest
import torch

from n2s_utils import noise, objectives
from n2s_utils.mixture import Mixture, PerCrop
from n2s_utils.recorruption import noisier, recorrupt

TWINS = ["supervised", "noise2noise"]
GR2R = ["gr2r", "gr2r-supervised"]
DEVIATION = 0.1
GAUSSIAN = noise.Gaussian(25.0)
NAMES = pytest.mark.parametrize("name", objectives.SCORE_MATCHING)


def _make(name: str, s_max: float, s_min: float, model: noise.Model = GAUSSIAN, **settings):
    return objectives.make(objectives.Settings(name, s_max, s_min, **settings), model, DEVIATION)


def _gaussian_batch(tau: float, s_a: float, objective, crops: int = 4000):
    generator = torch.Generator().manual_seed(0)
    c = tau * torch.randn(crops, 1, 16, 16, generator=generator, dtype=torch.float64)
    return c, objective.probe(c, generator), torch.full((crops, 1, 1, 1), s_a, dtype=torch.float64)


@NAMES
@pytest.mark.parametrize(("tau", "s_a"), [(1.0, 0.3), (0.5, 0.5), (0.3, 0.05)])
def test_gradient_vanishes_at_the_score_of_the_smoothed_density(name, tau, s_a):
    """c + s_a u is N(0, tau^2 + s_a^2), so the optimum is a = 1 / (tau^2 + s_a^2)."""
    objective = _make(name, s_a, s_a)
    batch = _gaussian_batch(tau, s_a, objective)
    assert _optimum(objective, batch, 1 / (tau**2 + s_a**2)) == pytest.approx(1, abs=0.01 if name.startswith("antithetic") else 0.02)


def _optimum(objective, batch, a0: float, *weight) -> float:
    """The a / a0 that minimises the loss of R(c) = -a c; between 0.9 and 1.1, or it fails."""

    def gradient(value):
        a = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        objective.loss(lambda v: -a * v, *batch, *weight).backward()
        return a.grad.item()

    # The loss is quadratic in a, so its gradient is a line and two points give the sample's own optimum.
    low, high = gradient(0.9 * a0), gradient(1.1 * a0)
    assert low < 0 < high
    return 0.9 - 0.2 * low / (high - low)


@pytest.mark.parametrize("weight", [lambda v: 1 / (1 + v**2), lambda v: v.exp()], ids=["falling", "one-sided"])
@pytest.mark.parametrize("name", ["ar-dae", "ar-dae-log-uniform", "r2r", "antithetic"])
def test_a_weight_does_not_move_the_minimum(name, weight):
    """Only as a function of c + s_a u, and on every term of the loss, does a weight leave the score where it was."""
    tau, s_a = 0.8, 0.6
    objective = _make(name, s_a, s_a)
    batch = _gaussian_batch(tau, s_a, objective)
    assert _optimum(objective, batch, 1 / (tau**2 + s_a**2), weight) == pytest.approx(1, abs=0.015)
    loss = objective.loss(lambda v: -v, *batch)
    assert abs(objective.loss(lambda v: -v, *batch, weight) - loss) > 0.05 * abs(loss)


@NAMES
def test_weight_one_is_no_weight_and_a_constant_scales(name):
    objective, network, batch = _make(name, 0.3, 0.1), _network(), _crops()
    plain = objective.loss(network, *batch)
    assert objective.loss(network, *batch, objectives.unweighted) == plain
    torch.testing.assert_close(objective.loss(network, *batch, lambda v: 3 * torch.ones_like(v)), 3 * plain)
    assert objective.weighted == name.startswith("antithetic")


@NAMES
def test_value_on_gaussian_data(name):
    """Per pixel, with R = -a c: (1 - a s^2)^2 + a^2 s^2 tau^2, and a^2 (tau^2 + s^2) - 2 a."""
    tau, s_a, a = 0.8, 0.4, 0.7
    objective = _make(name, s_a, s_a)
    loss = objective.loss(lambda v: -a * v, *_gaussian_batch(tau, s_a, objective)).item()
    plain, antithetic = (1 - a * s_a**2) ** 2 + (a * s_a * tau) ** 2, a**2 * (tau**2 + s_a**2) - 2 * a
    weight = ((1 + s_a**2) / s_a) ** 2 if name == "r2r" else 1
    assert loss == pytest.approx(antithetic if name.startswith("antithetic") else weight * plain, rel=0.01)


def test_r2r_is_ar_dae_weighted_to_image_units():
    c, u, s_a = _crops()
    for level in s_a:
        s = level.expand(len(c), 1, 1, 1)
        weight = ((1 + level.item() ** 2) / level.item()) ** 2
        r2r = objectives.R2R().loss(_network(), c, u, s)
        torch.testing.assert_close(r2r, weight * objectives.LogUniformARDAE().loss(_network(), c, u, s), rtol=1e-9, atol=0)


def test_two_draws_are_the_mean_of_two_losses():
    """What draws = 2 of a training configuration does: the batch repeated, with other u."""
    (c, u, s_a), other = _crops(), _crops()[1].flip(0)
    loss, network = objectives.ARDAE().loss, _network()
    both = loss(network, c.repeat(2, 1, 1, 1), torch.cat([u, other]), s_a.repeat(2, 1, 1, 1))
    torch.testing.assert_close(both, (loss(network, c, u, s_a) + loss(network, c, other, s_a)) / 2)


@pytest.mark.parametrize("name", TWINS)
def test_regression_is_the_squared_error_of_the_tweedie_step(name):
    network, std = _network(), 25 / 255
    c, target, _ = _crops()
    expected = (std * (c + network(c)) - target).square().mean() / std**2 / DEVIATION**2
    torch.testing.assert_close(_make(name, 0, 0).loss(network, c, target, GAUSSIAN), expected)


VARIANCES = {
    noise.Poisson(0.05): lambda x: 0.05 * x.mean(),
    noise.Gamma(20.0): lambda x: x.square().mean() / 20,
    noise.PoissonGaussian(0.05, 10.0): lambda x: 0.05 * x.mean() + (10 / 255) ** 2,
}


@pytest.mark.parametrize("model", VARIANCES, ids=lambda model: model.name)
@pytest.mark.parametrize("name", TWINS)
def test_regression_of_other_noise_is_the_squared_error_in_units_of_each_crop_s_noise(name, model):
    clean, _, _ = _crops()
    clean *= torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64).view(-1, 1, 1, 1)  # crops of unequal brightness
    y = torch.from_numpy(model.sample(clean.numpy(), np.random.default_rng(0)).astype(np.float64))
    c, network = model.coordinate(y), _network()
    errors = (model.regression_mean(c, network(c)) - clean).square()
    expected = sum(error.mean() / VARIANCES[model](x) for error, x in zip(errors, clean, strict=True)) / len(clean) / DEVIATION**2
    torch.testing.assert_close(_make(name, 0, 0, model).loss(network, c, clean, model), expected)


@pytest.mark.parametrize("model", VARIANCES, ids=lambda model: model.name)
def test_regression_on_a_black_crop_is_finite(model):
    c = model.coordinate(torch.zeros(1, 2, 12, 12, dtype=torch.float64))
    network = _network()
    loss = _make("supervised", 0, 0, model).loss(network, c, torch.zeros_like(c), model)
    loss.backward()
    assert loss.isfinite() and all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("probe", [objectives.gaussian, objectives.rademacher, objectives.masked])
def test_probes_have_mean_zero_and_unit_covariance(probe):
    u = probe(torch.empty(400, 1, 32, 32, dtype=torch.float64), torch.Generator().manual_seed(0))
    assert u.mean().item() == pytest.approx(0, abs=0.01)
    assert u.square().mean().item() == pytest.approx(1, abs=0.01)
    assert (u[..., 1:] * u[..., :-1]).mean().item() == pytest.approx(0, abs=0.01)
    kinds = {objectives.rademacher: {-1.0, 1.0}}
    assert set(u.unique().tolist()) == kinds.get(probe, set(u.unique().tolist()))
    assert (u == 0).double().mean().item() == pytest.approx(0.75 if probe is objectives.masked else 0, abs=0.01)


def test_sure_is_the_mean_squared_error_it_never_sees():
    """A linear shrinkage of noisy images: c - a c against the truth, in units of the noise."""
    generator = torch.Generator().manual_seed(0)
    clean = 2 * torch.randn(64, 1, 64, 64, generator=generator, dtype=torch.float64)
    c = clean + torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    for a in (0.075, 0.2, 0.5):
        error = (c - a * c - clean).square().mean().item()
        estimate = objectives.sure(lambda v, a=a: -a * v, c, torch.Generator().manual_seed(1))
        assert estimate == pytest.approx(error, rel=0.01)


def test_antithetic_is_the_mean_of_the_plain_losses_over_both_signs():
    c, u, s_a = _crops()
    s_a = torch.full_like(s_a, 0.07)
    plain, antithetic = objectives.ARDAE(), objectives.AntitheticARDAE()
    network = _network()
    mean = (plain.loss(network, c, u, s_a) + plain.loss(network, c, -u, s_a)) / 2
    expected = mean / 0.07**2 - u.square().mean() / 0.07**2
    torch.testing.assert_close(antithetic.loss(network, c, u, s_a), expected, rtol=1e-10, atol=0)


def test_antithetic_treats_every_crop_by_its_own_level():
    c, u, s_a = _crops()
    objective, network = objectives.AntitheticARDAE(), _network()
    apart = [objective.loss(network, *(part[i : i + 1] for part in (c, u, s_a))) for i in range(len(c))]
    torch.testing.assert_close(objective.loss(network, c, u, s_a), torch.stack(apart).mean())
    apart = [objectives.ARDAE().loss(network, *(part[i : i + 1] for part in (c, u, s_a))) for i in range(len(c))]
    torch.testing.assert_close(objectives.ARDAE().loss(network, c, u, s_a), torch.stack(apart).mean())


def test_antithetic_gradient_stays_bounded_as_s_a_falls():
    """With a smooth network; the plain loss divided by s_a^2 carries a term of deviation 1 / s_a."""
    network, c = _network(), _crops()[0]
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(c.shape, generator=generator, dtype=torch.float64) for _ in range(200)]

    def deviation(objective, s_a, scale):
        level = torch.full((len(c), 1, 1, 1), s_a, dtype=torch.float64)
        gradients = []
        for u in draws:
            network.zero_grad()
            objective.loss(network, c, u, level).backward()
            gradients.append(network[0].weight.grad.flatten() * scale)
        return torch.stack(gradients).std(0).norm().item()

    coarse, fine = 0.1, 0.001
    plain = [deviation(objectives.ARDAE(), s, 1 / s**2) for s in (coarse, fine)]
    antithetic = [deviation(objectives.AntitheticARDAE(), s, 1.0) for s in (coarse, fine)]
    assert plain[1] / plain[0] > 0.5 * coarse / fine
    assert antithetic[1] / antithetic[0] < 1.5


@NAMES
def test_losses_are_pure(name):
    objective, network, batch = _make(name, 0.05, 0.01), _network(), _crops()
    before = [part.clone() for part in batch]
    first = objective.loss(network, *batch)
    torch.manual_seed(99)
    assert objective.loss(network, *batch) == first
    assert all(torch.equal(part, copy) for part, copy in zip(batch, before, strict=True))


@NAMES
def test_objectives_are_given_noisy_tensors_only(name):
    objective = _make(name, 0.05, 0.01)
    assert objective.needs == "noisy"
    assert list(inspect.signature(objective.loss).parameters) == ["R", "c", "u", "s_a", "weight"]


def test_twins_declare_what_more_they_need():
    assert {name: _make(name, 0, 0).needs for name in TWINS} == {"supervised": "clean", "noise2noise": "pair"}
    assert {name: _make(name, 1, 0.3).needs for name in GR2R} == {"gr2r": "noisy", "gr2r-supervised": "clean"}


@pytest.mark.parametrize(("sigma", "power", "times"), [(25, 0.5, 1), (50, 0, 1), (50, 0.5, 2), (50, 1, 4), (12.5, 0.5, 1 / 2)])
def test_power_weighs_twins_by_the_variance_of_the_noise(sigma, power, times):
    model, target = noise.Gaussian(sigma), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    c = model.coordinate(target + 0.1)
    flat, weighted = (_make("supervised", 0, 0, weight_power=p).loss(torch.zeros_like, c, target, model).item() for p in (0, power))
    assert weighted / flat == pytest.approx(times)


def test_ar_dae_level_falls_stays_and_restarts():
    levels = objectives.ARDAE(0.05, 0.001)

    def level(crop):
        return levels.noise_levels(crop, 1, np.random.default_rng(0)).item()

    expected = {0: 0.05, 11_000: 0.0255, 22_000: 0.001, 23_999: 0.001, 24_000: 0.05, 35_000: 0.0255, 24_000 * 99: 0.05}
    assert {crop: level(crop) for crop in expected} == pytest.approx(expected)
    batch = levels.noise_levels(23_998, 4, np.random.default_rng(0))
    np.testing.assert_allclose(batch, [0.001, 0.001, 0.05, 0.05 - 0.049 / 22_000])


def test_antithetic_level_is_log_uniform():
    objective = objectives.AntitheticARDAE(0.05, 0.01)
    levels = objective.noise_levels(0, 100_000, np.random.default_rng(0))
    assert levels.shape == (100_000,) and 0.01 <= levels.min() < 0.0101 and 0.0499 < levels.max() <= 0.05
    quantiles = np.quantile(levels, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quantiles, 0.01 * 5 ** np.array([0.25, 0.5, 0.75]), rtol=0.01)


@NAMES
@pytest.mark.parametrize(
    ("s_max", "s_min"),
    [(0.01, 0.05), (0.05, 0.0), (0.05, -0.01), (float("nan"), 0.01), (0.05, float("nan")), (float("inf"), 0.01)],
)
def test_bad_range_is_refused(refused, name, s_max, s_min):
    with refused(f"s_min = {s_min}", f"s_max = {s_max}"):
        _make(name, s_max, s_min)


@pytest.mark.parametrize("name", TWINS)
def test_twins_refuse_a_range_of_s_a(refused, name):
    with refused("s_max = 0.05", name):
        _make(name, 0.05, 0.01)


@pytest.mark.parametrize("name", GR2R)
@pytest.mark.parametrize(("s_max", "s_min"), [(0, 0), (0.5, 0), (0, 0.5), (0.1, 0.5), (float("inf"), 0.5)])
def test_two_from_one_refuse_a_bad_range_of_s_a(refused, name, s_max, s_min):
    with refused(f"s_min = {s_min}, s_max = {s_max}"):
        _make(name, s_max, s_min)


@pytest.mark.parametrize("name", GR2R)
def test_two_from_one_refuse_noise_that_does_not_bear_it(refused, name):
    with refused("poisson-gaussian"):
        _make(name, 2, 0.3, noise.PoissonGaussian(0.01, 10.0))
    with refused("Gamma", "s_max = 8"):
        _make(name, 8, 0.3, noise.Gamma(50.0))


def test_levels_of_two_from_one_are_log_uniform_up_to_what_each_crop_bears():
    objective = _make("gr2r", 4.0, 0.5)
    for most, top in ((np.inf, 4.0), (2.0, 2.0), (0.1, 0.5)):
        levels = objective.noise_levels(np.full(100_000, most), np.random.default_rng(0))
        np.testing.assert_allclose(np.quantile(levels, [0, 0.25, 0.5, 1]), 0.5 * (top / 0.5) ** np.array([0, 0.25, 0.5, 1]), rtol=0.02)


def test_noisiest_levels_reach_the_noisiest_of_one_model_and_are_refused_elsewhere(refused):
    source = Mixture(sigma=(5.0, 50.0))
    objective = _make("gr2r", 12, 0.2, source, noisiest=True)
    models = [source.of("some set", str(image)) for image in range(40)]
    levels = objective.noise_levels(np.sqrt(np.array([source.headroom(model) for model in models]) - 1), np.random.default_rng(0))
    told = [noisier(model, level).sigma for model, level in zip(models, levels, strict=True)]
    # A picture as noisy as that already is made noisier by s_min all the same.
    assert min(told) == pytest.approx(50) and max(told) <= 50 * 1.04**0.5
    for name, other in (("gr2r", GAUSSIAN), ("antithetic", source), ("gr2r", Mixture((5.0, 50.0), (0.003, 0.1), (20.0, 150.0)))):
        with refused("noisiest = true", "one range"):
            _make(name, 12, 0.2, other, noisiest=True)
    with refused("s_max = 9", "give 9.95 or more"):
        _make("gr2r", 9, 0.2, source, noisiest=True)


@pytest.mark.parametrize("model", [GAUSSIAN, noise.Poisson(0.05), noise.Gamma(20.0)], ids=lambda model: model.name)
def test_a_pair_counts_the_less_the_noisier_its_target_is_and_by_the_noise_of_the_input_alone(model):
    clean, other, _ = _crops()
    c = model.coordinate(torch.from_numpy(model.sample(clean.numpy(), np.random.default_rng(0)).astype(np.float64)))
    s_a = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).view(-1, 1, 1, 1)
    weights = []
    for target in (clean, 3 * other.abs()):
        objective, error = _make("gr2r", 4.0, 0.5, model), (model.regression_mean(c, 0 * c) - target).square().mean((1, 2, 3))
        losses = [objective.loss(torch.zeros_like, c[i : i + 1], target[i : i + 1], model, s_a[i : i + 1]) for i in range(len(c))]
        weights.append(torch.stack(losses) / error)
    torch.testing.assert_close(weights[0], weights[1])  # whatever the target
    levels = s_a.flatten() ** 2
    variances = torch.stack([model.variance(x).mean() for x in clean])
    torch.testing.assert_close(weights[0] * DEVIATION**2 * variances, levels / (1 + levels), rtol=0.3, atol=0)


@pytest.mark.parametrize("s_a", [0.5, 2.0])
def test_two_from_one_is_least_at_the_posterior_mean_of_the_noisier(s_a):
    """Of Gaussian data x ~ N(0, tau^2), y = x + n of deviation 1: the score of v, in units of its own noise, is -a v."""
    tau, model = 0.7, noise.Gaussian(255.0)
    generator = torch.Generator().manual_seed(0)
    x = tau * torch.randn(4000, 1, 16, 16, generator=generator, dtype=torch.float64)
    y = x + torch.randn(x.shape, generator=generator, dtype=torch.float64)
    levels = torch.full((4000, 1, 1, 1), s_a, dtype=torch.float64)
    first, second = recorrupt(y, PerCrop([model] * 4000), levels, seed=1)
    told = noisier(model, s_a)
    a = told.std**2 / (tau**2 + told.std**2)
    assert _optimum(_make("gr2r", 4.0, 0.5), (told.coordinate(first), second, told, levels), a) == pytest.approx(1, abs=0.02)


def test_recorrupted_to_recorrupted_refuses_other_noise(refused):
    for model in VARIANCES:
        with refused("r2r", "gaussian"):
            _make("r2r", 0.5, 0.1, model)


@pytest.mark.parametrize(("field", "value"), [("cycle", 0), ("draws", 0), ("draws", -1)])
def test_bad_counts_are_refused(refused, field, value):
    with refused(f"{field} = {value}"):
        _make("ar-dae", 0.5, 0.1, **{field: value})


def test_unknown_objective_is_refused(refused):
    with refused("'n2v'", "ar-dae", "antithetic"):
        _make("n2v", 0.5, 0.1)


def _crops():
    generator = torch.Generator().manual_seed(0)
    c, u = torch.rand(2, 3, 2, 12, 12, generator=generator, dtype=torch.float64)
    return c, 2 * u - 1, torch.tensor([0.01, 0.03, 0.1], dtype=torch.float64).view(-1, 1, 1, 1)


def _network():
    """Smooth and non-linear."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 6, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(6, 2, 3, padding=1)).double()
