"""From noisy pictures to posterior means: known posteriors for every noise model, sizes, tiles, averages, weights files."""

import json

import numpy as np
import pytest
import torch
from conftest import record_of

from n2s_utils import denoiser, noise
from n2s_utils.denoiser import Denoiser
from n2s_utils.machine import require_device
from n2s_utils.mixture import Mixture
from n2s_utils.network import Architecture
from n2s_utils.weights import save_weights

GAUSSIAN = noise.Gaussian(25.0)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Architecture(kink="leaky").build(1).eval()


class StandIn(torch.nn.Module):
    """Takes the place of a ScoreNetwork; sees one pixel alone."""

    channels, stride, reach, regression = 1, 1, 0, False

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.08))


class Shrinkage(StandIn):
    """R(c) = -a c, so that all averages are known."""

    channels = 3

    def forward(self, c, noise):
        return -self.a * c


class Exact(StandIn):
    """The score of c, by autograd of its log density."""

    def __init__(self, log_density):
        super().__init__()
        self.log_density = log_density

    def forward(self, c, noise):
        with torch.inference_mode(False), torch.enable_grad():
            c = c.clone().double().requires_grad_()
            return torch.autograd.grad(self.log_density(c).sum(), c)[0]


# Conjugate examples: pictures of independent pixels with a prior under which the posterior is known.


def _picture(y) -> np.ndarray:
    return np.asarray(y, np.float64).reshape(1, -1, 1)


def test_gaussian_prior_and_noise_give_the_posterior_mean():
    centre, spread, std = 0.4, 0.2, GAUSSIAN.std  # x ~ N(centre, spread^2)
    network = Exact(lambda c: -((c - centre / std) ** 2) / (2 * (1 + (spread / std) ** 2)))
    y = _picture(np.linspace(-0.5, 1.5, 21))
    expected = (spread**2 * y + std**2 * centre) / (spread**2 + std**2)
    np.testing.assert_allclose(Denoiser(network, GAUSSIAN)(y), expected, rtol=1e-12)
    single = Denoiser(network, GAUSSIAN)(y.astype(np.float32))
    assert single.dtype == np.float32 and np.allclose(single, expected, atol=1e-6)


SHAPE, RATE = 2.0, 0.02  # x / zeta ~ Gamma(SHAPE, RATE): photons of mean 100, a broad prior


def _log_counts(n):
    """Log probability of n counts, negative binomial, continued between the integers by the gamma function."""
    return torch.lgamma(n + SHAPE) - torch.lgamma(n + 1) - n * np.log1p(RATE)


@pytest.mark.parametrize("zeta", [0.01, 0.2])
def test_gamma_prior_and_poisson_noise_give_about_the_posterior_mean(zeta):
    """Asymptotically in the counts, and the published formula the geometric mean."""
    model, network = noise.Poisson(zeta), Exact(_log_counts)
    counts = np.array([20, 30, 50, 100, 200, 400.0])
    ours, arithmetic = Denoiser(network, model)(_picture(zeta * counts)), zeta * (counts + SHAPE) / (1 + RATE)
    np.testing.assert_allclose(ours.ravel(), arithmetic, rtol=0.02)
    assert (np.abs(ours.ravel() / arithmetic - 1) < np.abs(counts * zeta / arithmetic - 1))[-1]  # nearer than the noisy picture
    geometric = zeta * np.exp(torch.digamma(torch.from_numpy(counts + SHAPE)).numpy()) / (1 + RATE)
    published = denoiser.as_published(Denoiser(network, model), _picture(zeta * counts)).ravel()
    np.testing.assert_allclose(published, geometric, rtol=1e-4)
    assert (np.abs(published / arithmetic - 1) > 10 * np.abs(published / geometric - 1)).all()


def test_many_counts_far_from_their_mean_are_read_well():
    """A prior as narrow as the noise: the long step of the score at many counts, where Tweedie's formula in z falls short."""
    model, shape, rate = noise.Poisson(0.01), 50.0, 1.0  # photons of mean 50
    network = Exact(lambda n: torch.lgamma(n + shape) - torch.lgamma(n + 1) - n * np.log1p(rate))
    counts = np.array([100.0, 150.0, 200.0])
    exact = model.zeta * (counts + shape) / (1 + rate)
    ours = np.abs(Denoiser(network, model)(_picture(model.zeta * counts)).ravel() / exact - 1)
    network.regression = True
    as_regression = np.abs(Denoiser(network, model)(_picture(model.zeta * counts)).ravel() / exact - 1)
    assert (ours < 0.01).all() and (as_regression > 2 * ours).all()


def test_inverse_gamma_prior_and_gamma_noise_give_the_harmonic_mean():
    shape, scale, model = 5.0, 2.0, noise.Gamma(50.0)  # x ~ inverse gamma(shape, scale)

    def log_density(c):
        y = model.eps * torch.expm1(c / model.k**0.5)
        return (model.k - 1) * torch.log(y) - (shape + model.k) * torch.log(scale + model.k * y) + torch.log(y + model.eps)

    y = _picture(np.linspace(0.02, 2, 12))
    np.testing.assert_allclose(Denoiser(Exact(log_density), model)(y), (scale + model.k * y) / (shape + model.k), rtol=1e-10)


@pytest.mark.parametrize("sigma", [2.0, 10.0])
def test_gamma_prior_and_poisson_gaussian_noise_give_about_the_posterior_mean(sigma):
    """The density of c is a sum over the counts."""
    model = noise.PoissonGaussian(0.01, sigma)
    n = torch.arange(1500, dtype=torch.float64)

    def log_terms(c):
        return _log_counts(n) - (c.reshape(-1, 1) - n) ** 2 / (2 * model.read_variance)

    c = np.array([20.3, 35.0, 60.7, 110.5, 250.2])
    share = torch.softmax(log_terms(torch.from_numpy(c)), 1)
    expected = model.zeta * (share @ (n + SHAPE)).numpy() / (1 + RATE)
    ours = Denoiser(Exact(lambda c: torch.logsumexp(log_terms(c), 1)), model)(_picture(model.zeta * c))
    np.testing.assert_allclose(ours.ravel(), expected, rtol=0.03)


# Sizes and tiles.


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (31, 33), (32, 64), (65, 3)])
def test_any_size_denoises_to_the_same_size(network, shape):
    y = np.random.default_rng(0).random((*shape, 1), np.float32)
    output = Denoiser(network, GAUSSIAN)(y)
    assert output.shape == y.shape and output.dtype == np.float32
    assert np.isfinite(output).all()


def test_multiples_of_32_are_not_padded(network):
    c = 10 * np.random.default_rng(0).random((64, 96, 1), np.float32)
    with torch.no_grad():
        direct = network(torch.from_numpy(c.transpose(2, 0, 1)[None]), GAUSSIAN).numpy()[0].transpose(1, 2, 0)
    np.testing.assert_allclose(Denoiser(network, GAUSSIAN).score(c), direct, atol=1e-4)


class Passes(torch.nn.Module):
    """A network that counts its passes and notes the largest."""

    def __init__(self, network):
        super().__init__()
        self.network, self.sizes = network, []
        self.channels, self.stride, self.reach, self.regression = network.channels, network.stride, network.reach, False

    def forward(self, c, noise):
        self.sizes.append(c.shape[2:])
        return self.network(c, noise)


def _whole_and_tiled(network, shape, memory=0.0):
    """The score of a random picture in one pass and in several."""
    c, network = 10 * np.random.default_rng(0).random(shape, np.float32), Passes(network)
    whole = Denoiser(network, GAUSSIAN, memory=100).score(c)
    assert len(network.sizes) == 1 and np.abs(whole).max() > 0.1
    network.sizes.clear()
    return whole, Denoiser(network, GAUSSIAN, memory).score(c), network.sizes


@pytest.mark.parametrize("shape", [(64, 1056, 1), (1056, 64, 1)])
def test_tiles_leave_no_seam(network, monkeypatch, shape):
    monkeypatch.setattr(denoiser, "LEAST_SIDE", 96)
    whole, tiled, sizes = _whole_and_tiled(network, shape)
    assert len(sizes) == 11 and max(map(max, sizes)) == 96 + 2 * 160  # no part is the whole picture
    np.testing.assert_allclose(tiled, whole, atol=1e-4)


def test_tiles_in_both_directions_leave_no_seam(network):
    """A size that is no multiple of 32; every tile but the last in its row or column needs its right or lower margin."""
    whole, tiled, sizes = _whole_and_tiled(network, (500, 530, 1))
    assert len(sizes) == 6 and all(height < 500 and width < 530 for height, width in sizes)
    np.testing.assert_allclose(tiled, whole, atol=1e-4)


class Pooled(torch.nn.Module):
    """A small network of stride 4 that sees 12 pixels around."""

    channels, stride, reach, regression = 2, 4, 12, False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 5, padding=2)

    def forward(self, c, noise):
        pooled = torch.nn.functional.max_pool2d(self.first(c), 4)
        return torch.nn.functional.interpolate(self.second(pooled), scale_factor=4)


def test_many_tiles_in_both_directions_leave_no_seam(monkeypatch):
    monkeypatch.setattr(denoiser, "LEAST_SIDE", 16)
    whole, tiled, sizes = _whole_and_tiled(Pooled(), (67, 90, 2))
    assert len(sizes) == 5 * 6 and max(map(max, sizes)) == 16 + 2 * 12
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_pictures_too_are_tiled_whole(network):
    """Not the score alone: the way from y to the posterior mean."""
    y = np.random.default_rng(0).random((300, 40, 1), np.float32)
    counting = Passes(network)
    tiled = Denoiser(counting, GAUSSIAN, memory=0.0)(y)
    assert len(counting.sizes) == 2
    np.testing.assert_allclose(tiled, Denoiser(network, GAUSSIAN)(y), atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_grow_with_the_memory_and_stay_within_it(channels):
    network = Architecture().build(channels)
    height, width = 3000, 2000

    def estimate(memory):
        single = Denoiser(network, GAUSSIAN, memory)
        down, across = single.tile(height, width)
        parts = min(down + 2 * single.margin, height) * min(across + 2 * single.margin, width)
        return down, denoiser.BASE_GB + (8 * channels * height * width + parts * denoiser.BYTES_PER_PIXEL) / 1e9

    tiles = [estimate(memory) for memory in (1.5, 2.5, 4.0, 100.0)]
    assert [down for down, _ in tiles] == sorted({down for down, _ in tiles}) and tiles[-1][0] == height
    assert all(used <= memory for (_, used), memory in zip(tiles, (1.5, 2.5, 4.0, 100.0), strict=True))
    assert denoiser.MEMORY == 1.5 == Denoiser(network, GAUSSIAN).memory
    assert Denoiser(network, GAUSSIAN).tile(512, 768) == (512, 768)  # a Kodak picture in one pass


# Averages.


def test_recorrupted_average_is_the_tweedie_step_at_the_larger_noise():
    """c + s_a u has the noise 1 + s_a^2, and shrinks by a of that."""
    y = np.random.default_rng(0).random((32, 32, 3), np.float32)
    gaussian, s_a, draws = noise.Gaussian(51), 1.5, 400
    output = denoiser.recorrupted(Denoiser(Shrinkage(), gaussian), y, s_a, draws, np.random.default_rng(1))
    shrink, spread = 1 - 0.08 * (1 + s_a**2), s_a * gaussian.std
    assert output.shape == y.shape
    assert np.mean(output / shrink - y) == pytest.approx(0, abs=4 * spread / np.sqrt(draws * y.size))
    assert np.std(output / shrink - y) == pytest.approx(spread / np.sqrt(draws), rel=0.05)


@pytest.mark.parametrize(("draws", "s_a"), [(0, 0.3), (-1, 0.3), (4, 0.0), (4, float("nan")), (4, float("inf"))])
def test_no_recorruption_is_refused(network, refused, draws, s_a):
    with refused(f"recorruptions = {draws}", f"s_a = {s_a}"):
        denoiser.recorrupted(Denoiser(network, GAUSSIAN), np.zeros((32, 32, 1), np.float32), s_a, draws, np.random.default_rng(0))


def test_recorruption_of_other_noise_is_refused(network, refused):
    with refused("recorruptions", "gaussian", "poisson"):
        denoiser.recorrupted(Denoiser(network, noise.Poisson(0.1)), np.zeros((32, 32, 1)), 0.3, 4, np.random.default_rng(0))


def test_x8_is_plain_for_a_network_without_direction_and_turns_with_the_picture(network):
    y = np.random.default_rng(0).random((40, 33, 1), np.float32)
    without = Denoiser(Shrinkage(), GAUSSIAN)
    np.testing.assert_allclose(denoiser.x8(without, y), without(y), rtol=1e-5)
    single = Denoiser(network, GAUSSIAN)
    output = denoiser.x8(single, y)
    turned = denoiser.x8(single, np.ascontiguousarray(np.rot90(y[::-1])))
    np.testing.assert_allclose(turned, np.rot90(output[::-1]), atol=1e-5)
    assert not np.allclose(single(np.ascontiguousarray(np.rot90(y[::-1]))), np.rot90(single(y)[::-1]), atol=1e-4)


# Weights files.


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    architecture, path = Architecture(), tmp_path / "grey.safetensors"
    record = record_of(architecture, 1, noise={"model": "gaussian", "sigma": 25.0})
    save_weights(architecture.build(1).network.state_dict(), path, record)
    return path


def test_weights_serve_another_sigma_by_a_change_of_variables(weights):
    """In y, with one network N of t = d y / std: R(y) = d / std N(d y / std)."""
    y = np.random.default_rng(0).random((32, 64, 1), np.float32)
    for model in (GAUSSIAN, noise.Gaussian(60.0)):
        single, factor = denoiser.load(weights, model), 0.1 / model.std
        with torch.no_grad():
            inner = single.network.network(torch.from_numpy(factor * y.transpose(2, 0, 1)[None]))[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(single(y), y + model.std**2 * factor * inner, atol=1e-5)


def test_weights_of_a_mixture_serve_its_models_and_those_of_its_noisiest_level_that_level(weights, refused):
    record = weights.with_suffix(".json")
    content = json.loads(record.read_text())
    for noisiest, trained in ((False, Mixture(sigma=(5.0, 50.0))), (True, noise.Gaussian(50.0))):
        content["config"] |= {"noise": {"model": "mixture", "sigma": [5, 50]}, "objective": {"name": "gr2r", "noisiest": noisiest}}
        record.write_text(json.dumps(content))
        assert denoiser.trained_noise(weights) == trained
        assert denoiser.load(weights, noise.Gaussian(20.0)).noise == noise.Gaussian(20.0)
        with refused(weights, trained.name, "poisson"):
            denoiser.load(weights, noise.Poisson(0.1))


def test_weights_for_another_noise_are_refused(weights, refused):
    for model in (noise.Poisson(0.1), noise.Gamma(50.0), noise.PoissonGaussian(0.1, 25.0)):
        with refused(weights, "gaussian", model.name):
            denoiser.load(weights, model)


def test_weights_for_other_channels_are_refused(weights, refused):
    with refused(weights, "1 channel", "have 3"):
        denoiser.load(weights, GAUSSIAN, channels=3)


def test_bf16_is_near_float32(network):
    c = 10 * np.random.default_rng(0).random((32, 32, 1), np.float32)
    exact, rounded = (Denoiser(network, GAUSSIAN, precision=precision).score(c) for precision in ("fp32", "bf16"))
    assert rounded.dtype == np.float32 and not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused(refused):
    with refused("cuda", "cpu"):
        require_device("cuda")
