"""What a training step is handed: noisy crops in their coordinate, and beside them what the objective asks for."""

import math

import numpy as np
import pytest
import torch
from conftest import GAMMA, PAIR, POISSON, POISSON_GAUSSIAN, TINY, TWIN, tiny

from n2s_utils import datasets, feed, noise, objectives
from n2s_utils.feed import Feed
from n2s_utils.mixture import PerCrop

GAUSSIAN = noise.Gaussian(25.0)
STD = GAUSSIAN.std
PAIRS = {"objective": PAIR, "second_seed": 1}
LEVELS = {"s_max": 3.0, "s_min": 0.5}
RECORRUPTED = {"objective": {"name": "gr2r"} | LEVELS}
MIXTURE = {"model": "mixture", "sigma": [5, 60], "zeta": [0.003, 0.1], "k": [20, 150]}


def _feed(**changes) -> Feed:
    config = tiny(**changes)
    objective = objectives.make(config.objective, config.noise, config.network.deviation)
    return Feed(config.data, config.noise, objective, config.optimisation.crop, config.objective)


def _coordinates(pictures: dict, model=GAUSSIAN) -> dict:
    return {name: model.coordinate(y) for name, y in pictures.items()}


def _crops_of(pictures: dict, batches: list) -> bool:
    """Whether every crop (side 32) of the batches is a flipped, turned cut-out of one of the pictures."""
    cuts = set()
    for picture in pictures.values():
        for top, left in np.ndindex(picture.shape[0] - 31, picture.shape[1] - 31):
            cut = picture[top : top + 32, left : left + 32]
            cuts |= {np.rot90(side, turns).tobytes() for side in (cut, cut[:, ::-1]) for turns in range(4)}
    return all(np.ascontiguousarray(crop.permute(1, 2, 0).numpy()).tobytes() in cuts for batch in batches for crop in batch)


def _picture(model, c: torch.Tensor) -> torch.Tensor:
    """The picture of that coordinate."""
    if isinstance(model, noise.Gamma):
        return model.eps * torch.expm1(c / model.k**0.5)
    return (model.zeta if isinstance(model, noise.Poisson) else model.std) * c


@pytest.mark.parametrize("name", objectives.SCORE_MATCHING)
def test_self_supervised_training_is_handed_noisy_crops_only(tiny_sets, name):
    noisy = _coordinates(datasets.noisy_pictures("tiny", GAUSSIAN, 0))
    ours = _feed(objective={"name": name})
    batches = [ours.batch(0, step, 1) for step in range(8)]
    assert _crops_of(noisy, [c for c, _, _ in batches])
    assert all(u.abs().mean() > 0.2 and s_a.numel() == 1 for _, u, s_a in batches)
    assert ours.targets is None and len(ours.batch(0, 0, 1)) == 3


@pytest.mark.parametrize("changes", [{"objective": TWIN}, PAIRS], ids=["supervised", "noise2noise"])
def test_twins_compare_the_fixed_noisy_crops_with_their_targets(tiny_sets, changes):
    ours = _feed(**changes)
    batches = [ours.batch(0, step, 1) for step in range(8)]
    targets = datasets.noisy_pictures("tiny", GAUSSIAN, 1) if changes is PAIRS else dict(datasets.load("tiny"))
    assert _crops_of(_coordinates(datasets.noisy_pictures("tiny", GAUSSIAN, 0)), [c for c, _ in batches])
    assert _crops_of(targets, [target for _, target in batches])
    # The same place in both: what differs is the noise, of one image or of two.
    spread = (math.sqrt(2) if changes is PAIRS else 1) * STD
    assert torch.cat([STD * c - target for c, target in batches]).std().item() == pytest.approx(spread, rel=0.03)


@pytest.mark.parametrize("table", [POISSON, GAMMA, POISSON_GAUSSIAN], ids=lambda table: table["model"])
def test_every_noise_is_handed_on_in_its_coordinate_and_targets_as_pictures(tiny_sets, table):
    model = noise.from_table(table)
    for changes, pictures in (({"objective": TWIN}, dict(datasets.load("tiny"))), (PAIRS, datasets.noisy_pictures("tiny", model, 1))):
        ours = _feed(noise=table, **changes)
        batches = [ours.batch(0, step, 1) for step in range(3)]
        assert _crops_of(_coordinates(datasets.noisy_pictures("tiny", model, 0), model), [c for c, _ in batches])
        assert _crops_of(pictures, [target for _, target in batches])


def test_fresh_noise_differs_at_every_step(tiny_sets):
    ours = _feed(dataset="tiny-one", fresh_noise=True, objective=TWIN)
    batches = [ours.batch(0, step, 1) for step in range(8)]
    noises = torch.cat([STD * c - clean for c, clean in batches]).flatten(1)
    assert noises.std().item() == pytest.approx(STD, rel=0.03)
    assert torch.corrcoef(noises).fill_diagonal_(0).abs().max() < 0.2
    assert _crops_of(dict(datasets.load("tiny-one")), [clean for _, clean in batches])
    pair = _feed(dataset="tiny-one", fresh_noise=True, **PAIRS)
    c, second = pair.batch(0, 3, 1)
    assert (STD * c - second).std().item() == pytest.approx(math.sqrt(2) * STD, rel=0.1)
    assert not torch.equal(second, pair.batch(0, 4, 1)[1])


@pytest.mark.parametrize("table", [TINY["noise"], POISSON, GAMMA], ids=lambda table: table["model"])
def test_recorrupted_crops_are_made_of_the_fixed_noisy_ones(tiny_sets, table):
    """y = (y_1 + s_a^2 y_2) / (1 + s_a^2), for every model."""
    ours, noisy = _feed(noise=table, **RECORRUPTED), datasets.noisy_pictures("tiny", noise.from_table(table), 0)
    for step in range(6):
        c, target, s_a = ours.batch(0, step, 2)
        (first, second), spread = ours.noise_of(0, step, 2).models, s_a.flatten().tolist()
        assert first != second and all(0.5 <= level <= 3 for level in spread)
        y_1 = torch.stack([_picture(model, crop) for model, crop in zip((first, second), c, strict=True)])
        y = ours.crops.batch(2, np.random.default_rng([0, step]))
        torch.testing.assert_close((y_1 + s_a**2 * target) / (1 + s_a**2), y, rtol=1e-4, atol=1e-5)
        assert _crops_of(noisy, [y])


def test_the_twin_of_recorruption_sees_the_same_crops_and_the_clean_pictures(tiny_sets):
    ours, twin = (_feed(**RECORRUPTED), _feed(objective={"name": "gr2r-supervised"} | LEVELS))
    for step in range(4):
        (c, _, s_a), (same, clean, level) = ours.batch(0, step, 2), twin.batch(0, step, 2)
        assert torch.equal(c, same) and torch.equal(s_a, level)
        assert _crops_of(dict(datasets.load("tiny")), [clean])


def test_recorrupted_noise_stays_in_the_ranges_of_a_mixture(tiny_sets):
    ours = _feed(noise=MIXTURE, objective={"name": "gr2r", "s_max": 12, "s_min": 0.01})
    own = PerCrop([noise.Gaussian(6.0), noise.Poisson(0.05), noise.Gamma(140.0)] * 40)
    told = feed._noisier(own, ours._levels(own, 120, 0)).models
    assert not any(ours.noise.misses(model) for model in told)
    times = [float(after.variance(np.ones(1))[0] / before.variance(np.ones(1))[0]) for before, after in zip(own.models, told, strict=True)]
    assert min(times) > 1 and [max(times[kind::3]) > most for kind, most in enumerate((20, 1.2, 4))] == [True] * 3


def test_draws_repeat_the_crops_with_other_probes(tiny_sets):
    for part, size in ((slice(None), 2), (slice(1, 2), 1)):
        c, u, s_a = _feed(draws=2).batch(0, 5, 2, part)
        assert len(c) == len(u) == len(s_a) == 2 * size
        assert torch.equal(c[:size], c[size:]) and torch.equal(s_a[:size], s_a[size:])
        assert not torch.equal(u[:size], u[size:])


@pytest.mark.parametrize(
    "changes",
    [{}, {"draws": 2}, RECORRUPTED, {"objective": TWIN}, PAIRS, {"objective": TWIN, "fresh_noise": True}, PAIRS | {"fresh_noise": True}],
    ids=str,
)
def test_processes_share_out_the_batch_of_one(tiny_sets, changes):
    ours = _feed(**changes)
    whole, draws = ours.batch(3, 7, 4), changes.get("draws", 1)
    parts = [ours.batch(3, 7, 4, slice(2 * rank, 2 * rank + 2)) for rank in range(2)]
    for values, first, second in zip(whole, *parts, strict=True):
        shares = [half.unflatten(0, (draws, 2)) for half in (first, second)]
        assert torch.equal(torch.cat(shares, 1).flatten(0, 1), values)
    if changes is RECORRUPTED:
        models = [ours.noise_of(3, 7, 4, slice(2 * rank, 2 * rank + 2)).models for rank in range(2)]
        assert [*models[0], *models[1]] == list(ours.noise_of(3, 7, 4).models)


def test_a_batch_is_a_pure_function_of_seed_and_step(tiny_sets):
    first, other = _feed(), _feed()
    first.batch(0, 1, 4)
    for ours, theirs in zip(first.batch(0, 2, 4), other.batch(0, 2, 4), strict=True):
        assert torch.equal(ours, theirs)
    for seed, step in ((1, 2), (0, 3)):
        assert not torch.equal(first.batch(seed, step, 4)[1], other.batch(0, 2, 4)[1])


def test_held_out_crops_are_recorrupted_the_same_for_every_run(tiny_sets):
    first, other = _feed(**RECORRUPTED), _feed(dataset="tiny-one", **RECORRUPTED)
    assert first.held_out_noise.models == other.held_out_noise.models and len(set(first.held_out_noise.models)) == 4
    for ours, theirs in zip(first.held_out, other.held_out, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("changes", [{}, {"objective": TWIN}, PAIRS], ids=["noisy", "clean", "pair"])
def test_held_out_crops_are_noisy_and_the_same_for_every_run(tiny_sets, changes):
    """Whatever the training set, its options and the random numbers drawn before; they are of about the pixels asked for."""
    first, other = _feed(**changes), _feed(dataset="tiny-one", **changes)
    other.batch(1, 2, 4)
    torch.manual_seed(5)
    for feeds in (other, _feed(keep_every=2, **changes)):
        for ours, theirs in zip(first.held_out, feeds.held_out, strict=True):
            assert torch.equal(ours, theirs)
    assert _crops_of(_coordinates(datasets.noisy_pictures("tiny-held-out", GAUSSIAN, 0)), [first.held_out[0]])
    assert {len(_feed(held_out_pixels=pixels).held_out[0]) for pixels in (1, 1500)} == {1}
    assert len(first.held_out[0]) == 4 and len(_feed(held_out_pixels=9 * 32**2).held_out[0]) == 9


def test_held_out_levels_are_spread_over_their_range(tiny_sets):
    levels = _feed().held_out[2].flatten()
    np.testing.assert_allclose(levels, np.geomspace(0.1, 0.5, 4), rtol=1e-6)


def test_options_of_the_data_reach_the_training_set_and_not_the_held_out_one(tiny_sets):
    whole, half = _feed(), _feed(keep_every=2)
    assert whole.crops.shapes.tolist() == [[40, 48], [32, 40]]
    assert half.crops.shapes.tolist() == [[40, 48]]
    assert torch.equal(half.held_out[0], whole.held_out[0])
    assert _feed(keep_every=2, objective=TWIN).targets.shapes.tolist() == [[40, 48]]
    assert whole.sha256 != half.sha256 != _feed(keep_every=2, noise_seed=1).sha256


def test_crops_stay_in_channels_last_when_they_are_repeated(tiny_sets):
    c = _feed().batch(0, 0, 4)[0]
    assert c.is_contiguous(memory_format=torch.channels_last)
    for times in (1, 3):
        repeated = feed._repeat(c, times)
        assert repeated.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(repeated, c.repeat(times, 1, 1, 1))
    assert _feed(draws=3).batch(0, 0, 4)[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"fresh_noise": True}, ("fresh_noise = true", "one noisy realization")),
        ({"fresh_noise": True, "objective": {"name": "gr2r-supervised"} | LEVELS}, ("fresh_noise = true", "one noisy realization")),
        ({"objective": PAIR}, ("second_seed = 0", "a pair", "second realization")),
        ({"objective": PAIR, "second_seed": 3, "noise_seed": 3}, ("second_seed = 3", "a pair", "second realization")),
        ({"dataset": "CBSD"}, ("'CBSD'", "CBSD68")),
        ({"held_out": "CBSD"}, ("'CBSD'", "CBSD68")),
        ({"held_out": "tiny-grey"}, ("held_out = 'tiny-grey'", "'tiny'")),
        ({"crop": 64}, ("training image a, 48x40", "64")),
    ],
)
def test_sets_and_objectives_that_do_not_fit_are_refused(tiny_sets, refused, changes, parts):
    with refused(*parts):
        _feed(**changes)
