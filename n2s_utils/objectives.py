"""Losses that learn the score of noisy images from noisy images alone, and the twins that are told more.

Each objective holds its constants only and is pure: the same inputs give the same loss. It says in
`needs` what a training step is to hand it beside the noisy crops y:

- "noisy": nothing; the loss is `loss(model, y, u, s_a)`, with u from `probe` and s_a from `noise_levels`;
- "clean" or "pair": `loss(model, y, target)`, with the clean crops or a second noisy realization.

Shapes: y, u and target are (B, C, H, W), s_a is (B, 1, 1, 1) on the [0, 1] intensity scale, the loss
is a scalar, a mean over pixels and channels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from n2s_utils.cli import InputError


def gaussian(y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """u ~ N(0, I)."""
    return torch.empty_like(y).normal_(generator=generator)


def rademacher(y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """u = +-1 with equal odds: of all probes of unit covariance, the trace estimate of least variance (Hutchinson 1989)."""
    return torch.empty_like(y).bernoulli_(generator=generator).mul_(2).sub_(1)


def masked(y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian on a random quarter of the values, twice as large there, zero elsewhere."""
    return gaussian(y, generator) * 2 * torch.empty_like(y).bernoulli_(0.25, generator=generator)


class Objective(Protocol):
    needs: str

    def loss(self, model, y: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class _ScoreMatching:
    """s_a is log-uniform in [s_min, s_max], drawn per crop. Raises InputError unless 0 < s_min <= s_max."""

    s_max: float = 0.05
    s_min: float = 0.01
    probe: Callable[[torch.Tensor, torch.Generator], torch.Tensor] = gaussian
    needs = "noisy"

    def __post_init__(self):
        if not 0 < self.s_min <= self.s_max < float("inf"):
            raise InputError(f"s_min = {self.s_min}, s_max = {self.s_max}: give 0 < s_min <= s_max")

    def noise_levels(self, crops_seen: int, batch: int, rng: np.random.Generator) -> np.ndarray:
        return self.s_min * (self.s_max / self.s_min) ** rng.random(batch)


class LogUniformARDAE(_ScoreMatching):
    """E|u + s_a R(y + s_a u)|^2 with u ~ N(0, I) (Lim et al. 2020, the loss of Kim & Ye 2021)."""

    def loss(self, model, y: torch.Tensor, u: torch.Tensor, s_a: torch.Tensor) -> torch.Tensor:
        return (u + s_a * model(y + s_a * u)).square().mean()


@dataclass(frozen=True)
class ARDAE(LogUniformARDAE):
    """The same loss with the paper's s_a, which falls linearly from s_max to s_min over the first 11/12
    of every `cycle` crops, then stays, and restarts (the authors' code: 22,000 of the 24,000 crops of an epoch).
    """

    s_max: float = 0.05
    s_min: float = 0.001
    cycle: int = 24_000

    def noise_levels(self, crops_seen: int, batch: int, rng: np.random.Generator) -> np.ndarray:
        position = (crops_seen + np.arange(batch)) % self.cycle / (self.cycle * 11 / 12)
        return self.s_max + (self.s_min - self.s_max) * np.minimum(position, 1)


@dataclass(frozen=True)
class R2R(_ScoreMatching):
    """Recorrupted-to-Recorrupted (Pang et al., CVPR 2021) for Gaussian noise of deviation `std`: E|f(v) - t|^2
    with v = y + s_a u, t = y - (std^2 / s_a) u and f(v) = v + (std^2 + s_a^2) R(v).

    It is AR-DAE weighted by ((std^2 + s_a^2) / s_a)^2, and its target t has the variance
    std^2 (1 + std^2 / s_a^2) about the clean image.
    """

    std: float = 25 / 255

    def loss(self, model, y: torch.Tensor, u: torch.Tensor, s_a: torch.Tensor) -> torch.Tensor:
        v, target = y + s_a * u, y - self.std**2 / s_a * u
        return (v + (self.std**2 + s_a**2) * model(v) - target).square().mean()


class AntitheticARDAE(_ScoreMatching):
    """AR-DAE averaged over u and -u, divided by s_a^2, without the constant |u|^2 / s_a^2:

    (|R+|^2 + |R-|^2) / 2 + u.(R+ - R-) / s_a, with R+- = R(y +- s_a u).

    The term that carried the 1/s_a noise of the plain loss cancels; for small s_a this is implicit
    score matching (Hyvarinen 2005), |R|^2 + 2 div R, the divergence by a central difference.
    """

    def loss(self, model, y: torch.Tensor, u: torch.Tensor, s_a: torch.Tensor) -> torch.Tensor:
        plus, minus = model(torch.cat([y + s_a * u, y - s_a * u])).chunk(2)
        return ((plus.square() + minus.square()) / 2 + u * (plus - minus) / s_a).mean()


@dataclass(frozen=True)
class Regression:
    """The supervised twin (target: the clean image) and Noise2Noise (target: a second realization), for
    Gaussian noise of deviation `std`: E|y + std^2 R(y) - target|^2 / std^4, so in units of the score.
    """

    std: float
    needs: str

    def loss(self, model, y: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (model(y) - (target - y) / self.std**2).square().mean()


# Each is built from (s_max, s_min, std of the noise, cycle).
_SCORE_MATCHING: dict[str, Callable[[float, float, float, int], Objective]] = {
    "ar-dae": lambda s_max, s_min, std, cycle: ARDAE(s_max, s_min, cycle=cycle),
    "ar-dae-log-uniform": lambda s_max, s_min, std, cycle: LogUniformARDAE(s_max, s_min),
    "r2r": lambda s_max, s_min, std, cycle: R2R(s_max, s_min, std=std),
    "antithetic": lambda s_max, s_min, std, cycle: AntitheticARDAE(s_max, s_min),
    "antithetic-rademacher": lambda s_max, s_min, std, cycle: AntitheticARDAE(s_max, s_min, rademacher),
    "antithetic-masked": lambda s_max, s_min, std, cycle: AntitheticARDAE(s_max, s_min, masked),
}
_REGRESSION = {"supervised": "clean", "noise2noise": "pair"}
OBJECTIVES = (*_SCORE_MATCHING, *_REGRESSION)


def make(name: str, s_max: float, s_min: float, std: float = math.nan, cycle: int = ARDAE.cycle) -> Objective:
    """The objective called `name`; `std` is the deviation of Gaussian noise on the [0, 1] scale, NaN for other noise.

    `cycle` is that of the paper's s_a, in crops.

    Raises InputError if the name or the range of s_a is bad, or the objective is for Gaussian noise only.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective {name!r}: choose one of {', '.join(OBJECTIVES)}")
    if math.isnan(std) and name in ("r2r", *_REGRESSION):
        raise InputError(f"objective {name!r}: for gaussian noise only")
    if name in _SCORE_MATCHING:
        return _SCORE_MATCHING[name](s_max, s_min, std, cycle)
    if s_max or s_min:
        raise InputError(f"s_min = {s_min}, s_max = {s_max}: {name} adds no noise of its own; leave them out")
    return Regression(std, _REGRESSION[name])


def sure(model, y: torch.Tensor, std: float, generator: torch.Generator, s_a: float = 0.001) -> float:
    """Stein's unbiased estimate of the mean squared error of y + std^2 R(y), from noisy images y (B, C, H, W) alone.

    std^2 + std^4 (|R|^2 + 2 div R), for Gaussian noise of deviation `std`: the antithetic loss with a
    Rademacher probe (Ramani et al., IEEE TIP 2008). s_a^2 is its bias, so s_a must be far below std.
    """
    u, level = rademacher(y, generator), torch.full((len(y), 1, 1, 1), s_a, device=y.device)
    return std**2 + std**4 * AntitheticARDAE(s_a, s_a).loss(model, y, u, level).item()
