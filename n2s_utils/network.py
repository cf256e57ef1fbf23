"""The score network: any U-Net, preconditioned, so that it serves every noise model and every parameter of it."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from n2s_utils.cli import InputError
from n2s_utils.mixture import Noise, variance_at
from n2s_utils.noise import REFERENCE
from n2s_utils.unet import UNet

# Modules from (B, inputs, H, W) to (B, channels, H, W), H and W multiples of their `stride`, whose outputs depend on pixels at most
# `reach` away, built from `channels`, the fields of Architecture from output_scale to width, and `inputs` if more than the channels.
# A further network is one more entry.
NETWORKS: dict[str, type] = {"unet": UNet}


@dataclass(frozen=True)
class Architecture:
    """The table [network] of a configuration, and what a weights file's record says of its network.

    `deviation` is that of the noise in what the network sees. A fresh network puts out about 0.1, while the score of
    noise of deviation 0.1 has a magnitude near 10: `output_scale` spares Adam the climb.
    """

    name: str = "unet"  # a key of NETWORKS
    deviation: float = 0.1
    output_scale: float = 10.0
    kink: str = "softplus"  # of the activations, see unet.LeakyReLU
    kink_width: float = 0.05
    shared_blocks: bool = False
    width: int = 48  # feature maps of an encoder's block
    skewness: bool = False  # whether the network is told that of the noise, see ScoreNetwork

    def build(self, channels: int) -> "ScoreNetwork":
        """Fresh weights, from torch's generator; raises InputError for a value that makes no network."""
        if self.name not in NETWORKS:
            raise InputError(f"network {self.name!r}: choose one of {', '.join(NETWORKS)}")
        for field in ("deviation", "output_scale"):
            if not 0 < getattr(self, field) < float("inf"):
                raise InputError(f"{field} = {getattr(self, field)}: give a number above 0")
        if self.width < 3:
            raise InputError(f"width = {self.width}: give a whole number from 3")
        options = {name: value for name, value in asdict(self).items() if name not in ("name", "deviation", "skewness")}
        if self.skewness:
            options["inputs"] = channels + 1
        return ScoreNetwork(NETWORKS[self.name](channels, **options), self.deviation, self.skewness)

    def lacks(self, built: dict[str, Any]) -> str:
        """What of a start, `built` as its record says, this network would have to share, as a configuration has it; "" if nothing."""
        fixed = ["name", "deviation", "output_scale", "shared_blocks", "width"]
        if built.get("skewness"):  # one that was not told it serves either
            fixed.append("skewness")
        return " and ".join(f"{key} = {json.dumps(built[key])}" for key in fixed if key in built and built[key] != getattr(self, key))


class ScoreNetwork(nn.Module):
    """The score of a noisy picture in its coordinate c, by the change of variables t = T(c) = deviation z(c):

    R(c) = T'(c) N(T(c)) + (log T')'(c), N the network.

    So N learns the score of t, in which the noise has one deviation for every model, parameter and brightness (as the
    preconditioning of Karras et al. 2022 does for Gaussian noise), and weights trained at one noise are a start for every other.
    Of deviation alone, Gamma noise looks like any other, but it is skewed: told its `skewness`, N sees beside t one more channel with
    skewness(c) / deviation in every pixel.
    `regression` says that the weights come from regression: what they put out is read by noise.regression_mean.
    """

    def __init__(self, network: nn.Module, deviation: float, skewness: bool = False):
        super().__init__()
        self.network, self.deviation, self.skewness, self.regression = network, deviation, skewness, False
        self.channels, self.stride, self.reach = (int(getattr(network, name)) for name in ("channels", "stride", "reach"))

    def forward(self, c: torch.Tensor, noise: Noise) -> torch.Tensor:
        """Score of c (B, channels, H, W), of the same shape, H and W multiples of the network's stride."""
        t = self.deviation * noise.stabilise(c)
        if self.skewness:
            t = torch.cat([t, noise.skewness(c[:, :1]) / self.deviation], 1)
        return self.deviation * noise.slope(c) * self.network(t) + noise.curvature(c)

    def start_from(self, other: "ScoreNetwork") -> None:
        """Take over its weights; where it was not told the skewness and this one is, those of that channel are 0."""
        state, own = other.network.state_dict(), self.network.state_dict()
        for name, value in state.items():
            if own[name].shape != value.shape:
                # The channel of the skewness is the last that a convolution sees.
                state[name] = torch.zeros_like(own[name])
                state[name][:, : value.shape[1]] = value
        self.network.load_state_dict(state)

    def weight(self, c: torch.Tensor, noise: Noise, power: float = 0.0) -> torch.Tensor:
        """(a / REFERENCE)^power / T'(c)^2 with a the variance of the noise at the brightness of c.

        Score matching weighted so is measured in units of N; power 0 counts every brightness and noise level alike, 1 as the
        squared error of the picture does.
        """
        weight = 1 / (self.deviation * noise.slope(c)) ** 2
        if not power:
            return weight
        return (variance_at(noise, c) / REFERENCE) ** power * weight
