"""The noise models: how each corrupts, the coordinate in which its score is learned, and the way back to the picture.

One way through for every model, all of it between a noisy picture y and the posterior mean x of the clean one:

    c = coordinate(y)             where noise of our own is added and the score l(c) = d/dc log p(c) is meant
    z = stabilise(c)              c with noise of about unit deviation at every brightness: what a network sees
    x = inverse(z)                the way back for a mean of z
    l = g l_z + (log g)'          the score of c from that of z (change of variables), g = slope(c) = dz/dc
    x = posterior_mean(c, l)      Tweedie's formula, or a relative of it for counts

Pictures x and y, c, z and scores are arrays or tensors of one shape, any shape; x and y have intensities in [0, 1]. A noisy
picture is float32, never clipped and never rounded. The formulas are those of Kim & Ye 2021 but for the counts, see `Poisson`;
notebook 01 derives them and says which posterior functional each one really is.
"""

import hashlib
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from n2s_utils.cli import InputError
from n2s_utils.noise_model import NoiseModel, Unit, Values, check_not_negative, check_positive, library

REFERENCE = (25 / 255) ** 2  # the variance of the noise that has weight 1 in a loss, whatever the power of its weights


@dataclass(frozen=True)
class Gaussian(Unit):
    """y = x + n, n ~ N(0, std^2), std = sigma / 255: sigma is the noise level on the 0-255 scale. c = y / std, z = c.

    Raises InputError if sigma is not a finite positive number.
    """

    sigma: float
    name = "gaussian"

    def __post_init__(self):
        check_positive("sigma", self.sigma)

    @property
    def std(self) -> float:
        """The noise level on the [0, 1] scale."""
        return self.sigma / 255

    def sample(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One noisy realization of x."""
        return (x + self.std * rng.standard_normal(x.shape)).astype(np.float32)

    def variance(self, x: Values) -> Values:
        """Of the noise at intensity x."""
        return library(x).ones_like(x) * self.std**2

    def coordinate(self, y: Values) -> Values:
        return y / self.std

    def inverse(self, z: Values) -> Values:
        """The picture whose noisy z has this mean."""
        return self.std * z

    def posterior_mean(self, c: Values, score: Values) -> Values:
        """E[x | y] = std (c + l(c)), which is y + std^2 l'(y) (Tweedie's formula)."""
        return self.inverse(c + score)


@dataclass(frozen=True)
class Poisson(NoiseModel):
    """y = zeta Poisson(x / zeta): photon counts of gain zeta. c = y / zeta, the counts; z = 2 sqrt(c + 3/8) (Anscombe),
    continued as a straight line below c = 0, where only noise of our own leads.

    `regression_mean` is Tweedie's formula in z, where the noise is nearly Gaussian; at many counts it falls short of a long step.
    `published_mean`, Kim & Ye's formula, is nearly right there, but at few counts its exponential multiplies the error of a
    learned score. `posterior_mean` goes from the one to the other as the counts grow (notebook 08).
    Raises InputError if zeta is not a finite positive number.
    """

    zeta: float
    name = "poisson"
    growth: ClassVar[float] = 1 / 6  # of p, see `posterior_mean`: chosen by Hudson's identity, on noisy pictures alone

    def __post_init__(self):
        check_positive("zeta", self.zeta)

    @property
    def read_variance(self) -> float:
        """Variance of Gaussian noise in c beside the counts."""
        return 0.0

    def sample(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One noisy realization of x; x must not be negative."""
        return (self.zeta * rng.poisson(x / self.zeta)).astype(np.float32)

    def variance(self, x: Values) -> Values:
        """Of the noise at intensity x."""
        return self.zeta * x.clip(0) + self.zeta**2 * self.read_variance

    def coordinate(self, y: Values) -> Values:
        """Raises InputError for negative intensities, which no count has."""
        check_not_negative(self.name, y)
        return y / self.zeta

    def _root(self, c: Values) -> Values:
        return library(c).sqrt(c.clip(0) + 3 / 8 + self.read_variance)

    def stabilise(self, c: Values) -> Values:
        return 2 * self._root(c) + c.clip(None, 0) / (3 / 8 + self.read_variance) ** 0.5

    def slope(self, c: Values) -> Values:
        return 1 / self._root(c)

    def curvature(self, c: Values) -> Values:
        """(log g)', by which the score of c differs from g times that of z."""
        return (c >= 0) / (-2 * self._root(c) ** 2)  # at 0, where counts lie, that of the counts' side

    def inverse(self, z: Values) -> Values:
        """The picture whose noisy z has this mean, asymptotically: zeta (z^-1 + 1/4)."""
        lowest = 2 * (3 / 8 + self.read_variance) ** 0.5  # z at c = 0
        counts = (z.clip(lowest) ** 2 - lowest**2) / 4 + (z - lowest).clip(None, 0) * lowest / 2
        return self.zeta * (counts + 1 / 4)

    def regression_mean(self, c: Values, score: Values) -> Values:
        """z' = z + l_z(z) with l_z = (l - (log g)') / g, then x = inverse(z')."""
        return self.inverse(self.stabilise(c) + (score - self.curvature(c)) / self.slope(c))

    def posterior_mean(self, c: Values, score: Values) -> Values:
        """z' = z + 2 w ((1 + r / p)^(p / 2) - 1), then x = inverse(z'), with w = sqrt(c + 3/8), r = l - (log g)', p = 2 + c / 6.

        At c >= 0, unless z' is below black, that is x / zeta = w^2 (1 + r / p)^p - 1/8: `regression_mean` for p = 2, an
        exponential as in `published_mean` for large p.
        """
        p = 2 + self.growth * c.clip(0)
        power = p / 2 * library(c).log1p(((score - self.curvature(c)) / p).clip(-1 + 1e-6))  # float32 would lose a small r in 1 + r / p
        return self.inverse(self.stabilise(c) + 2 * self._root(c) * library(c).expm1(power))

    def published_mean(self, c: Values, score: Values) -> Values:
        """zeta (c + 1/2) exp(l(c)), Kim & Ye's formula (y + zeta/2) exp(l'(y / zeta))."""
        return self.zeta * (c + 1 / 2) * library(c).exp(score)


@dataclass(frozen=True)
class PoissonGaussian(Poisson):
    """y = zeta Poisson(x / zeta) + N(0, (sigma / 255)^2), the noise of cameras. c = y / zeta; z = 2 sqrt(c + 3/8 + v) with
    v = (sigma / 255 / zeta)^2, the generalised Anscombe transform, moved so that black is where counts alone have it: that is
    what a network has seen. The rest is as for `Poisson`, with 3/8 + v in place of 3/8.
    """

    sigma: float
    name = "poisson-gaussian"

    def __post_init__(self):
        super().__post_init__()
        check_positive("sigma", self.sigma)

    @property
    def read_variance(self) -> float:
        return (self.sigma / 255 / self.zeta) ** 2

    def sample(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One noisy realization of x; x must not be negative."""
        return Gaussian(self.sigma).sample(super().sample(x, rng), rng)

    def coordinate(self, y: Values) -> Values:
        return y / self.zeta

    @property
    def _moved(self) -> float:
        return 2 * (3 / 8 + self.read_variance) ** 0.5 - 2 * (3 / 8) ** 0.5

    def stabilise(self, c: Values) -> Values:
        return super().stabilise(c) - self._moved

    def inverse(self, z: Values) -> Values:
        return super().inverse(z + self._moved)


@dataclass(frozen=True)
class Gamma(Unit):
    """y = x g, g ~ Gamma(shape k, scale 1/k): speckle of mean 1 and variance 1/k. c = sqrt(k) log(1 + y / eps), z = c:
    black is 0, and the noise has about unit deviation where y is well above eps = 4/255.

    Raises InputError if k is not a finite number above 1, where the formula has a pole.
    """

    k: float
    name = "gamma"
    eps: ClassVar[float] = 4 / 255

    def __post_init__(self):
        if not (np.isfinite(self.k) and self.k > 1):
            raise InputError(f"k = {self.k}: give a finite shape above 1")

    def sample(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One noisy realization of x."""
        return (x * rng.gamma(self.k, 1 / self.k, x.shape)).astype(np.float32)

    def variance(self, x: Values) -> Values:
        """Of the noise at intensity x."""
        return x**2 / self.k

    def coordinate(self, y: Values) -> Values:
        """Raises InputError for negative intensities, which the model cannot give."""
        check_not_negative(self.name, y)
        return self.k**0.5 * library(y).log1p(y / self.eps)

    def skewness(self, c: Values) -> Values:
        """-1 / sqrt(k), that of log g for large k."""
        return -library(c).ones_like(c) / self.k**0.5

    def inverse(self, z: Values) -> Values:
        """The picture whose noisy z has this mean, well above eps and for large k: the mean of log y is log x - 1 / (2 k)."""
        return self.eps * library(z).expm1(z / self.k**0.5 + 1 / (2 * self.k))

    def posterior_mean(self, c: Values, score: Values) -> Values:
        """k y / ((k - 1) - y l'(y)) with y l'(y) = y / (y + eps) (sqrt(k) l(c) - 1): Kim & Ye's formula, its score in c."""
        y = self.eps * library(c).expm1(c / self.k**0.5)
        return self.k * y / ((self.k - 1) - y / (y + self.eps) * (self.k**0.5 * score - 1))


Model = Gaussian | Poisson | PoissonGaussian | Gamma
MODELS = {model.name: model for model in (Gaussian, Poisson, PoissonGaussian, Gamma)}


def make(name: str, *values: float, **parameters: float) -> Model:
    """The noise model called `name` (a key of MODELS) with its parameters, such as sigma = 25; raises InputError if they do not fit."""
    if name not in MODELS:
        raise InputError(f"noise {name!r}: choose one of {', '.join(MODELS)}")
    try:
        return MODELS[name](*values, **parameters)
    except TypeError:
        names = [f.name for f in fields(MODELS[name])]
        raise InputError(f"noise {name!r}: give {' and '.join(names)}, one number each") from None


def from_table(table: dict[str, Any]) -> Model:
    """The noise model in the table [noise] of a configuration: `model` and its parameters."""
    return make(table.get("model", ""), **{name: value for name, value in table.items() if name != "model"})


def rng(*key: object) -> np.random.Generator:
    """Random numbers that are a pure function of `key`, such as (dataset, image, noise, parameter, seed)."""
    text = "/".join(f"{float(part)!r}".removesuffix(".0") if isinstance(part, float | np.floating) else str(part) for part in key)
    return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))


def realization(x: np.ndarray, model: Model, dataset: str, image: str, seed: int) -> np.ndarray:
    """The noisy image number `seed` of a clean one: the same on every machine, for every method and epoch."""
    return model.sample(x, rng(dataset, image, model.name, *model.parameters.values(), seed))
