"""Noise that differs from picture to picture, from which one network learns every noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, ClassVar

import numpy as np
import torch

from n2s_utils import noise
from n2s_utils.cli import InputError
from n2s_utils.noise import Gamma, Gaussian, Model, Poisson, PoissonGaussian, rng

Range = tuple[float, float]
_MEMBERS: dict[str, Callable[[float], Model]] = {"sigma": Gaussian, "zeta": Poisson, "k": Gamma}


@dataclass(frozen=True)
class Mixture:
    """Each picture has one noise, drawn once: of the models Gaussian, Poisson and Gamma, those with a range, with equal odds, its
    parameter log-uniform between the two numbers given. Raises InputError where a range is no range, or one of its ends no
    parameter.
    """

    sigma: Range | None = None
    zeta: Range | None = None
    k: Range | None = None
    name: ClassVar[str] = "mixture"

    def __post_init__(self):
        for parameter, (low, high) in self.ranges.items():
            if not _MEMBERS[parameter](low) or not low <= high or not _MEMBERS[parameter](high):
                raise InputError(f"{parameter} = [{low}, {high}]: give the lower end first")

    @property
    def ranges(self) -> dict[str, Range]:
        """Parameter -> its range."""
        return {name: ends for name in _MEMBERS if (ends := getattr(self, name))}

    @property
    def parameters(self) -> dict[str, list[float]]:
        """The same, as a configuration has it."""
        return {name: list(ends) for name, ends in self.ranges.items()}

    def of(self, dataset: str, image: str) -> Model:
        """The noise of a picture: a pure function of the names of set and picture."""
        generator = rng("mixture", dataset, image)
        return self.draw(list(self.ranges)[generator.integers(len(self.ranges))], generator)

    def draw(self, parameter: str, generator: np.random.Generator) -> Model:
        """The model of that parameter, its value log-uniform in the range."""
        low, high = self.ranges[parameter]
        return _MEMBERS[parameter](low * (high / low) ** generator.random())

    def headroom(self, model: Model) -> float:
        """How many times the variance of the noise of a picture may grow within the ranges."""
        [(name, value)] = model.parameters.items()
        low, high = self.ranges[name]
        return value / low if name == "k" else (high / value) ** (2 if name == "sigma" else 1)

    @property
    def ends(self) -> tuple[Model, Model]:
        """Where there is one range: its least noisy model and its noisiest."""
        [(name, (low, high))] = self.ranges.items()
        least, noisiest = (high, low) if name == "k" else (low, high)
        return _MEMBERS[name](least), _MEMBERS[name](noisiest)

    def misses(self, model: Model) -> str:
        """What of `model` lies outside the ranges, in words; "" where nothing does."""
        outside = []
        for name, value in model.parameters.items():
            if name not in self.ranges:
                outside.append(f"{name} {value:.3g} lies outside noise of {' and '.join(self.ranges)}")
                continue
            low, high = self.ranges[name]
            # Of counts with Gaussian noise, any sigma below the range is mostly the counts'.
            if not (low <= value <= high or (isinstance(model, PoissonGaussian) and name == "sigma" and value <= high)):
                outside.append(f"{name} {value:.3g} lies outside {low:g} to {high:g}")
        return " and ".join(outside)


class PerCrop:
    """The noise of a batch of crops, each with a model of its own: serves as a `noise.Model` for tensors (B, C, H, W), or
    several such batches one after the other.
    """

    def __init__(self, models: Sequence[Model]):
        self.models = models
        self._kinds: dict[tuple[int, torch.device], list[tuple[Model, torch.Tensor]]] = {}

    def sample(self, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return np.concatenate([model.sample(part, generator) for model, part in zip(self.models, np.split(x, len(x)), strict=True)])

    def variance(self, x: torch.Tensor) -> torch.Tensor:
        return self._each("variance", x)

    def coordinate(self, y: torch.Tensor) -> torch.Tensor:
        return self._each("coordinate", y)

    def stabilise(self, c: torch.Tensor) -> torch.Tensor:
        return self._each("stabilise", c)

    def slope(self, c: torch.Tensor) -> torch.Tensor:
        return self._each("slope", c)

    def curvature(self, c: torch.Tensor) -> torch.Tensor:
        return self._each("curvature", c)

    def skewness(self, c: torch.Tensor) -> torch.Tensor:
        return self._each("skewness", c)

    def regression_mean(self, c: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        return self._each("regression_mean", c, score)

    def _each(self, method: str, *values: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(values[0])
        for model, crops in self.by_kind(len(values[0]), values[0].device):
            part = getattr(model, method)(*(value.index_select(0, crops) for value in values))
            result = result.index_copy(0, crops, part)
        return result

    def by_kind(self, size: int, device: torch.device) -> list[tuple[Model, torch.Tensor]]:
        """One model for all crops of a kind, its parameters (n, 1, 1, 1), and which of the `size` crops these are: a few calls
        on many crops, where one on each would keep a GPU waiting.
        """
        if (size, device) not in self._kinds:
            models = list(islice(cycle(self.models), size))
            crops_of = {kind: [i for i, model in enumerate(models) if type(model) is kind] for kind in dict.fromkeys(map(type, models))}
            self._kinds[size, device] = [
                (_stacked([models[i] for i in crops], device), torch.tensor(crops).to(device, non_blocking=True))
                for crops in crops_of.values()
            ]
        return self._kinds[size, device]


def _stacked(models: list[Model], device: torch.device) -> Model:
    """A model with the parameters of several of its kind, which were checked when those were made."""
    stacked = object.__new__(type(models[0]))
    for name in models[0].parameters:
        values = torch.tensor([getattr(model, name) for model in models]).view(-1, 1, 1, 1)
        object.__setattr__(stacked, name, values.to(device, non_blocking=True))
    return stacked


Noise = Model | PerCrop  # of a batch
Source = Model | Mixture  # of a set of pictures


def variance_at(noise: Noise, c: torch.Tensor) -> torch.Tensor:
    """Of the noise at the brightness of c itself, which a score of z of 0 gives; all of the shape of c."""
    return noise.variance(noise.regression_mean(c, noise.curvature(c)))


def from_table(table: dict[str, Any]) -> Source:
    """The noise in the table [noise] of a configuration: `model`, a key of noise.MODELS or "mixture", and its parameters."""
    if table.get("model") != Mixture.name:
        for name, value in table.items():
            if isinstance(value, list):
                raise InputError(f"noise {table.get('model')!r}: {name} = {value}: give one number; ranges are for 'mixture'")
        return noise.from_table(table)
    ranges = {name: value for name, value in table.items() if name != "model"}
    if unknown := ranges.keys() - _MEMBERS:
        raise InputError(f"noise 'mixture': unknown parameter {sorted(unknown)[0]!r}; known: {', '.join(_MEMBERS)}")
    if not ranges or not all(isinstance(value, list) and len(value) == 2 for value in ranges.values()):
        raise InputError(f"noise 'mixture': give {', '.join(_MEMBERS)}, or some of them, as [lowest, highest]")
    return Mixture(**{name: (float(low), float(high)) for name, (low, high) in ranges.items()})
