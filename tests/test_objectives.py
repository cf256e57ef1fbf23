"""The losses against closed forms: Gaussian data and a linear network R(y) = -a y, where the score is known."""

import inspect
import math

import numpy as np
import pytest
import torch

from n2s_utils import objectives

STD = 0.5
TWINS = ["supervised", "noise2noise"]
NAMES = pytest.mark.parametrize("name", [name for name in objectives.OBJECTIVES if name not in TWINS])


def _gaussian_batch(tau: float, s_a: float, objective, crops: int = 4000):
    generator = torch.Generator().manual_seed(0)
    y = tau * torch.randn(crops, 1, 16, 16, generator=generator, dtype=torch.float64)
    return y, objective.probe(y, generator), torch.full((crops, 1, 1, 1), s_a, dtype=torch.float64)


@NAMES
@pytest.mark.parametrize(("tau", "s_a"), [(1.0, 0.3), (0.5, 0.5), (0.3, 0.05)])
def test_gradient_vanishes_at_the_score_of_the_smoothed_density(name, tau, s_a):
    """y + s_a u is N(0, tau^2 + s_a^2), so the optimum is a = 1 / (tau^2 + s_a^2)."""
    objective = objectives.make(name, s_a, s_a, STD)
    batch = _gaussian_batch(tau, s_a, objective)
    optimum = 1 / (tau**2 + s_a**2)

    def gradient(value):
        a = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        objective.loss(lambda v: -a * v, *batch).backward()
        return a.grad.item()

    # The loss is quadratic in a, so its gradient is a line and two points give the sample's own optimum.
    low, high = gradient(0.9 * optimum), gradient(1.1 * optimum)
    assert low < 0 < high
    assert 0.9 - 0.2 * low / (high - low) == pytest.approx(1, abs=0.01 if name.startswith("antithetic") else 0.02)


@NAMES
def test_value_on_gaussian_data(name):
    """Per pixel, with R = -a y: (1 - a s^2)^2 + a^2 s^2 tau^2, and a^2 (tau^2 + s^2) - 2 a."""
    tau, s_a, a = 0.8, 0.4, 0.7
    objective = objectives.make(name, s_a, s_a, STD)
    loss = objective.loss(lambda v: -a * v, *_gaussian_batch(tau, s_a, objective)).item()
    plain, antithetic = (1 - a * s_a**2) ** 2 + (a * s_a * tau) ** 2, a**2 * (tau**2 + s_a**2) - 2 * a
    weight = ((STD**2 + s_a**2) / s_a) ** 2 if name == "r2r" else 1
    assert loss == pytest.approx(antithetic if name.startswith("antithetic") else weight * plain, rel=0.01)


def test_r2r_is_ar_dae_weighted_to_image_units():
    y, u, s_a = _crops()
    for level in s_a:
        s = level.expand(len(y), 1, 1, 1)
        weight = ((STD**2 + level.item() ** 2) / level.item()) ** 2
        r2r = objectives.R2R(std=STD).loss(_network(), y, u, s)
        torch.testing.assert_close(r2r, weight * objectives.LogUniformARDAE().loss(_network(), y, u, s), rtol=1e-9, atol=0)


def test_two_draws_are_the_mean_of_two_losses():
    """What draws = 2 of a training configuration does: the batch repeated, with other u."""
    (y, u, s_a), other = _crops(), _crops()[1].flip(0)
    loss, network = objectives.ARDAE().loss, _network()
    both = loss(network, y.repeat(2, 1, 1, 1), torch.cat([u, other]), s_a.repeat(2, 1, 1, 1))
    torch.testing.assert_close(both, (loss(network, y, u, s_a) + loss(network, y, other, s_a)) / 2)


@pytest.mark.parametrize("name", TWINS)
def test_regression_is_the_squared_error_of_the_tweedie_step(name):
    y, target, _ = _crops()
    network = _network()
    expected = (y + STD**2 * network(y) - target).square().mean() / STD**4
    torch.testing.assert_close(objectives.make(name, 0, 0, STD).loss(network, y, target), expected)


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
    """A linear shrinkage of noisy N(0, 1) images: x = (1 - a std^2) y against the truth."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(64, 1, 64, 64, generator=generator, dtype=torch.float64)
    y = clean + STD * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    for a in (0.3, 0.8, 2.0):
        error = (y - STD**2 * a * y - clean).square().mean().item()
        estimate = objectives.sure(lambda v, a=a: -a * v, y, STD, torch.Generator().manual_seed(1))
        assert estimate == pytest.approx(error, rel=0.01)


def test_antithetic_is_the_mean_of_the_plain_losses_over_both_signs():
    y, u, s_a = _crops()
    s_a = torch.full_like(s_a, 0.07)
    plain, antithetic = objectives.ARDAE(), objectives.AntitheticARDAE()
    network = _network()
    mean = (plain.loss(network, y, u, s_a) + plain.loss(network, y, -u, s_a)) / 2
    expected = mean / 0.07**2 - u.square().mean() / 0.07**2
    torch.testing.assert_close(antithetic.loss(network, y, u, s_a), expected, rtol=1e-10, atol=0)


def test_antithetic_treats_every_crop_by_its_own_level():
    y, u, s_a = _crops()
    objective, network = objectives.AntitheticARDAE(), _network()
    apart = [objective.loss(network, *(part[i : i + 1] for part in (y, u, s_a))) for i in range(len(y))]
    torch.testing.assert_close(objective.loss(network, y, u, s_a), torch.stack(apart).mean())
    apart = [objectives.ARDAE().loss(network, *(part[i : i + 1] for part in (y, u, s_a))) for i in range(len(y))]
    torch.testing.assert_close(objectives.ARDAE().loss(network, y, u, s_a), torch.stack(apart).mean())


def test_antithetic_gradient_stays_bounded_as_s_a_falls():
    """With a smooth network; the plain loss divided by s_a^2 carries a term of deviation 1 / s_a."""
    network, y = _network(), _crops()[0]
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(y.shape, generator=generator, dtype=torch.float64) for _ in range(200)]

    def deviation(objective, s_a, scale):
        level = torch.full((len(y), 1, 1, 1), s_a, dtype=torch.float64)
        gradients = []
        for u in draws:
            network.zero_grad()
            objective.loss(network, y, u, level).backward()
            gradients.append(network[0].weight.grad.flatten() * scale)
        return torch.stack(gradients).std(0).norm().item()

    coarse, fine = 0.1, 0.001
    plain = [deviation(objectives.ARDAE(), s, 1 / s**2) for s in (coarse, fine)]
    antithetic = [deviation(objectives.AntitheticARDAE(), s, 1.0) for s in (coarse, fine)]
    assert plain[1] / plain[0] > 0.5 * coarse / fine
    assert antithetic[1] / antithetic[0] < 1.5


@NAMES
def test_losses_are_pure(name):
    objective, network, batch = objectives.make(name, 0.05, 0.01, STD), _network(), _crops()
    before = [part.clone() for part in batch]
    first = objective.loss(network, *batch)
    torch.manual_seed(99)
    assert objective.loss(network, *batch) == first
    assert all(torch.equal(part, copy) for part, copy in zip(batch, before, strict=True))


@NAMES
def test_objectives_are_given_noisy_tensors_only(name):
    objective = objectives.make(name, 0.05, 0.01, STD)
    assert objective.needs == "noisy"
    assert list(inspect.signature(objective.loss).parameters) == ["model", "y", "u", "s_a"]


def test_twins_declare_what_more_they_need():
    assert {name: objectives.make(name, 0, 0, STD).needs for name in TWINS} == {"supervised": "clean", "noise2noise": "pair"}


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
        objectives.make(name, s_max, s_min, STD)


@pytest.mark.parametrize("name", TWINS)
def test_twins_refuse_a_range_of_s_a(refused, name):
    with refused("s_max = 0.05", name):
        objectives.make(name, 0.05, 0.01, STD)


@pytest.mark.parametrize("name", ["r2r", *TWINS])
def test_objectives_for_gaussian_noise_refuse_other_noise(refused, name):
    with refused(name, "gaussian"):
        objectives.make(name, 0.05, 0.01, math.nan)


def test_unknown_objective_is_refused(refused):
    with refused("'n2v'", "ar-dae", "antithetic"):
        objectives.make("n2v", 0.05, 0.01)


def _crops():
    generator = torch.Generator().manual_seed(0)
    y, u = torch.rand(2, 3, 2, 12, 12, generator=generator, dtype=torch.float64)
    return y, 2 * u - 1, torch.tensor([0.01, 0.03, 0.1], dtype=torch.float64).view(-1, 1, 1, 1)


def _network():
    """Smooth and non-linear."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 6, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(6, 2, 3, padding=1)).double()
