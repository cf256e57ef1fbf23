"""Losses that learn the score of noisy images from noisy images alone.

Each objective holds its constants only. `noise_levels` draws one s_a per crop, `loss` compares the
network with its target; both are pure, so the same inputs give the same loss. Shapes: y and u are
(B, C, H, W), s_a is (B, 1, 1, 1) on the [0, 1] intensity scale, the loss is a scalar.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from n2s_utils.cli import InputError


class Objective(Protocol):
    s_max: float
    s_min: float

    def noise_levels(self, crops_seen: int, batch: int, rng: np.random.Generator) -> np.ndarray: ...

    def loss(self, model, y: torch.Tensor, u: torch.Tensor, s_a: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class ARDAE:
    """The paper's loss, E|u + s_a R(y + s_a u)|^2 with u ~ N(0, I) (Lim et al. 2020, as used by Kim & Ye 2021).

    s_a falls linearly from s_max to s_min over the first `ramp` crops of every `cycle` crops, then
    stays, and restarts (the authors' code; an epoch there is 1,200 images x 20 crops).
    """

    s_max: float = 0.05
    s_min: float = 0.001
    ramp = 22_000
    cycle = 24_000

    def __post_init__(self):
        _check_range(self.s_min, self.s_max)

    def noise_levels(self, crops_seen: int, batch: int, rng: np.random.Generator) -> np.ndarray:
        position = (crops_seen + np.arange(batch)) % self.cycle / self.ramp
        return self.s_max + (self.s_min - self.s_max) * np.minimum(position, 1)

    def loss(self, model, y: torch.Tensor, u: torch.Tensor, s_a: torch.Tensor) -> torch.Tensor:
        return (u + s_a * model(y + s_a * u)).square().mean()


@dataclass(frozen=True)
class AntitheticARDAE:
    """AR-DAE averaged over u and -u, divided by s_a^2, without the constant |u|^2 / s_a^2:

    (|R+|^2 + |R-|^2) / 2 + u.(R+ - R-) / s_a, with R+- = R(y +- s_a u), per pixel and channel.

    The term that carried the 1/s_a noise of the plain loss cancels; for small s_a this is implicit
    score matching (Hyvarinen 2005), |R|^2 + 2 div R, the divergence by a central difference. So for
    Gaussian noise std^2 + std^4 loss is SURE: an estimate of the MSE that needs no clean image.
    s_a is log-uniform in [s_min, s_max], drawn per crop.
    """

    s_max: float = 0.05
    s_min: float = 0.01

    def __post_init__(self):
        _check_range(self.s_min, self.s_max)

    def noise_levels(self, crops_seen: int, batch: int, rng: np.random.Generator) -> np.ndarray:
        return self.s_min * (self.s_max / self.s_min) ** rng.random(batch)

    def loss(self, model, y: torch.Tensor, u: torch.Tensor, s_a: torch.Tensor) -> torch.Tensor:
        plus, minus = model(torch.cat([y + s_a * u, y - s_a * u])).chunk(2)
        return ((plus.square() + minus.square()) / 2 + u * (plus - minus) / s_a).mean()


OBJECTIVES = {"ar-dae": ARDAE, "antithetic": AntitheticARDAE}


def make(name: str, s_max: float, s_min: float) -> Objective:
    """The objective called `name`; raises InputError if the name or the range of s_a is bad."""
    if name not in OBJECTIVES:
        raise InputError(f"objective {name!r}: choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name](s_max, s_min)


def _check_range(s_min: float, s_max: float) -> None:
    if not 0 < s_min <= s_max < float("inf"):
        raise InputError(f"s_min = {s_min}, s_max = {s_max}: give 0 < s_min <= s_max")
