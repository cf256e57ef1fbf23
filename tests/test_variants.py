"""Variants of the noise: the same noise and the same reading of the same score, in another coordinate; other shares."""

from collections import Counter

import numpy as np
import pytest
from conftest import tiny

from n2s_utils import estimation, noise, objectives
from n2s_utils.cli import InputError
from n2s_utils.mixture import Mixture
from n2s_utils.noise import Gamma, Gaussian, Poisson
from n2s_utils.report.faults import Faults, FaultyFeed
from n2s_utils.report.variants import VARIANTS, varied, varied_model

MIXTURE = Mixture(sigma=(5, 60), zeta=(0.003, 0.1), k=(20, 150))
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("variant", ["gamma-eps-1", "gamma-eps-16", "gamma-in-y"])
def test_a_gamma_score_reads_alike_in_every_coordinate(variant):
    plain, other = Gamma(50.0), varied_model(Gamma(50.0), variant)
    y, score_of_y = RNG.uniform(0.05, 1, 100), RNG.normal(0, 5, 100)

    def posterior_mean(model):
        """c = f(y), so l_y = f' l_c + (log f')', f' and the last by central differences."""
        h = 1e-4
        low, middle, high = (model.coordinate(y + shift) for shift in (-h, 0, h))
        first, curvature = (high - low) / (2 * h), (np.log(high - middle) - np.log(middle - low)) / h
        return model.posterior_mean(middle, (score_of_y - curvature) / first)

    np.testing.assert_allclose(posterior_mean(other), posterior_mean(plain), rtol=1e-3)
    np.testing.assert_allclose(posterior_mean(other), 50 * y / (49 - y * score_of_y), rtol=1e-3)


def test_a_score_of_stabilised_counts_reads_as_that_of_counts():
    plain, other = Poisson(0.02), varied_model(Poisson(0.02), "poisson-stabilised")
    counts, score = RNG.integers(0, 30, 100).astype(float), RNG.normal(0, 0.5, 100)
    z = other.coordinate(0.02 * counts)
    np.testing.assert_allclose(z, 2 * np.sqrt(counts + 3 / 8))
    w, p = z / 2, 2 + counts / 6
    lit = w**2 * (1 + score / (w * p)) ** p > 3 / 8  # not below black
    expected = plain.zeta * (w**2 * (1 + score / (w * p)) ** p - 1 / 8)
    np.testing.assert_allclose(other.posterior_mean(z, score)[lit], expected[lit])
    assert lit.mean() > 0.5
    assert (other.slope(z) == 1).all() and (other.curvature(z) == 0).all() and (other.stabilise(z) == z).all()


def test_a_variant_changes_coordinates_and_not_the_noise():
    plain, other = Gamma(50.0), varied(Gamma(50.0), "gamma-in-y")
    x = RNG.uniform(0, 1, (8, 8, 3))
    assert np.array_equal(noise.realization(x, plain, "s", "i", 0), noise.realization(x, other, "s", "i", 0))
    assert varied_model(Gaussian(25.0), "gamma-in-y") == Gaussian(25.0)
    names = [str(number) for number in range(50)]
    for variant in VARIANTS.keys() - {"gaussian-half", "levels-estimated"}:
        mixed = varied(MIXTURE, variant)
        assert mixed.ranges == MIXTURE.ranges
        assert [mixed.of("s", name) for name in names] == [varied_model(MIXTURE.of("s", name), variant) for name in names]


def test_half_of_the_pictures_are_gaussian_where_asked():
    mixed = varied(MIXTURE, "gaussian-half")
    models = [mixed.of("s", str(number)) for number in range(2000)]
    shares = Counter(type(model) for model in models)
    assert shares[Gaussian] / 2000 == pytest.approx(1 / 2, abs=0.04)
    assert shares[Poisson] / 2000 == pytest.approx(1 / 4, abs=0.04)
    assert not any(MIXTURE.misses(model) for model in models)
    assert models[7] == mixed.of("s", "7")


def test_a_feed_has_its_variant(tiny_sets):
    config = tiny(noise={"model": "gamma", "k": 50})
    objective = objectives.make(config.objective, config.noise, config.network.deviation)
    arguments = config.data, config.noise, objective, config.optimisation.crop, config.objective
    plain, other = FaultyFeed(*arguments, faults=Faults()), FaultyFeed(*arguments, faults=Faults(), variant="gamma-eps-16")
    assert {type(model) for model in plain.models} == {Gamma}
    assert {type(model) for model in other.models} == {VARIANTS["gamma-eps-16"][Gamma]}
    assert plain.sha256 != other.sha256


def test_an_unknown_variant_is_refused():
    with pytest.raises(InputError, match="unknown variant 'x'; known: gamma-eps-1, "):
        varied(MIXTURE, "x")


def test_estimated_levels_replace_those_of_the_training_pictures_and_not_their_noise(tiny_sets, monkeypatch):
    monkeypatch.setattr(estimation, "LEAST", 200)  # the pictures are tiny
    config = tiny(noise={"model": "mixture", "sigma": [20, 30], "zeta": [0.02, 0.03], "k": [40, 60]})
    objective = objectives.make(config.objective, config.noise, 0.1)
    arguments = (config.data, config.noise, objective, 32, config.objective)
    told, guessed = (FaultyFeed(*arguments, faults=Faults(), variant=variant) for variant in ("", "levels-estimated"))
    for name, true, found in zip(told.names, told.models, guessed.models, strict=True):
        assert type(found) is type(true) and found != true
        y = guessed.noisy("tiny", 0)[name]
        assert np.array_equal(y, told.noisy("tiny", 0)[name]) and found == estimation.estimate(y, true.name)
    assert guessed.sha256 != told.sha256  # c is taken with what was found
