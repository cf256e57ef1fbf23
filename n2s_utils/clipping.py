"""Noise that a file has clipped: values below black are 0, above white 1, so that the mean of the noisy values of a dark place is
too bright, of a bright one too dark. A denoiser gives that mean; the way back is a table.

Noise of variance v(x) is taken to be Gaussian at the ends of the range (Foi, "Clipped noisy images", Signal Processing 2009). Counts and
speckle are never below black.
"""

import numpy as np
from scipy.special import ndtr, ndtri

from n2s_utils import noise

GRID = 4096  # of the intensities in the table


def mean_of_clipped(x: np.ndarray, model: noise.Model) -> np.ndarray:
    """E[clip(x + n, 0, 1)] for intensities x in [0, 1], any shape, and noise n of the model; of counts and speckle E[min(x + n, 1)]."""
    std = np.sqrt(np.maximum(model.variance(x), 1e-12))
    above = _excess((x - 1) / std) * std
    below = _excess(-x / std) * std if hasattr(model, "sigma") else 0
    return x - above + below


def _excess(a: np.ndarray) -> np.ndarray:
    """E[max(a + u, 0)], u ~ N(0, 1)."""
    return a * ndtr(a) + np.exp(-(a**2) / 2) / np.sqrt(2 * np.pi)


def unclipped(mean: np.ndarray, model: noise.Model) -> np.ndarray:
    """The intensities in [0, 1] whose noisy values, clipped to [0, 1], have this mean; float32, any shape."""
    x, result = np.linspace(0, 1, GRID), np.empty(mean.shape, np.float32)
    table, parts = mean_of_clipped(x, model), -(-mean.size // (1 << 20))  # interp's own numbers are float64, too large for all at once
    for part, into in zip(*(np.array_split(values.reshape(-1), max(parts, 1)) for values in (mean, result)), strict=True):
        into[:] = np.interp(part, table, x)
    return result


def spread(y: np.ndarray, x: np.ndarray, model: noise.Model, step: float, rng: np.random.Generator) -> np.ndarray:
    """The noisy picture y of a file of whole steps as noise that has a density, and so a score: each value drawn within its step,
    those that were cut off from the noise beyond black or white about the clean picture x, or an estimate of it; float32.

    A network that is trained on y itself learns where the steps are, not where the picture is.
    """
    drawn = y + step * (rng.random(y.shape) - 0.5)
    black, white = (y <= 0) & hasattr(model, "sigma"), y >= 1
    std = np.sqrt(np.maximum(model.variance(x), 1e-12))
    share = rng.random(y.shape)  # of the probability beyond the end
    drawn = np.where(black, x + std * ndtri(share * np.maximum(ndtr(-x / std), 1e-300)), drawn)
    drawn = np.where(white, x - std * ndtri(share * np.maximum(ndtr((x - 1) / std), 1e-300)), drawn)
    return drawn.clip(-np.inf if hasattr(model, "sigma") else 0).astype(np.float32)
