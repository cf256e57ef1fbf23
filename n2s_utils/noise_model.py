"""What the noise models of `noise` share: names for rows and files, the coordinate of those whose noise is even, checks."""

from abc import ABC, abstractmethod
from dataclasses import asdict
from types import ModuleType
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch

from n2s_utils.cli import InputError

Values = TypeVar("Values", np.ndarray, torch.Tensor)


class NoiseModel(ABC):
    """What the models share: their parameters, as rows and file names give them."""

    name: ClassVar[str]

    @property
    def parameters(self) -> dict[str, float]:
        """Name -> value."""
        return {name: float(value) for name, value in asdict(self).items()}  # type: ignore[call-overload]

    @property
    def parameter(self) -> float | str:
        """As result rows give it: the number, or several joined by "+"."""
        values = list(self.parameters.values())
        return values[0] if len(values) == 1 else "+".join(f"{value:g}" for value in values)

    @property
    def rounded(self) -> str:
        """The parameters to four digits, joined by "+": what was found of an unknown noise."""
        return "+".join(f"{value:.4g}" for value in self.parameters.values())

    @property
    def label(self) -> str:
        """As file names give it, such as gaussian25."""
        return self.name + "+".join(f"{value:g}" for value in self.parameters.values())

    def __str__(self) -> str:
        return f"{self.name} noise of " + ", ".join(f"{name} {value:g}" for name, value in self.parameters.items())

    def of(self, dataset: str, image: str) -> Self:
        """The noise of a picture of a set: the same for all."""
        return self

    def skewness(self, c: Values) -> Values:
        """Of the noise in z, nearly, for any brightness; of the shape of c."""
        return library(c).zeros_like(c)

    @abstractmethod
    def posterior_mean(self, c: Values, score: Values) -> Values:
        """The picture x from the score l(c) of the noisy one, both of its shape."""

    def regression_mean(self, c: Values, score: Values) -> Values:
        """The same by the formula that regression is trained through, and that its networks are read by."""
        return self.posterior_mean(c, score)


class Unit(NoiseModel):
    """Noise of about unit deviation in c itself: z = c."""

    def stabilise(self, c: Values) -> Values:
        return c

    def slope(self, c: Values) -> Values:
        return library(c).ones_like(c)

    def curvature(self, c: Values) -> Values:
        """(log g)', by which the score of c differs from g times that of z."""
        return library(c).zeros_like(c)


def library(values: Any) -> ModuleType:
    """torch or numpy, whichever `values` is of."""
    return torch if isinstance(values, torch.Tensor) else np


def check_positive(name: str, value: float) -> None:
    """Raises InputError unless the parameter is a finite positive number."""
    if not (np.isfinite(value) and value > 0):
        raise InputError(f"{name} = {value}: give a finite number above 0")


def check_not_negative(name: str, y: Values) -> None:
    """Raises InputError if a picture of the model `name` has negative intensities."""
    if (y < 0).any():
        raise InputError(f"{name} noise: the picture has negative intensities (down to {float(y.min()):.3g}); it cannot be {name}")
