"""What notebooks 08 and 09 compare the product's choices with: the same noise in other coordinates, other shares of the models,
and parameters that are estimated from the training pictures.
"""

from dataclasses import dataclass, field

import numpy as np

from n2s_utils import estimation
from n2s_utils.cli import InputError
from n2s_utils.mixture import Mixture, Source
from n2s_utils.noise import REFERENCE, Gamma, Gaussian, Model, Poisson, Unit, Values, rng


class GammaOfEps1(Gamma):
    """c = sqrt(k) log(1 + y / eps) with a smaller eps."""

    eps = 1 / 255


class GammaOfEps16(Gamma):
    """The same with a larger one."""

    eps = 16 / 255


class GammaInIntensity(Gamma):
    """c = y, as Kim & Ye have it. The network sees y as it is, as it does at sigma 25; the noise in it follows the brightness."""

    def coordinate(self, y: Values) -> Values:
        return y

    def stabilise(self, c: Values) -> Values:
        return c / REFERENCE**0.5

    def slope(self, c: Values) -> Values:
        return super().slope(c) / REFERENCE**0.5

    def posterior_mean(self, c: Values, score: Values) -> Values:
        """k y / ((k - 1) - y l'(y)), Kim & Ye's formula."""
        return self.k * c / ((self.k - 1) - c * score)


class StabilisedCounts(Unit, Poisson):
    """c = z: noise of our own is added after Anscombe's transform, and the score is meant there."""

    def coordinate(self, y: Values) -> Values:
        return Poisson.stabilise(self, super().coordinate(y))

    def posterior_mean(self, c: Values, score: Values) -> Values:
        """That of `Poisson`, from the score of z."""
        plain, counts = Poisson(self.zeta), (c**2 / 4 - 3 / 8).clip(0)
        return plain.posterior_mean(counts, plain.slope(counts) * score + plain.curvature(counts))


GAUSSIAN_HALF = "gaussian-half"  # half of the pictures of a mixture have Gaussian noise, not a third
ESTIMATED = "levels-estimated"  # of a mixture, see EstimatedMixture
VARIANTS: dict[str, dict[type, type]] = {
    "": {},
    "gamma-eps-1": {Gamma: GammaOfEps1},
    "gamma-eps-16": {Gamma: GammaOfEps16},
    "gamma-in-y": {Gamma: GammaInIntensity},
    "poisson-stabilised": {Poisson: StabilisedCounts},
    GAUSSIAN_HALF: {},
    ESTIMATED: {},
}


def varied_model(model: Model, variant: str) -> Model:
    """The same noise in the coordinate of a key of VARIANTS."""
    return VARIANTS[variant].get(type(model), type(model))(**model.parameters)


@dataclass(frozen=True)
class VariedMixture(Mixture):
    """A mixture with a key of VARIANTS."""

    variant: str = ""

    def of(self, dataset: str, image: str) -> Model:
        model, generator = super().of(dataset, image), rng(GAUSSIAN_HALF, dataset, image)
        if self.variant == GAUSSIAN_HALF and not isinstance(model, Gaussian) and generator.random() < 1 / 4:
            model = self.draw("sigma", generator)
        return varied_model(model, self.variant)


@dataclass(frozen=True)
class EstimatedMixture(Mixture):
    """A mixture of which only the models of the pictures are known: their parameters are those that were estimated."""

    found: dict[tuple[str, str], Model] = field(default_factory=dict)

    def learn(self, dataset: str, pictures: dict[str, np.ndarray]) -> None:
        """Estimate the parameter of each noisy picture of a set."""
        for image, y in pictures.items():
            self.found[dataset, image] = estimation.estimate(y, super().of(dataset, image).name)

    def of(self, dataset: str, image: str) -> Model:
        return self.found[dataset, image]


def varied(source: Source, variant: str) -> Source:
    """The noise of a set with a key of VARIANTS; raises InputError for a variant that does not exist."""
    if variant not in VARIANTS:
        raise InputError(f"unknown variant {variant!r}; known: {', '.join(filter(None, VARIANTS))}")
    if variant == ESTIMATED and isinstance(source, Mixture):
        return EstimatedMixture(source.sigma, source.zeta, source.k)
    return VariedMixture(**source.ranges, variant=variant) if isinstance(source, Mixture) else varied_model(source, variant)
