"""Two noisy pictures from one: Generalized Recorrupted-to-Recorrupted (Monroy et al., CVPR 2025).

The first is noisier than y, with noise of the same model and f = 1 + s_a^2 times the variance, as `noisier` says; the second has
noise of f / s_a^2 times the variance. Both have the mean x, and given x they are independent, so that

    E|x(y_1) - y_2|^2 = E|x(y_1) - x|^2 + a constant:

what makes y_2 of y_1 is the posterior mean, learned from noisy pictures alone.

    Gaussian   y_1 = y + s_a std u,      y_2 = y - std u / s_a,               u ~ N(0, 1)
    Poisson    y_1 = f zeta m,           y_2 = f / s_a^2 zeta (n - m),        m ~ Binomial(n, 1 / f) of the counts n = y / zeta
    Gamma      y_1 = f y b,              y_2 = f / s_a^2 y (1 - b),           b ~ Beta(k / f, s_a^2 k / f)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.distributions import Beta, Binomial

from n2s_utils.cli import InputError
from n2s_utils.mixture import Mixture, PerCrop, Source
from n2s_utils.noise import Gamma, Gaussian, Model, Poisson

Pair = tuple[torch.Tensor, torch.Tensor]


def noisier(model: Model, s_a: float) -> Model:
    """The noise of y_1."""
    f = 1 + s_a**2
    if isinstance(model, Gaussian):
        return Gaussian(model.sigma * f**0.5)
    return Gamma(model.k / f) if isinstance(model, Gamma) else Poisson(model.zeta * f)


def recorrupt(y: torch.Tensor, noise: PerCrop, s_a: torch.Tensor, seed: int) -> Pair:
    """y_1 and y_2 of noisy crops y (B, C, H, W), s_a (B, 1, 1, 1) above 0; their random numbers are those of `seed`."""
    first, second = torch.empty_like(y), torch.empty_like(y)
    # The distributions of torch take no generator of their own.
    with torch.random.fork_rng([y.device] if y.is_cuda else []):
        torch.manual_seed(seed)
        for model, crops in noise.by_kind(len(y), y.device):
            one, other = _PAIRS[type(model)](y.index_select(0, crops), model, s_a.index_select(0, crops))
            first.index_copy_(0, crops, one), second.index_copy_(0, crops, other)
    return first, second


def _gaussian(y: torch.Tensor, model: Gaussian, s_a: torch.Tensor) -> Pair:
    u = torch.randn_like(y)
    return y + s_a * model.std * u, y - model.std * u / s_a


def _poisson(y: torch.Tensor, model: Poisson, s_a: torch.Tensor) -> Pair:
    f, counts = 1 + s_a**2, (y / model.zeta).round()
    kept = Binomial(counts, 1 / f).sample()
    return f * model.zeta * kept, f / s_a**2 * model.zeta * (counts - kept)


def _gamma(y: torch.Tensor, model: Gamma, s_a: torch.Tensor) -> Pair:
    f = 1 + s_a**2
    share = Beta((model.k / f).expand_as(y), (s_a**2 * model.k / f).expand_as(y)).sample()
    return f * y * share, f / s_a**2 * y * (1 - share)


_PAIRS: dict[type, Callable[[torch.Tensor, Any, torch.Tensor], Pair]] = {Gaussian: _gaussian, Poisson: _poisson, Gamma: _gamma}


def check_levels(noise: Source, s_min: float, s_max: float) -> None:
    """Raises InputError for noise that no pair is known of, and where s_a may leave Gamma noise no shape above 1."""
    if not isinstance(noise, Mixture) and type(noise) not in _PAIRS:
        raise InputError(f"{noise.name} noise: no two pictures can be made from one; choose another objective than gr2r")
    # In a mixture s_a is bounded by the ranges, but for s_min.
    if isinstance(noise, Mixture):
        least = noise.k[0] / (1 + s_min**2) if noise.k else 2
    else:
        least = noise.k / (1 + s_max**2) if isinstance(noise, Gamma) else 2
    if least <= 1:
        raise InputError(f"s_min = {s_min}, s_max = {s_max}: leaves Gamma noise a shape of {least:.3g}; give less, or a larger k")
