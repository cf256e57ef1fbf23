"""Noise that differs from picture to picture: what each picture gets, and batches of crops that each have their own."""

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import tiny

from n2s_utils import noise, objectives
from n2s_utils.feed import Feed
from n2s_utils.mixture import Mixture, PerCrop, from_table

TABLE = {"model": "mixture", "sigma": [5, 60], "zeta": [0.003, 0.1], "k": [20, 150]}
MIXTURE = Mixture((5.0, 60.0), (0.003, 0.1), (20.0, 150.0))
MODELS = [noise.Gaussian(10.0), noise.Poisson(0.05), noise.Gamma(50.0)]


def test_pictures_get_each_model_alike_and_parameters_log_uniformly():
    models = [MIXTURE.of("some set", str(image)) for image in range(3000)]
    counts = Counter(model.name for model in models)
    assert set(counts) == {"gaussian", "poisson", "gamma"} and min(counts.values()) > 900
    for name, (low, high) in zip(("gaussian", "poisson", "gamma"), MIXTURE.ranges.values(), strict=True):
        places = np.log([model.parameter / low for model in models if model.name == name]) / np.log(high / low)
        assert 0 <= places.min() < 0.02 and 0.98 < places.max() <= 1
        np.testing.assert_allclose(np.quantile(places, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.05)


def test_the_noise_of_a_picture_is_a_function_of_set_and_name():
    assert MIXTURE.of("a", "1") == MIXTURE.of("a", "1")
    assert len({MIXTURE.of(dataset, image) for dataset in "ab" for image in "12"}) == 4


def test_a_table_makes_a_mixture_or_one_model():
    assert from_table(TABLE) == MIXTURE
    assert from_table({"model": "gamma", "k": 50.0}) == noise.Gamma(50.0)
    assert from_table({"model": MIXTURE.name} | MIXTURE.parameters) == MIXTURE
    one = from_table({"model": "mixture", "sigma": [5, 50]})
    assert one == Mixture((5.0, 50.0)) and from_table({"model": "mixture"} | one.parameters) == one


@pytest.mark.parametrize(
    ("mixture", "noisiest"),
    [
        (Mixture(sigma=(5.0, 50.0)), noise.Gaussian(50.0)),
        (Mixture(zeta=(0.003, 0.1)), noise.Poisson(0.1)),
        (Mixture(k=(20.0, 150.0)), noise.Gamma(20.0)),
    ],
)
def test_a_mixture_of_one_model_has_levels_up_to_the_noisiest(mixture, noisiest):
    models = [mixture.of("some set", str(image)) for image in range(300)]
    assert mixture.ends[1] == noisiest and {type(model) for model in models} == {type(noisiest)}
    assert 1 <= min(map(mixture.headroom, models)) < 1.1 < max(map(mixture.headroom, models)) <= mixture.headroom(mixture.ends[0])
    other = noise.Gamma(50.0) if mixture.sigma else noise.Gaussian(20.0)
    assert not mixture.misses(noisiest) and "lies outside noise of" in mixture.misses(other)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"sigma": 25}, "[lowest, highest]"),
        ({"zeta": [0.1]}, "[lowest, highest]"),
        ({"k": [150, 20]}, "k = [150.0, 20.0]: give the lower end first"),
        ({"k": [1, 20]}, "k = 1.0"),
        ({"sigma": [0, 20]}, "sigma = 0"),
        ({"gain": [1, 2]}, "'gain'"),
    ],
)
def test_a_table_of_no_mixture_is_refused(refused, change, part):
    with refused(part):
        from_table(TABLE | change)
    with refused("sigma, zeta, k, or some of them"):
        from_table({"model": "mixture"})


@pytest.mark.parametrize(("model", "times"), [(noise.Gaussian(20.0), 9), (noise.Poisson(0.02), 5), (noise.Gamma(60.0), 3)])
def test_headroom_is_how_many_times_the_variance_may_grow(model, times):
    assert MIXTURE.headroom(model) == pytest.approx(times)


def test_what_a_mixture_misses_is_named():
    for model in (noise.Gaussian(17.0), noise.Poisson(0.1), noise.Gamma(20.0), noise.PoissonGaussian(0.01, 2.0)):
        assert not MIXTURE.misses(model)
    assert MIXTURE.misses(noise.Gaussian(75.0)) == "sigma 75 lies outside 5 to 60"
    assert MIXTURE.misses(noise.PoissonGaussian(0.2, 70.0)) == "zeta 0.2 lies outside 0.003 to 0.1 and sigma 70 lies outside 5 to 60"


@pytest.mark.parametrize("times", [1, 2])
def test_every_crop_of_a_batch_has_its_own_noise(times):
    mixed = PerCrop(MODELS)
    x = 0.2 + 0.7 * torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(0)).repeat(times, 1, 1, 1)
    c, score = mixed.coordinate(x), -0.3 * torch.ones_like(x)
    for crop, model in enumerate(MODELS * times):
        one = slice(crop, crop + 1)
        for name, values in {
            "variance": (x,),
            "coordinate": (x,),
            "stabilise": (c,),
            "slope": (c,),
            "curvature": (c,),
            "skewness": (c,),
            "regression_mean": (c, score),
        }.items():
            torch.testing.assert_close(
                getattr(mixed, name)(*values)[one], getattr(model, name)(*(value[one] for value in values)), msg=name
            )


def test_every_crop_is_sampled_by_its_own_model():
    x = np.full((3, 1, 200, 200), 0.5, np.float32)
    deviations = PerCrop(MODELS).sample(x, np.random.default_rng(0)).std((1, 2, 3))
    np.testing.assert_allclose(deviations, [10 / 255, (0.05 * 0.5) ** 0.5, 0.5 / 50**0.5], rtol=0.02)


def _feed(**changes) -> Feed:
    config = tiny(noise=TABLE, **changes)
    objective = objectives.make(config.objective, config.noise, config.network.deviation)
    return Feed(config.data, config.noise, objective, config.optimisation.crop, config.objective)


def test_a_feed_says_the_noise_of_its_crops(tiny_sets):
    feed = _feed(crop=32)
    assert feed.names == ["a", "b"]
    expected = {name: MIXTURE.of("tiny", name) for name in feed.names}
    cuts = {name: feed.noisy("tiny", 0)[name] for name in feed.names}
    for step in range(6):
        c, model = feed.batch(0, step, 1)[0], feed.noise_of(0, step, 1).models[0]
        [name] = [name for name, other in expected.items() if other == model]
        values = set(model.coordinate(cuts[name]).flat)
        assert set(c.numpy().flat) <= values
    assert [feed.noise_of(0, 3, 4, slice(2, 4)).models] == [feed.noise_of(0, 3, 4).models[2:]]
    assert feed.held_out_noise.models == [MIXTURE.of("tiny-held-out", "c")] * len(feed.held_out[0])


def test_crops_with_counts_have_an_s_a_of_their_own(tiny_sets, monkeypatch):
    monkeypatch.setattr(Mixture, "of", lambda self, dataset, image: MODELS["ab".find(image)])
    feed = _feed(s_counts=0.75, crop=32)
    levels, models = feed.batch(0, 0, 16)[2].flatten().tolist(), feed.noise_of(0, 0, 16).models
    assert {model.name for model in models} == {"gaussian", "poisson"}
    for level, model in zip(levels, models, strict=True):
        assert level == 0.75 if model.name == "poisson" else 0.1 <= level <= 0.5
