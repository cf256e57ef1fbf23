"""Estimators of an unknown noise parameter that notebook 09 compares with the product's (n2s_utils.estimation).

Each maps a noisy picture y (H, W, C) to a parameter. Those of the score take a Denoiser `single`, whose noise is what the network
is told: before the last stage it enters through the coordinate alone (notebook 08). One of them moves on from there, the others
take one look.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from skimage.restoration import estimate_sigma

from n2s_utils import estimation, noise
from n2s_utils.denoiser import Denoiser

GRID = {"gaussian": (5.0, 55.0), "poisson": (0.005, 0.1), "gamma": (40.0, 120.0)}  # that of Kim & Ye's code
STEPS = {"gaussian": 50, "poisson": 100, "gamma": 80}  # parameters on it
ROUNDS = 5  # of a fixed point


def least_variation(y: np.ndarray, single: Denoiser) -> float:
    """Kim & Ye: of the STEPS parameters of GRID the one at which their formula, its score fixed, gives the picture x of least total
    variation TV, for counts and Gamma noise with a term of the likelihood: TV / 10 + mean(x - y log x),
    TV + mean(log x + y / x + (y / x)^2).
    """
    name, score = single.noise.name, _score_of_y(y, single)

    def criterion(parameter: float) -> float:
        if name == "gaussian":
            return _variation(y + (parameter / 255) ** 2 * score)
        if name == "poisson":
            x = ((y + parameter / 2) * np.exp(parameter * score)).clip(1e-3)
            return _variation(x) / 10 + float((x - y * np.log(x)).mean())
        x = (parameter * y / ((parameter - 1) - y * score)).clip(1e-3)
        return _variation(x) + float((np.log(x) + y / x + (y / x) ** 2).mean())

    return float(min(np.linspace(*GRID[name], STEPS[name]), key=criterion))


def _variation(x: np.ndarray) -> float:
    return float(np.abs(np.diff(x, axis=0)).mean() + np.abs(np.diff(x, axis=1)).mean())


def score_shift(y: np.ndarray, single: Denoiser, e: float = 1e-3) -> float:
    """Kim et al. 2022 (Noise2Score adaptive): Tweedie's formula gives y and y + e u, u ~ N(0, I), the same x if e is small; solved for
    the parameter, the median over pixels. With d = l'(y + e u) - l'(y): sigma^2 = -e u / d; zeta = sqrt(y^2 - 2 e u / d) - y;
    1 / k = b / (d + b), b = 1 / (y + e u) - 1 / y.
    """
    shift = np.float32(e) * noise.rng("shift").standard_normal(y.shape).astype(np.float32)
    if single.noise.name != "gaussian":
        shift = np.maximum(shift, -y / 2)  # no negative intensities
    d = _score_of_y(y + shift, single) - _score_of_y(y, single)
    with np.errstate(divide="ignore", invalid="ignore"):
        if single.noise.name == "gaussian":
            return 255 * float(np.nanmedian((-shift / d).clip(0, 1))) ** 0.5
        if single.noise.name == "poisson":
            return float(np.nanmedian(np.sqrt(y**2 - 2 * shift / d) - y))
        b = 1 / (y + shift) - 1 / y
        return float(1 / np.nanmedian(b / (d + b)))


def rounded_shift(y: np.ndarray, single: Denoiser) -> float:
    """The same with zeta and 1 / k rounded to two decimals, as its code does; infinite where 1 / k becomes 0."""
    found = score_shift(y, single)
    if single.noise.name == "gaussian":
        return found
    inverse = single.noise.name == "gamma"
    value = round(1 / found if inverse else found, 2)
    return (1 / value if value else np.inf) if inverse else value


def _score_of_y(y: np.ndarray, single: Denoiser) -> np.ndarray:
    """The score of y, from that of c by the chain rule (notebook 08)."""
    score, model = single.score(single.noise.coordinate(y)).astype(np.float64), single.noise
    if isinstance(model, noise.Gaussian):
        return score / model.std
    if isinstance(model, noise.Poisson):
        return score / model.zeta
    return (model.k**0.5 * score - 1) / (y + model.eps)


def _scores(y: np.ndarray, single: Denoiser, e: float = 0.05) -> tuple[float, float]:
    """Mean square of the score of z, in which the noise has unit deviation, and minus its mean divergence, by a central
    difference along a Rademacher probe."""
    z = single.noise.stabilise(single.noise.coordinate(y)).astype(np.float32)
    in_z = replace(single, noise=noise.Gaussian(255.0))  # of unit deviation: c = y = z
    u = noise.rng("probe").choice([-1.0, 1.0], z.shape).astype(np.float32)
    divergence = u * (in_z.score(z + e * u) - in_z.score(z - e * u)) / (2 * e)
    return float((in_z.score(z) ** 2).mean()), -float(divergence.mean())


def _scaled(model: noise.Model, variance: float) -> noise.Model:
    """The model whose noise has `variance` times the variance."""
    power = {"gaussian": 0.5, "poisson": 1.0, "gamma": -1.0}[model.name]
    [value] = model.parameters.values()
    return noise.make(model.name, max(value * variance**power, 1.001 if model.name == "gamma" else 1e-6))


def unsure(y: np.ndarray, single: Denoiser) -> float:
    """UNSURE (Tachella et al. 2024): the variance is 1 / mean(score^2). Too large by 1 / (1 - MSE / sigma^2)."""
    return float(_scaled(single.noise, 1 / _scores(y, single)[0]).parameter)


def consistent(y: np.ndarray, single: Denoiser) -> float:
    """The parameter at which the mean square of the score is minus its mean divergence, as it is for every true score. By SURE,
    sigma^2 - MSE is both: sigma^4 mean(score^2), and -sigma^4 mean(div score). A fixed point, ROUNDS from what `single` is told.
    """
    for _ in range(ROUNDS):
        square, divergence = _scores(y, single)
        single = replace(single, noise=_scaled(single.noise, square / max(divergence, 1e-3)))
    return float(single.noise.parameter)


def _stabilised(y: np.ndarray, name: str, variance: Callable[[np.ndarray], float]) -> float:
    """The parameter at which `variance` of the picture in z is 1: a fixed point from the middle of GRID."""
    model = noise.make(name, float(np.prod(GRID[name]) ** 0.5))
    for _ in range(1 if name == "gaussian" else ROUNDS):
        model = _scaled(model, max(variance(model.stabilise(model.coordinate(y))), 1e-6))
    return float(model.parameter)


def wavelets(y: np.ndarray, single: Denoiser) -> float:
    """scikit-image's estimate_sigma (Donoho & Johnstone 1994) after the stabilising transform, iterated."""
    return _stabilised(y, single.noise.name, lambda z: float(np.mean(np.square(estimate_sigma(z, channel_axis=-1)))))


def stabilised_patches(y: np.ndarray, single: Denoiser) -> float:
    """The least eigenvalues of the patch covariance (Chen, Zhu & Heng 2015) after the stabilising transform, iterated."""

    def variance(z: np.ndarray) -> float:
        patches = estimation.Patches(z)
        return patches.noise_variance(np.ones_like(patches.mean))

    return _stabilised(y, single.noise.name, variance)


def patches(y: np.ndarray, single: Denoiser) -> float:
    """The product's: the same on patches divided by the deviation that their own brightness calls for."""
    return float(estimation.estimate(y, single.noise.name).parameter)


CAMERA_GRID = (np.geomspace(0.003, 0.1, 12), np.geomspace(4.0, 40.0, 9))  # zeta, sigma: steps of 1.38 and 1.33


def least_loss(y: np.ndarray, single: Denoiser, grid: tuple[np.ndarray, np.ndarray] = CAMERA_GRID) -> noise.PoissonGaussian:
    """Of the camera noises of a grid the one at which the network's score l' of y has the least score-matching loss
    (Hyvarinen 2005) E[w l'^2 + 2 d(w l')/dy], refined by `least_of` in the logarithms of both parameters.

    The loss is least for the true score, whatever the weight w > 0, a function of y alone: here the variance at y of the noise
    that `single` is told.
    """
    guess, u = single.noise, noise.rng("probe").choice([-1.0, 1.0], y.shape).astype(np.float32)
    step = 0.05 * np.sqrt(guess.variance(y))

    def loss(zeta: float, sigma: float) -> float:
        model = noise.PoissonGaussian(zeta, sigma)
        told = replace(single, noise=model)
        lower, middle, higher = (
            guess.variance(shifted) * told.score(model.coordinate(shifted)) / zeta for shifted in (y - step * u, y, y + step * u)
        )
        return float((middle**2 / guess.variance(y) + u * (higher - lower) / step).mean())

    losses = np.array([[loss(float(zeta), float(sigma)) for sigma in grid[1]] for zeta in grid[0]])
    places = least_of(losses)
    return noise.PoissonGaussian(*(float(axis[0] * (axis[1] / axis[0]) ** place) for axis, place in zip(grid, places, strict=True)))


def least_of(values: np.ndarray) -> np.ndarray:
    """Where the least of the values (n, m) is, row and column: by the quadratic through the least and its eight neighbours, at
    most one step from it; the least itself at an edge, or where that quadratic has no least point.
    """
    least = np.array(np.unravel_index(values.argmin(), values.shape))
    if (least < 1).any() or (least > np.array(values.shape) - 2).any():
        return least
    a, b = np.mgrid[-1:2, -1:2].reshape(2, 9)
    near = values[least[0] - 1 : least[0] + 2, least[1] - 1 : least[1] + 2].ravel()
    _, down, across, bent, both, bent_across = np.linalg.lstsq(np.stack([a**0, a, b, a * a, a * b, b * b], 1), near, rcond=None)[0]
    hessian = np.array([[2 * bent, both], [both, 2 * bent_across]])
    if np.linalg.eigvalsh(hessian).min() <= 0:
        return least
    return least - np.linalg.solve(hessian, [down, across]).clip(-1, 1)


ESTIMATORS: dict[str, Callable[[np.ndarray, Denoiser], float]] = {  # as the table of notebook 09 names them
    "least variation (the paper)": least_variation,
    "shift of the score": score_shift,
    "shift of the score, rounded": rounded_shift,
    "UNSURE": unsure,
    "score and divergence": consistent,
    "wavelets": wavelets,
    "patches, stabilised": stabilised_patches,
    "patches (ours)": patches,
}


def compare(
    single: Denoiser,
    dataset: str,
    pictures: Iterable[tuple[str, np.ndarray]],
    models: Sequence[noise.Model],
    ways: Mapping[str, Callable[[np.ndarray, Denoiser], float | noise.Model]] = ESTIMATORS,
) -> Iterator[dict[str, Any]]:
    """A row per clean (name, picture), model and estimator: what it found on the noisy picture (seed 0) and the seconds it took.

    An estimator of several parameters gives the noise itself.
    """
    for name, clean in pictures:
        for model in models:
            y = noise.realization(clean, model, dataset, name, 0)
            told = replace(single, noise=estimation.estimate(y, model.name))
            for estimator, find in ways.items():
                begin = time.perf_counter()
                found = find(y, told)
                row = {"dataset": dataset, "image": name, "noise": model.name, "parameter": model.parameter, "estimator": estimator}
                row |= {"estimate": float(f"{found:.5g}") if isinstance(found, float) else found.rounded}
                yield row | {"seconds": round(time.perf_counter() - begin, 2)}
