"""Two pictures from one: their means, variances and independence, and what makes one of the other on conjugate examples."""

import numpy as np
import pytest
import torch
from scipy import stats

from n2s_utils import noise
from n2s_utils.mixture import Mixture, PerCrop
from n2s_utils.noise import Gamma, Gaussian, Poisson, PoissonGaussian
from n2s_utils.recorruption import check_levels, noisier, recorrupt

MODELS = [Gaussian(20.0), Poisson(0.02), Gamma(60.0)]
EACH = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
LEVELS = pytest.mark.parametrize("s_a", [0.4, 1.5])


def _pair(model: noise.Model, x: np.ndarray, s_a: float, seed: int = 0):
    """The two pictures of noisy x (n,), as arrays (n,)."""
    y = torch.from_numpy(model.sample(x, noise.rng("recorruption", model.name))).view(1, 1, 1, -1)
    pair = recorrupt(y, PerCrop([model]), torch.full((1, 1, 1, 1), s_a), seed)
    return [picture.flatten().numpy().astype(float) for picture in pair]


@EACH
@LEVELS
def test_both_have_the_mean_of_the_picture_and_the_variance_that_is_promised(model, s_a):
    x, f = np.full(400_000, 0.6), 1 + s_a**2
    first, second = _pair(model, x, s_a)
    variance = float(model.variance(x[:1])[0])
    for picture, times in ((first, f), (second, f / s_a**2)):
        assert picture.mean() == pytest.approx(0.6, abs=4 * (times * variance / len(x)) ** 0.5)
        assert picture.var() == pytest.approx(times * variance, rel=0.01)
    assert float(noisier(model, s_a).variance(x[:1])[0]) == pytest.approx(f * variance)


@EACH
@LEVELS
def test_the_first_has_the_noise_of_the_noisier_model(model, s_a):
    x = np.full(50_000, 0.3)
    first = _pair(model, x, s_a)[0]
    made = noisier(model, s_a)
    other = made.sample(x, np.random.default_rng(1)).astype(float)
    if isinstance(made, Poisson):  # a lattice, on which ranks tie but for rounding
        first, other = ((picture / made.zeta).round() for picture in (first, other))
    assert stats.ks_2samp(first, other).pvalue > 1e-3


@EACH
@LEVELS
def test_they_are_independent_given_the_picture(model, s_a):
    first, second = _pair(model, np.full(400_000, 0.6), s_a)
    for transform in (np.asarray, lambda picture: (picture - 0.6) ** 2):
        assert abs(np.corrcoef(transform(first), transform(second))[0, 1]) < 4 / len(first) ** 0.5


CONJUGATE = {  # of the noisier model: a sampler of x, and the slope and constant of E[x | y_1]
    "gaussian": (
        lambda rng, n: 0.5 + 0.1 * rng.standard_normal(n),
        lambda model: (0.01 / (0.01 + model.std**2), 0.5 * model.std**2 / (0.01 + model.std**2)),
    ),
    "poisson": (lambda rng, n: rng.gamma(4, 0.1, n), lambda model: (0.1 / (0.1 + model.zeta), 0.4 * model.zeta / (0.1 + model.zeta))),
    "gamma": (lambda rng, n: 0.5 * 9 / rng.gamma(10, 1, n), lambda model: (model.k / (model.k + 9), 4.5 / (model.k + 9))),
}


@EACH
def test_what_makes_the_second_of_the_first_is_the_posterior_mean(model):
    """On a conjugate prior that is a straight line, which least squares find."""
    prior, line = CONJUGATE[model.name]
    first, second = _pair(model, prior(np.random.default_rng(0), 400_000), 1.0)
    np.testing.assert_allclose(np.polyfit(first, second, 1), line(noisier(model, 1.0)), rtol=0.02)


def test_crops_are_recorrupted_each_by_its_own_noise_and_level():
    y, s_a = torch.full((3, 1, 64, 64), 0.6), torch.tensor([0.5, 1.0, 2.0]).view(-1, 1, 1, 1)
    first, _ = recorrupt(y, PerCrop([Poisson(0.02), Gaussian(20.0), Poisson(0.02)]), s_a, 0)
    # Of a picture that is known only the noise that was added is left: s_a^2 times that of the model.
    for crop, variance in zip(first, (0.25 * 0.012, (20 / 255) ** 2, 4 * 0.012), strict=True):
        assert crop.var().item() == pytest.approx(variance, rel=0.1)


def test_the_random_numbers_are_those_of_the_seed_and_no_others_are_used():
    y, s_a = torch.rand(3, 1, 8, 8), torch.ones(3, 1, 1, 1)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    pairs = [recorrupt((y / 0.02).round() * 0.02, PerCrop(MODELS), s_a, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(2), expected)
    for same, again, other in zip(*pairs, strict=True):
        assert torch.equal(same, again) and not torch.equal(same, other)


def test_noise_of_which_no_pair_is_known_is_refused(refused):
    with refused("poisson-gaussian", "another objective"):
        check_levels(PoissonGaussian(0.01, 10.0), 0.2, 2)


@pytest.mark.parametrize("source", [Gamma(50.0), Mixture((5.0, 60.0), (0.003, 0.1), (1.03, 150.0))], ids=["one", "mixture"])
def test_levels_that_leave_gamma_noise_no_shape_are_refused(refused, source):
    with refused("s_min = 0.2, s_max = 8", "Gamma", "larger k"):
        check_levels(source, 0.2, 8)
    check_levels(source, 0.1, 6)
    check_levels(Poisson(0.1), 0.2, 80)
