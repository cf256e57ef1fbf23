"""Losses that learn the score of noisy images from noisy images alone, and the twins that are told more.

All in the coordinate c of the noise (see noise), with R(c) the score of c. Each objective holds its constants only and is
pure: the same inputs give the same loss. It says in `needs` what a training step is to hand it beside the noisy crops c:

- "noisy": nothing; the loss is `loss(R, c, u, s_a, weight)`, with u from `probe` and s_a from `noise_levels`;
- "clean" or "pair": `loss(R, c, target, noise)`, with the clean pictures or a second noisy realization.

Those on two pictures made from each noisy one (see recorruption) have `loss(R, c, target, noise, s_a)`, c of the noisier and the
target the other one ("noisy") or the clean picture ("clean"); their s_a has no unit.

Shapes: c, u and target are (B, C, H, W), s_a is (B, 1, 1, 1) in units of c, that is of the noise's own deviation (Gaussian,
Gamma) or in counts; the loss is a scalar, a mean over pixels and channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch

from n2s_utils.cli import InputError
from n2s_utils.mixture import Mixture, Noise, Source, variance_at
from n2s_utils.noise import REFERENCE, Gaussian
from n2s_utils.recorruption import check_levels

Score = Callable[[torch.Tensor], torch.Tensor]
Weight = Callable[[torch.Tensor], torch.Tensor]


def unweighted(c: torch.Tensor) -> torch.Tensor:
    """The weight 1, of the shape of c."""
    return torch.ones_like(c)


def gaussian(c: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """u ~ N(0, I)."""
    return torch.empty_like(c).normal_(generator=generator)


def rademacher(c: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """u = +-1 with equal odds: of all probes of unit covariance, the trace estimate of least variance (Hutchinson 1989)."""
    return torch.empty_like(c).bernoulli_(generator=generator).mul_(2).sub_(1)


def masked(c: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gaussian on a random quarter of the values, twice as large there, zero elsewhere."""
    return gaussian(c, generator) * 2 * torch.empty_like(c).bernoulli_(0.25, generator=generator)


@dataclass(frozen=True)
class Settings:
    """The table [objective] of a configuration."""

    name: str  # a key of SCORE_MATCHING or REGRESSIONS
    s_max: float = 0.0  # largest and smallest s_a, in units of c (of gr2r see recorruption); objectives without s_a leave them out
    s_min: float = 0.0
    cycle: int = 24_000  # crops until s_a restarts; of ar-dae only
    draws: int = 1  # of u per crop
    s_counts: float = 0.0  # s_a of crops with Poisson noise, in counts, where others have s_max to s_min; 0: they too
    noisiest: bool = False  # of gr2r and its twin: every crop as noisy as the range allows, for a network of that noise alone
    weight_power: float = 0.0  # see network.ScoreNetwork.weight and Regression; of the antithetic objectives and the twins


def _check_range(s_min: float, s_max: float) -> None:
    if not 0 < s_min <= s_max < float("inf"):
        raise InputError(f"s_min = {s_min}, s_max = {s_max}: give 0 < s_min <= s_max")


class ScoreMatching(Protocol):
    """`weighted`: whether training gives it a weight that counts every brightness alike (network.ScoreNetwork.weight)."""

    weighted: ClassVar[bool]
    needs: ClassVar[str]

    @property
    def probe(self) -> Callable[[torch.Tensor, torch.Generator], torch.Tensor]: ...

    @property
    def s_max(self) -> float: ...

    @property
    def s_min(self) -> float: ...

    def noise_levels(self, crops_seen: int, batch: int, rng: np.random.Generator) -> np.ndarray: ...

    def loss(self, R: Score, c: torch.Tensor, u: torch.Tensor, s_a: torch.Tensor, weight: Weight = unweighted) -> torch.Tensor: ...


@dataclass(frozen=True)
class _LogUniform:
    """s_a is log-uniform in [s_min, s_max], drawn per crop. Raises InputError unless 0 < s_min <= s_max."""

    s_max: float = 0.5
    s_min: float = 0.1
    probe: Callable[[torch.Tensor, torch.Generator], torch.Tensor] = gaussian
    weighted: ClassVar[bool] = False
    needs: ClassVar[str] = "noisy"

    def __post_init__(self):
        _check_range(self.s_min, self.s_max)

    def noise_levels(self, crops_seen: int, batch: int, rng: np.random.Generator) -> np.ndarray:
        """s_a (batch,) of the crops number `crops_seen` and on."""
        return self.s_min * (self.s_max / self.s_min) ** rng.random(batch)


class LogUniformARDAE(_LogUniform):
    """E w |u + s_a R(c + s_a u)|^2 with u ~ N(0, I) (Lim et al. 2020, the loss of Kim & Ye 2021), w = weight(c + s_a u)."""

    def loss(self, R: Score, c: torch.Tensor, u: torch.Tensor, s_a: torch.Tensor, weight: Weight = unweighted) -> torch.Tensor:
        v = c + s_a * u
        return (weight(v) * (u + s_a * R(v)).square()).mean()


@dataclass(frozen=True)
class ARDAE(LogUniformARDAE):
    """The same loss with the paper's s_a, which falls linearly from s_max to s_min over the first 11/12
    of every `cycle` crops, then stays, and restarts (the authors' code: 22,000 of the 24,000 crops of an epoch).
    """

    s_max: float = 0.5
    s_min: float = 0.01
    cycle: int = 24_000

    def noise_levels(self, crops_seen: int, batch: int, rng: np.random.Generator) -> np.ndarray:
        """s_a (batch,) of the crops number `crops_seen` and on."""
        position = (crops_seen + np.arange(batch)) % self.cycle / (self.cycle * 11 / 12)
        return self.s_max + (self.s_min - self.s_max) * np.minimum(position, 1)


class R2R(_LogUniform):
    """Recorrupted-to-Recorrupted (Pang et al., CVPR 2021) for Gaussian noise, of deviation 1 in c: E w |f(v) - t|^2
    with v = c + s_a u, t = c - u / s_a and f(v) = v + (1 + s_a^2) R(v).

    It is AR-DAE weighted by ((1 + s_a^2) / s_a)^2, and its target t has the variance 1 + 1 / s_a^2 about the clean image.
    """

    def loss(self, R: Score, c: torch.Tensor, u: torch.Tensor, s_a: torch.Tensor, weight: Weight = unweighted) -> torch.Tensor:
        v, target = c + s_a * u, c - u / s_a
        return (weight(v) * (v + (1 + s_a**2) * R(v) - target).square()).mean()


class AntitheticARDAE(_LogUniform):
    """AR-DAE averaged over u and -u, divided by s_a^2, without the constant w |u|^2 / s_a^2:

    (w+ |R+|^2 + w- |R-|^2) / 2 + u.(w+ R+ - w- R-) / s_a, with R+- = R(c +- s_a u), w+- = weight(c +- s_a u).

    The term that carried the 1/s_a noise of AR-DAE cancels; for small s_a this is implicit
    score matching (Hyvarinen 2005), |R|^2 + 2 div R, the divergence by a central difference.
    """

    weighted = True

    def loss(self, R: Score, c: torch.Tensor, u: torch.Tensor, s_a: torch.Tensor, weight: Weight = unweighted) -> torch.Tensor:
        v = torch.cat([c + s_a * u, c - s_a * u])
        scores, w = R(v), weight(v)
        plus, minus = (w * scores).chunk(2)
        return (w * scores.square()).mean() + (u * (plus - minus) / s_a).mean()


@dataclass(frozen=True)
class Regression:
    """The supervised twin (target: the clean image) and Noise2Noise (target: a second realization): the squared error of
    the posterior mean, by the formula that its networks are read by, in units of the network's output:

    E w |x(c) - target|^2 (Var / REFERENCE)^power / (deviation^2 Var), Var the mean variance of the noise in each crop, w = 1.

    With s_max above 0, c is of the noisier of the two pictures that `recorruption` makes of each noisy one, s_a log-uniform, or with
    `noisiest` the largest that may be. Then Var is that of the noise of c, and w = s_a^2 / (1 + s_a^2), as the other picture is the
    noisier the smaller s_a is.
    """

    deviation: float
    needs: str
    power: float = 0.0
    s_max: float = 0.0
    s_min: float = 0.0
    noisiest: bool = False

    def noise_levels(self, most: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """s_a (batch,) of crops that bear at `most` so much each, or s_min where that is less, which they are then given all the same."""
        top = np.clip(most, self.s_min, self.s_max)
        return top if self.noisiest else self.s_min * (top / self.s_min) ** rng.random(len(most))

    def loss(self, R: Score, c: torch.Tensor, target: torch.Tensor, noise: Noise, s_a: torch.Tensor | None = None) -> torch.Tensor:
        # By c, as the noise of a target that is noisy would move the weight with it.
        variances = noise.variance(target) if s_a is None else variance_at(noise, c)
        variance = variances.mean((1, 2, 3), keepdim=True).clip(1e-6)  # of a black crop it is 0
        weight = (variance / REFERENCE) ** self.power / (self.deviation**2 * variance)
        if s_a is not None:
            weight = weight * s_a**2 / (1 + s_a**2)
        return (weight * (noise.regression_mean(c, R(c)) - target).square()).mean()


Objective = ScoreMatching | Regression

# A further objective is one more entry, built from its settings.
SCORE_MATCHING: dict[str, Callable[[Settings], ScoreMatching]] = {
    "ar-dae": lambda s: ARDAE(s.s_max, s.s_min, cycle=s.cycle),
    "ar-dae-log-uniform": lambda s: LogUniformARDAE(s.s_max, s.s_min),
    "r2r": lambda s: R2R(s.s_max, s.s_min),
    "antithetic": lambda s: AntitheticARDAE(s.s_max, s.s_min),
    "antithetic-rademacher": lambda s: AntitheticARDAE(s.s_max, s.s_min, rademacher),
    "antithetic-masked": lambda s: AntitheticARDAE(s.s_max, s.s_min, masked),
}
REGRESSIONS = {"supervised": "clean", "noise2noise": "pair", "gr2r": "noisy", "gr2r-supervised": "clean"}  # and what each needs
OBJECTIVES = (*SCORE_MATCHING, *REGRESSIONS)


def make(settings: Settings, noise: Source, deviation: float) -> Objective:
    """The objective of a configuration, for `noise` and a network that sees it with `deviation`.

    Raises InputError if a setting is bad or the objective is not for that noise.
    """
    if settings.name not in OBJECTIVES:
        raise InputError(f"objective {settings.name!r}: choose one of {', '.join(OBJECTIVES)}")
    for field in ("s_counts", "weight_power"):
        if not 0 <= getattr(settings, field) < float("inf"):
            raise InputError(f"{field} = {getattr(settings, field)}: give a number from 0")
    for field in ("cycle", "draws"):
        if getattr(settings, field) < 1:
            raise InputError(f"{field} = {getattr(settings, field)}: give a number above 0")
    recorrupts = settings.name.startswith("gr2r")
    if settings.noisiest:
        _check_noisiest(settings, noise, recorrupts)
    if settings.name in SCORE_MATCHING:
        if settings.name == "r2r" and not isinstance(noise, Gaussian):
            raise InputError("objective 'r2r': for gaussian noise only")
        return SCORE_MATCHING[settings.name](settings)
    if recorrupts:
        _check_range(settings.s_min, settings.s_max)
        check_levels(noise, settings.s_min, settings.s_max)
    elif settings.s_max or settings.s_min:
        raise InputError(f"s_min = {settings.s_min}, s_max = {settings.s_max}: {settings.name} adds no noise of its own; leave them out")
    levels = (settings.s_max, settings.s_min, settings.noisiest)
    return Regression(deviation, REGRESSIONS[settings.name], settings.weight_power, *levels)


def _check_noisiest(settings: Settings, noise: Source, recorrupts: bool) -> None:
    if not (recorrupts and isinstance(noise, Mixture) and len(noise.ranges) == 1):
        raise InputError("noisiest = true: for gr2r, and noise 'mixture' with one range")
    needed = (noise.headroom(noise.ends[0]) - 1) ** 0.5
    if settings.s_max < needed:
        raise InputError(f"noisiest = true, s_max = {settings.s_max}: does not reach the noisiest; give {needed:.3g} or more")


def sure(R: Score, c: torch.Tensor, generator: torch.Generator, s_a: float = 0.01) -> float:
    """Stein's unbiased estimate of the mean squared error of the posterior mean for Gaussian noise, in units of its
    variance, from the noisy c (B, C, H, W) alone: 1 + |R|^2 + 2 div R.

    This is 1 plus the antithetic loss with a Rademacher probe (Ramani et al., IEEE TIP 2008). s_a^2 is its bias, so s_a must
    be far below 1.
    """
    u, level = rademacher(c, generator), torch.full((len(c), 1, 1, 1), s_a, device=c.device)
    return 1 + AntitheticARDAE(s_a, s_a).loss(R, c, u, level).item()
