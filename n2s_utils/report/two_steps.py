"""A network after Tweedie's formula, which notebook 10 tries: what one step found is handed to a second one."""

import torch
from torch import nn

from n2s_utils.network import NETWORKS
from n2s_utils.unet import UNet


class TwoStepUNet(nn.Module):
    """Two U-Nets, trained together by the loss of the second's output alone. The first puts out a score of t; the second sees t and the
    posterior mean of t that Tweedie's formula makes of it, t + deviation^2 N(t), and puts out the score.

    The deviation is 1 / `output_scale`, so that both mean the same units. The other options are those of UNet; what `inputs` has beyond
    `channels`, both see last.
    """

    stride, reach = UNet.stride, 2 * UNet.reach

    def __init__(self, channels: int, output_scale: float, inputs: int | None = None, **options):
        super().__init__()
        self.channels, self.output_scale, inputs = channels, output_scale, inputs or channels
        self.first = UNet(channels, output_scale=output_scale, inputs=inputs, **options)
        self.second = UNet(channels, output_scale=output_scale, inputs=inputs + channels, **options)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        picture, told = t[:, : self.channels], t[:, self.channels :]
        posterior_mean = picture + self.first(t) / self.output_scale**2
        return self.second(torch.cat([picture, posterior_mean, told], 1))


NETWORKS["two-steps"] = TwoStepUNet
