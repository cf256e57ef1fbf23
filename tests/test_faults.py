"""The faults of the earlier reproduction: each does what it says, and nothing else."""

import numpy as np
import pytest
import torch
from conftest import TWIN, tiny

from n2s_utils import datasets, noise, objectives
from n2s_utils.cli import InputError
from n2s_utils.feed import Feed
from n2s_utils.network import Architecture
from n2s_utils.report.faults import Faults, FaultyFeed, OneSidedUNet, SlippedCrops, cut_once, evaluate_as_earlier, quantised

GAUSSIAN = noise.Gaussian(25.0)
SIZES = ((5, 6), (4, 7), (9, 4))


@pytest.fixture
def numbered():
    """Pictures of different sizes in which every pixel is its own number, its channel in the fraction."""
    first = np.cumsum([0] + [height * width for height, width in SIZES[:-1]])
    return {
        f"{width}x{height}": (start + np.arange(height * width).reshape(height, width, 1) + np.array([0, 0.25, 0.5])).astype(np.float32)
        for start, (height, width) in zip(first, SIZES, strict=True)
    }


def test_slipped_flips_are_of_four_pictures_only():
    # Picture k is k + 0.5 in its right half, k in its left.
    pictures = {str(k): np.repeat(np.float32([[[k]] * 2 + [[k + 0.5]] * 2]), 4, axis=0) for k in range(7)}
    batch = SlippedCrops(pictures, 4, "cpu").batch(8000, np.random.default_rng(0))[:, 0, 0].numpy()
    assert (batch[:, 0] != batch[:, 3]).all()  # no turns
    flipped = batch[:, 0] > batch[:, 3]
    assert flipped.mean() == pytest.approx(0.5, abs=0.03)
    assert set(batch[flipped, 3]) == {0, 2, 3, 5} and set(batch[~flipped, 0]) == set(range(7))


def test_a_picture_cut_once_keeps_one_square(numbered):
    squares = cut_once(numbered, 4)
    for name, square in squares.items():
        assert square.shape == (4, 4, 3)
        assert np.array_equal(square, cut_once({name: numbered[name]}, 4)[name])
        rows, columns = np.diff(square[:, 0, 0]), np.diff(square[0, :, 0])
        assert set(rows) == {numbered[name].shape[1]} and set(columns) == {1}
        assert set(square.flat) <= set(numbered[name].flat)
    with pytest.raises(InputError, match="training image 7x4, 7x4: smaller than the crop of 5"):
        cut_once(numbered, 5)


def _feed(faults=None, **changes):
    config = tiny(**changes)
    objective = objectives.make(config.objective, config.noise, config.network.deviation)
    arguments = config.data, config.noise, objective, config.optimisation.crop, config.objective
    return Feed(*arguments) if faults is None else FaultyFeed(*arguments, faults=faults)


def test_without_faults_the_feed_is_the_plain_one(tiny_sets):
    for changes in ({}, {"objective": TWIN}):
        plain, faulty = _feed(**changes), _feed(Faults(), **changes)
        assert plain.sha256 == faulty.sha256
        for ours, theirs in zip((*plain.batch(0, 3, 4), *plain.held_out), (*faulty.batch(0, 3, 4), *faulty.held_out), strict=True):
            assert torch.equal(ours, theirs)


def test_faults_of_the_pictures_reach_the_training_set_and_not_the_held_out_one(tiny_sets):
    whole = _feed(Faults())
    assert whole.crops.shapes.tolist() == [[40, 48], [32, 40]]
    assert _feed(Faults(), keep_every=2).crops.shapes.tolist() == [[40, 48]]
    assert _feed(Faults(cut_once=32)).crops.shapes.tolist() == [[32, 32], [32, 32]]
    assert _feed(Faults(cut_once=32), keep_every=2).crops.shapes.tolist() == [[32, 32]]
    clipped = _feed(Faults(clip_noisy=True))
    y, clean = (feed.crops.pixels * GAUSSIAN.std for feed in (clipped, whole))
    torch.testing.assert_close(y, clean.clip(0, 1))
    assert clean.max() > 1 > y.max() - 1e-6
    assert torch.equal(clipped.held_out[0], whole.held_out[0]) and whole.held_out[0].max() * GAUSSIAN.std > 1


def test_sigma_divided_twice_leaves_almost_clean_pictures(tiny_sets):
    clean = np.concatenate([x.reshape(-1, 3) for _, x in datasets.load("tiny")])
    for faults, deviation in ((Faults(), 25 / 255), (Faults(sigma_divided_twice=True), 25 / 255**2)):
        feed = _feed(faults)
        error = feed.crops.pixels.numpy() * GAUSSIAN.std - clean
        assert error.std() == pytest.approx(deviation, rel=0.03)


def test_faulty_targets_lie_at_the_same_places(tiny_sets):
    c, target = _feed(Faults(cut_once=32, clip_noisy=True), objective=TWIN).batch(0, 1, 4)
    assert (c * GAUSSIAN.std - target).std().item() == pytest.approx(GAUSSIAN.std, rel=0.15) and target.std() > GAUSSIAN.std


def test_faults_that_do_not_fit_the_pictures_are_refused(tiny_sets, refused):
    with refused("training image a, 48x40", "64"):
        _feed(Faults(cut_once=64))
    with refused("training image a, 16x16", "crop of 32"):
        _feed(Faults(cut_once=16))
    with refused("slipped_flips", "2 training images"):
        _feed(Faults(slipped_flips=True))


def test_the_network_with_a_relu_is_the_other_one_without_its_negative_scores():
    networks = []
    for name in ("unet", "unet-relu-output"):
        torch.manual_seed(0)
        networks.append(Architecture(name=name).build(3).network)
    plain, one_sided = networks
    y = torch.rand(1, 3, 32, 32)
    assert isinstance(one_sided, OneSidedUNet) and plain(y).min() < 0 < plain(y).max()
    assert torch.equal(one_sided(y), plain(y).relu())


def test_the_earlier_protocol_measures_crops_under_8_bit_noise_of_cbsd68_only():
    model, pictures = noise.Gaussian(25), [("a", np.zeros((40, 50, 3), np.float32))]
    seen = []
    means = evaluate_as_earlier("CBSD68", pictures, model, lambda y: seen.append(y) or y, draws=5, size=32)
    assert means.shape == (5,) and {y.shape for y in seen} == {(32, 32, 3)}
    whole = quantised(noise.realization(pictures[0][1], model, "CBSD68", "a", 0))
    assert whole.min() == 0 and np.allclose(whole * 255, np.round(whole * 255), atol=1e-4)
    assert all(set(np.unique(y)) <= set(np.unique(whole)) for y in seen) and len({y.tobytes() for y in seen}) > 1
    # Half of the noise on black is cut off: its PSNR is that of the other half.
    assert means.mean() == pytest.approx(-10 * np.log10(model.std**2 / 2), abs=0.1)
    seen.clear()
    evaluate_as_earlier("Kodak", pictures, model, lambda y: seen.append(y) or y, draws=2, size=32)
    assert seen[0].min() < 0 and not np.array_equal(seen[0], seen[1])
