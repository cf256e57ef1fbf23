"""The noise of one noisy picture, from that picture alone: its parameter, or its model too.

The patches of a picture lie near a subspace of few dimensions, noise fills all of them: the least eigenvalues of the
covariance of patches are the variance of the noise (Chen, Zhu & Heng, ICCV 2015). Noise that depends on brightness is first
given unit deviation: each patch, channel by channel, is divided by the deviation that its own mean brightness calls for.
Notebook 09 compares this with the estimators of others, and chose the numbers below on held-out noisy pictures.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from n2s_utils import noise
from n2s_utils.cli import InputError

SIDE = 8  # of a patch, pixels
MOST, LEAST = 60_000, 1_000  # patches that are looked at, and that an estimate needs
# The channels of a colour patch share their texture, and no patch need be left out. A grey one is used where its variance is at most
# so many times that of the noise, or texture passes for noise.
FLAT = {1: 1.35, 3: np.inf}
# Of a picture whose noise a file has clipped, patches are used with at most so large a share of values at black or white.
CLIPPED = 0.03
BINS = 6  # of brightness, where noise is compared between them
ROUNDS = 8
LUMA = np.array([0.299, 0.587, 0.114])  # of the colours in brightness (ITU-R 601)


class Patches:
    """Random patches of a noisy picture y (H, W, C), or of several with the same noise: `values` (n, C, SIDE^2), `mean` and `power`
    (n, C), of y and of y^2.

    `clipped` says that the values of y below 0 and above 1 were set to these (those patches are left out where enough others
    remain). Raises InputError for pictures of less than LEAST patches, or of one value.
    """

    def __init__(self, *pictures: np.ndarray, clipped: bool = False):
        self.sizes = " and ".join(f"{y.shape[1]}x{y.shape[0]}" for y in pictures[:3])
        counts = [max(y.shape[0] - SIDE + 1, 0) * max(y.shape[1] - SIDE + 1, 0) for y in pictures]
        self._require(sum(counts), LEAST)
        if not any(np.ptp(y) > 0 for y in pictures):
            raise InputError("a picture of one value alone: there is no noise to estimate; give --sigma, --zeta or --k")
        self.least = min(float(y.min()) for y in pictures)
        shares = [MOST * count // max(sum(counts), MOST) for count in counts]
        patches = np.concatenate([_patches(y, share) for y, share in zip(pictures, shares, strict=True) if share])
        if clipped:
            cut = ((patches <= 0) | (patches >= 1)).mean((1, 2, 3))
            enough = np.sort(cut)[: BINS * LEAST][-1]
            patches = patches[cut <= max(CLIPPED, enough)]
        self.values = patches.reshape(*patches.shape[:2], SIDE**2).astype(np.float64)
        self.mean, self.power = self.values.mean(2), (self.values**2).mean(2)

    def _require(self, count: int, least: int) -> None:
        if count < least:
            raise InputError(f"picture of {self.sizes}: too small to estimate its noise from; give --sigma, --zeta or --k")

    def noise_variance(self, variance: np.ndarray, part: np.ndarray | slice = slice(None)) -> float:
        """Of the noise in the patches `part`, as a multiple of `variance` (n, C), which must be above 0 there; by the least
        eigenvalues."""
        values = self.values[part] / np.sqrt(variance[part])[:, :, None]
        within, flat = values.var(2).mean(1), FLAT[values.shape[1]]
        values = values.reshape(len(values), -1)
        result = _least_eigenvalues(values)
        if flat == np.inf:
            return result
        for _ in range(ROUNDS):
            kept = within <= max(flat * result, np.partition(within, LEAST // 2)[LEAST // 2])
            before, result = result, _least_eigenvalues(values[kept])
            if abs(result - before) <= 1e-3 * before:
                break
        return result

    def bins(self) -> list[np.ndarray]:
        """The numbers of the patches, in BINS parts of rising brightness; raises InputError where they would be less than LEAST each."""
        self._require(len(self.values), BINS * LEAST)
        return np.array_split(np.argsort(self.mean.mean(1), kind="stable"), BINS)


def _patches(y: np.ndarray, count: int) -> np.ndarray:
    """`count` patches of y (n, C, SIDE, SIDE), or all."""
    windows = sliding_window_view(y, (SIDE, SIDE), axis=(0, 1))
    chosen = noise.rng("patches").permutation(windows.shape[0] * windows.shape[1])[:count]
    return windows[np.divmod(chosen, windows.shape[1])]


def _least_eigenvalues(values: np.ndarray) -> float:
    """The mean of the least eigenvalues of the covariance of `values` (n, d): of so many that it is also their median."""
    eigenvalues = np.linalg.eigvalsh(np.cov(values, rowvar=False))
    means = np.cumsum(eigenvalues) / np.arange(1, len(eigenvalues) + 1)
    medians = (eigenvalues[(np.arange(len(means))) // 2] + eigenvalues[(np.arange(len(means)) + 1) // 2]) / 2
    return float(means[np.flatnonzero(means <= medians + 1e-12)[-1]])


def estimate(y: np.ndarray, name: str, clipped: bool = False) -> noise.Model:
    """The noise of the noisy picture y (H, W, C), H and W from some 40 pixels (with two parameters 90), given its model, a key of
    noise.MODELS. `clipped` is as for `Patches`.

    Raises InputError for a picture too small or too flat to estimate from, and for one that cannot have such noise.
    """
    return estimate_common([y], name, clipped)


def estimate_common(pictures: Sequence[np.ndarray], name: str, clipped: bool = False) -> noise.Model:
    """The same for several pictures that have the same noise, from the patches of all."""
    if name not in ESTIMATORS:
        raise InputError(f"noise {name!r}: choose one of {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name](Patches(*pictures, clipped=clipped))


def _gaussian(patches: Patches) -> noise.Model:
    return noise.Gaussian(255 * _level(patches))


def _poisson(patches: Patches) -> noise.Model:
    """The variance is zeta times the mean."""
    return noise.Poisson(_found(patches.noise_variance(patches.mean, _lit(patches, "poisson")), "poisson"))


def _gamma(patches: Patches) -> noise.Model:
    """The variance is x^2 / k, and that is E[y^2] / (k + 1)."""
    return noise.Gamma(1 / _found(patches.noise_variance(patches.power, _lit(patches, "gamma")), "gamma") - 1)


def _lit(patches: Patches, name: str) -> np.ndarray:
    """Which patches are not black in a channel (n,); raises InputError for negative intensities, and where nearly all are black."""
    noise.check_not_negative(name, np.array([patches.least]))
    lit = (patches.power > 0).all(1)
    if lit.sum() < LEAST:
        raise InputError(f"{name} noise: the picture is nearly all black; give the parameter")
    return lit


def _found(variance: float, name: str) -> float:
    if not variance > 1e-9:
        raise InputError(f"{name} noise: the picture shows none; give its parameter if it has some")
    return variance


def _poisson_gaussian(patches: Patches) -> noise.Model:
    """The line through the variance against brightness: zeta is its slope, sigma^2 what it has at black.

    Both are found again where the patches have nearly unit deviation by those found before. A part that is not there comes out
    as the least that the model can say.
    """
    bins = patches.bins()
    brightness = _brightness(patches, bins, "poisson-gaussian noise", "its two parts cannot be told apart; give --zeta and --sigma")
    zeta, read = 0.0, _found(patches.noise_variance(np.ones_like(patches.mean)), "poisson-gaussian")
    for _ in range(ROUNDS):
        expected = zeta * patches.mean.clip(0) + read
        found = np.array([patches.noise_variance(expected, part) for part in bins])
        found *= zeta * brightness.clip(0) + read
        zeta, read = _line(brightness, found)
    return noise.PoissonGaussian(zeta, 255 * read**0.5)


def _brightness(patches: Patches, bins: list[np.ndarray], what: str, so: str) -> np.ndarray:
    """The mean of each bin; raises InputError where they hardly differ: a picture of one brightness shows how strong its noise is,
    not how it grows."""
    brightness = np.array([patches.mean[part].mean() for part in bins])
    if np.ptp(brightness) < 0.1 * np.abs(brightness).max():
        raise InputError(f"{what}: the brightness hardly varies, and {so}")
    return brightness


def _line(brightness: np.ndarray, variance: np.ndarray) -> tuple[float, float]:
    """Slope and height at 0, neither below a thousandth of the whole, of the line of least relative error."""
    design = np.stack([brightness, np.ones_like(brightness)], 1) / variance[:, None]
    slope, height = np.linalg.lstsq(design, np.ones_like(variance), rcond=None)[0]
    top, mean = brightness.max(), variance.mean()
    if slope < 0:
        slope, height = 0.0, 1 / np.mean(1 / variance)
    if height < 0:
        slope, height = 1 / np.mean(brightness / variance), 0.0
    return float(max(slope, 1e-3 * mean / top)), float(max(height, 1e-3 * mean))


ESTIMATORS: dict[str, Callable[[Patches], noise.Model]] = {
    "gaussian": _gaussian,
    "poisson": _poisson,
    "gamma": _gamma,
    "poisson-gaussian": _poisson_gaussian,
}


def choose(y: np.ndarray, clipped: bool = False) -> noise.Model:
    """Gaussian, Poisson or Gamma noise, whichever explains how the noise of y (H, W, C) grows with brightness, with its parameter.
    `clipped` is as for `Patches`.

    Raises InputError as `estimate` does, and for a picture whose brightness hardly varies, unless it has negative intensities,
    which of the three only Gaussian noise makes.
    """
    patches = Patches(y, clipped=clipped)
    if (y < 0).any():
        return _gaussian(patches)
    bins = patches.bins()
    _brightness(patches, bins, "noise of unknown model", "the model cannot be told; give --noise with one")
    models = (ESTIMATORS[name](patches) for name in ("gaussian", "poisson", "gamma"))
    return min(models, key=lambda model: _unevenness(patches, bins, model))


def _unevenness(patches: Patches, bins: list[np.ndarray], model: noise.Model) -> float:
    """How far the noise of a picture is from that of the model at some brightness: the deviation, over bins of brightness, of the
    logarithm of its variance as a multiple of the model's. 0 for the true model."""
    variance = np.maximum(model.variance(patches.mean), 1e-6)
    return float(np.std([np.log(max(patches.noise_variance(variance, part), 1e-12)) for part in bins]))


def levels(y: np.ndarray, clipped: bool = False) -> tuple[float, float]:
    """The standard deviation of the noise, on the 0-255 scale, that all pixels of y (H, W, C) show, and every second one alone.

    White noise is the same on any grid. Noise that neighbours share hides from the least eigenvalues and shows again on the
    coarser grid: as in a JPEG, or a photo that was enlarged, demosaiced or denoised before. Raises InputError as `estimate` does.
    """
    every, second = (255 * _level(Patches(grid, clipped=clipped)) for grid in (y, y[::2, ::2]))
    return every, second


def level_of_correlated(y: np.ndarray, clipped: bool = False) -> float:
    """A guess at sigma where `levels` show noise that is not white: what the brightness of every second pixel of y (H, W, C) shows,
    for compression spares brightness more than colour. Raises InputError as `estimate` does.
    """
    weights = LUMA if y.shape[2] == 3 else np.ones(1)
    brightness = (y[::2, ::2] @ weights)[:, :, None].astype(np.float32)
    return 255 * _level(Patches(brightness, clipped=clipped)) / float(np.linalg.norm(weights))


def _level(patches: Patches) -> float:
    return _found(patches.noise_variance(np.ones_like(patches.mean)), "gaussian") ** 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which a command is told the noise."""
    parser.add_argument("--sigma", type=float, help="level of Gaussian noise, 0-255 scale; with --zeta that of counts beside it")
    parser.add_argument("--zeta", type=float, help="gain of Poisson noise")
    parser.add_argument("--k", type=float, help="shape of Gamma noise")


def told(options: argparse.Namespace) -> noise.Model | None:
    """The noise in the options of `add_arguments`, None where there is none.

    Raises InputError for parameters that make no model, and for any beside an option --noise, which has them estimated.
    """
    given = {name: getattr(options, name) for name in ("sigma", "zeta", "k") if getattr(options, name) is not None}
    for name, model in noise.MODELS.items():
        if {field.name for field in fields(model)} == given.keys():
            if getattr(options, "noise", None):
                raise InputError(f"--noise {options.noise}: estimates the parameter that you give; leave out one of the two")
            return noise.make(name, **given)
    if given:
        raise InputError(f"noise: --{' and --'.join(given)} make no model; give --sigma, --zeta, --k, or --zeta and --sigma together")
    return None
