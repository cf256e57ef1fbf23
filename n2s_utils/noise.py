"""The three noise models of the paper: how each corrupts, and its Tweedie formula.

Images x and y are arrays of any shape with intensities in [0, 1]. A noisy image is float32,
never clipped and never rounded. A score has the shape of y. The formulas are those of Kim & Ye 2021;
notebook 01 derives them and says which posterior functional each one really is.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from n2s_utils.cli import InputError


@dataclass(frozen=True)
class Gaussian:
    """y = x + n, n ~ N(0, std^2), std = sigma / 255: sigma is the noise level on the 0-255 scale.

    Raises InputError if sigma is not a finite positive number.
    """

    sigma: float
    name = "gaussian"

    def __post_init__(self):
        _check_positive("sigma", self.sigma)

    @property
    def parameter(self) -> float:
        return self.sigma

    @property
    def std(self) -> float:
        """The noise level on the [0, 1] scale."""
        return self.sigma / 255

    def sample(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One noisy realization of x."""
        return (x + self.std * rng.standard_normal(x.shape)).astype(np.float32)

    def posterior_mean(self, y: np.ndarray, score: np.ndarray) -> np.ndarray:
        """E[x | y] = y + std^2 l'(y), with l'(y) = grad log p(y) (Tweedie's formula)."""
        return y + self.std**2 * score


@dataclass(frozen=True)
class Poisson:
    """y = zeta Poisson(x / zeta): photon counts of gain zeta.

    Raises InputError if zeta is not a finite positive number.
    """

    zeta: float
    name = "poisson"

    def __post_init__(self):
        _check_positive("zeta", self.zeta)

    @property
    def parameter(self) -> float:
        return self.zeta

    def sample(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One noisy realization of x; x must not be negative."""
        return (self.zeta * rng.poisson(x / self.zeta)).astype(np.float32)

    def posterior_mean(self, y: np.ndarray, score: np.ndarray) -> np.ndarray:
        """(y + zeta/2) exp(l'(y / zeta)), the score taken in the variable y / zeta."""
        return (y + self.zeta / 2) * np.exp(score)


@dataclass(frozen=True)
class Gamma:
    """y = x g, g ~ Gamma(shape k, scale 1/k): speckle of mean 1 and variance 1/k.

    Raises InputError if k is not a finite number above 1, where the formula has a pole.
    """

    k: float
    name = "gamma"

    def __post_init__(self):
        if not (np.isfinite(self.k) and self.k > 1):
            raise InputError(f"k = {self.k}: give a finite shape above 1")

    @property
    def parameter(self) -> float:
        return self.k

    def sample(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One noisy realization of x."""
        return (x * rng.gamma(self.k, 1 / self.k, x.shape)).astype(np.float32)

    def posterior_mean(self, y: np.ndarray, score: np.ndarray) -> np.ndarray:
        """k y / ((k - 1) - y l'(y))."""
        return self.k * y / ((self.k - 1) - y * score)


Model = Gaussian | Poisson | Gamma
MODELS = {model.name: model for model in (Gaussian, Poisson, Gamma)}


def make(name: str, parameter: float) -> Model:
    """The noise model called `name` (gaussian, poisson or gamma) with its one parameter."""
    if name not in MODELS:
        raise InputError(f"noise {name!r}: choose one of {', '.join(MODELS)}")
    return MODELS[name](parameter)


def _check_positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise InputError(f"{name} = {value}: give a finite number above 0")


def rng(*key: object) -> np.random.Generator:
    """Random numbers that are a pure function of `key`, such as (dataset, image, noise, parameter, seed)."""
    text = "/".join(repr(part).removesuffix(".0") if isinstance(part, float) else str(part) for part in key)
    return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))


def realization(x: np.ndarray, model: Model, dataset: str, image: str, seed: int) -> np.ndarray:
    """The noisy image number `seed` of a clean one: the same on every machine, for every method and epoch."""
    return model.sample(x, rng(dataset, image, model.name, float(model.parameter), seed))
