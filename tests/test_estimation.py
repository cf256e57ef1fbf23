"""The noise of one picture: known answers on smooth pictures, errors for pictures that cannot tell."""

from pathlib import Path

import numpy as np
import pytest
from conftest import BENCHMARKS_PRESENT
from scipy.ndimage import gaussian_filter

from n2s_utils import datasets, estimation, noise
from n2s_utils.cli import InputError
from n2s_utils.evaluation import read_rows
from n2s_utils.files import ROOT

RAMP = np.linspace(0.3, 0.7, 160)  # shallow: in a steep grey patch the slope passes for texture
SMOOTH = np.stack(np.broadcast_arrays(RAMP[:, None], RAMP, 0.5 * (RAMP + RAMP[:, None])), axis=2).astype(np.float32)
STEEP = np.repeat(np.broadcast_to(np.linspace(0.1, 0.9, 240), (240, 240))[:, :, None], 3, axis=2).astype(np.float32)
MODELS = [noise.Gaussian(5.0), noise.Gaussian(50.0), noise.Poisson(0.003), noise.Poisson(0.1), noise.Gamma(20.0), noise.Gamma(150.0)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.label)
def test_a_smooth_picture_tells_its_parameter_to_a_few_per_cent(model, channels):
    found = estimation.estimate(noise.realization(SMOOTH[:, :, :channels], model, "s", "smooth", 0), model.name)
    assert type(found) is type(model)
    assert found.parameter == pytest.approx(model.parameter, rel=0.05 if channels == 3 else 0.1)


@pytest.mark.parametrize(("zeta", "sigma"), [(0.01, 10.0), (0.01, 25.0), (0.05, 10.0)])
def test_a_smooth_picture_tells_both_parameters_of_camera_noise(zeta, sigma):
    y = noise.realization(STEEP, noise.PoissonGaussian(zeta, sigma), "s", "smooth", 0)
    found = estimation.estimate(y, "poisson-gaussian")
    assert (found.zeta, found.sigma) == pytest.approx((zeta, sigma), rel=0.15)


@pytest.mark.parametrize(("model", "absent"), [(noise.Gaussian(25.0), "zeta"), (noise.Poisson(0.02), "sigma")])
def test_a_part_of_camera_noise_that_is_not_there_comes_out_small(model, absent):
    y = noise.realization(STEEP, model, "s", "smooth", 0)
    found = estimation.estimate(y, "poisson-gaussian")
    whole, part = found.variance(np.float64(0.5)), {"zeta": found.zeta * 0.5, "sigma": (found.sigma / 255) ** 2}[absent]
    assert part < 0.1 * whole and whole == pytest.approx(model.variance(np.float64(0.5)), rel=0.05)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.label)
def test_the_model_is_recognised_where_brightness_varies(model):
    assert type(estimation.choose(noise.realization(SMOOTH, model, "s", "smooth", 0))) is type(model)


@pytest.mark.parametrize("name", estimation.ESTIMATORS)
def test_pictures_that_cannot_tell_are_refused_in_one_line(name):
    small = np.random.default_rng(0).random((30, 30, 3)).astype(np.float32)
    for y, reason in ((small, "too small"), (np.full((128, 128, 3), 0.5, np.float32), "one value alone")):
        with pytest.raises(InputError, match=reason) as error:
            estimation.estimate(y, name)
        assert "\n" not in str(error.value) and "give" in str(error.value)


def test_comparing_brightness_needs_a_larger_picture():
    y = noise.realization(SMOOTH[:60, :60], noise.PoissonGaussian(0.01, 10.0), "s", "small", 0)
    assert estimation.estimate(y, "gaussian").sigma > 0
    for ask in (estimation.choose, lambda y: estimation.estimate(y, "poisson-gaussian")):
        with pytest.raises(InputError, match="60x60: too small"):
            ask(y.clip(0))


def test_other_pictures_that_cannot_tell():
    flat = noise.realization(np.full((128, 128, 3), 0.5, np.float32), noise.PoissonGaussian(0.01, 10.0), "s", "flat", 0)
    with pytest.raises(InputError, match="brightness hardly varies"):
        estimation.estimate(flat, "poisson-gaussian")
    with pytest.raises(InputError, match="the model cannot be told; give --noise"):
        estimation.choose(flat.clip(0))
    assert estimation.choose(flat - 0.5).sigma == pytest.approx(255 * flat.std(), rel=0.05)  # negative: no other noise makes that
    black = np.zeros((128, 128, 3), np.float32)
    black[:4, :4] = 0.5
    for name in ("poisson", "gamma"):
        with pytest.raises(InputError, match="nearly all black"):
            estimation.estimate(black, name)
        with pytest.raises(InputError, match="negative"):
            estimation.estimate(flat - 1, name)
    with pytest.raises(InputError, match="shows none"):
        estimation.estimate(SMOOTH, "gaussian")
    with pytest.raises(InputError, match="choose one of"):
        estimation.estimate(SMOOTH, "speckle")


def test_the_estimate_does_not_depend_on_the_scale_of_the_picture():
    y = noise.realization(SMOOTH, noise.Gaussian(25.0), "s", "smooth", 0)
    whole, half = (estimation.estimate(picture, "gaussian").sigma for picture in (y, y / 2))
    assert half == pytest.approx(whole / 2, rel=1e-6)


@pytest.mark.skipif(not BENCHMARKS_PRESENT, reason="the benchmark images are not here")
@pytest.mark.parametrize("model", [noise.Gaussian(25.0), noise.Poisson(0.05), noise.Gamma(100.0)], ids=lambda model: model.label)
@pytest.mark.parametrize(("dataset", "count", "median"), [("CBSD68", 6, 0.02), ("Set12", 12, 0.03)])
def test_the_recorded_estimates_are_repeated_and_near_the_truth(dataset, count, median, model):
    rows = read_rows([ROOT / "data" / "results" / f"{dataset}-{model.label}-unknown.csv"]).set_index("image")
    errors = (rows.estimate / model.parameter - 1).abs()
    assert len(rows) == len(datasets.image_set(dataset).files) and errors.median() < median
    names = [Path(file).stem for file in datasets.image_set(dataset).files[:count]]
    for name, clean in datasets.load(dataset, names):
        found = estimation.estimate(noise.realization(clean, model, dataset, name, 0), model.name)
        assert found.parameter == pytest.approx(rows.estimate[name], rel=1e-3), name


def _photo(count=3):
    """Smooth colour with some texture, in [0, 1], dark and bright parts among it."""
    field = gaussian_filter(np.random.default_rng(0).standard_normal((192, 192, count)), 6, axes=(0, 1))
    return (0.5 + 0.3 * field / field.std()).clip(0, 1).astype(np.float32)


@pytest.mark.parametrize("sigma", [15.0, 25.0, 50.0])
def test_patches_that_touch_black_or_white_are_left_out_where_noise_is_clipped(sigma):
    y = noise.realization(_photo(), noise.Gaussian(sigma), "s", "a", 0).clip(0, 1)
    told, untold = (estimation.estimate(y, "gaussian", clipped).sigma for clipped in (True, False))
    assert told == pytest.approx(sigma, rel=0.09) and untold < told


@pytest.mark.parametrize("channels", [1, 3])
def test_white_noise_shows_on_every_grid_and_shared_noise_on_the_coarser_one(channels):
    x = 0.5 + 0.2 * (_photo(channels) - 0.5)
    y = noise.realization(x, noise.Gaussian(20.0), "s", "a", 0)
    every, second = estimation.levels(y)
    assert every == pytest.approx(20, rel=0.06) and second == pytest.approx(every, rel=0.1)
    blurred = gaussian_filter(y, 0.6, axes=(0, 1))
    every, second = estimation.levels(blurred)
    assert second > 1.4 * every
    shared = 255 * np.std(blurred - x)
    assert 0.7 * shared < estimation.level_of_correlated(blurred) < 1.1 * shared


def test_several_pictures_of_one_noise_are_estimated_together():
    pictures = [noise.realization(_photo(1)[:40, k * 40 : k * 40 + 40], noise.Gaussian(20.0), "s", str(k), 0) for k in range(4)]
    assert estimation.estimate_common(pictures, "gaussian").sigma == pytest.approx(20, rel=0.08)
    parts = [picture[:20, :20] for picture in pictures]  # too small each, and enough together only with more
    with pytest.raises(InputError, match="20x20 and 20x20 and 20x20: too small"):
        estimation.estimate_common(parts, "gaussian")
