"""The network: the U-Net of Noise2Noise (Lehtinen et al., ICML 2018, appendix A).

It has no final activation: a score takes both signs, and a ReLU there would let the
denoiser only brighten (notebook 03 draws the network layer by layer).
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from n2s_utils.cli import InputError

STRIDE = 32  # five 2x poolings: heights and widths must be multiples of it
# The score of an image with noise of standard deviation s has magnitude 1/s, near 10 at sigma 25, where
# a fresh network puts out about 0.1: this spares Adam the climb.
OUTPUT_SCALE = 10.0
# Pixels of context an output pixel can see: (convolutions per scale) x (their spacing), five scales
# and the poolings. Beyond it nothing changes an output, which is what makes exact tiling possible.
RECEPTIVE_RADIUS = 192


class RoundedLeakyReLU(nn.Module):
    """Leaky ReLU of slope 0.1, its kink rounded over about `width`: 0.1 x + 0.9 width log(1 + exp(x / width)).

    A kink between y - s_a u and y + s_a u puts a jump into the antithetic loss's gradient (notebook 06). Width 0
    is the leaky ReLU itself.
    """

    def __init__(self, width: float):
        super().__init__()
        self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.width:
            return F.leaky_relu(x, 0.1, inplace=True)
        return torch.lerp(x, F.softplus(x, 1 / self.width), 0.9)


def _conv(inputs: int, outputs: int, activation: nn.Module) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, a=0.1)
    nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, activation)


class UNet(nn.Module):
    """Score network R: noisy images (B, channels, H, W) -> scores of the same shape, H and W multiples of 32.

    `channels` is 1 (grey) or 3 (colour). With `shared_blocks` the encoder's blocks from the second on
    are one block, and so are the decoder's (as in the code of Kim & Ye). `relu_output` is the fault that
    notebook 07 studies: no score below zero. `kink_width` rounds the activations, on the scale of what they are given.
    """

    def __init__(
        self,
        channels: int,
        shared_blocks: bool = False,
        output_scale: float = OUTPUT_SCALE,
        relu_output: bool = False,
        kink_width: float = 0.0,
    ):
        super().__init__()
        self.channels, self.output_scale, self.relu_output = channels, output_scale, relu_output
        self.activation = RoundedLeakyReLU(kink_width)
        conv = partial(_conv, activation=self.activation)
        self.encoder = nn.ModuleList([nn.Sequential(conv(channels, 48), conv(48, 48))] + [conv(48, 48) for _ in range(4)])
        self.bottom = conv(48, 48)
        self.decoder = nn.ModuleList(nn.Sequential(conv(inputs, 96), conv(96, 96)) for inputs in (96, 144, 144, 144))
        if shared_blocks:
            for i in (2, 3, 4):
                self.encoder[i] = self.encoder[1]
            for i in (2, 3):
                self.decoder[i] = self.decoder[1]
        self.head = nn.Sequential(conv(96 + channels, 64), conv(64, 32), nn.Conv2d(32, channels, 3, padding=1))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        skips, x = [], y
        for block in self.encoder:
            skips.append(x)
            x = F.max_pool2d(block(x), 2)
        x = self.bottom(x)
        for block in self.decoder:
            x = block(torch.cat([_upsample(x), skips.pop()], 1))
        # Under autocast y is wider than x, and cat would widen the whole map.
        x = torch.cat([_upsample(x), skips.pop().to(x.dtype)], 1)
        output = self.output_scale * self.head(x).float()
        return F.relu(output) if self.relu_output else output

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Turn R(y) into factor R(factor y), in place and exactly: where R is the score of z = factor y, that is the score of y.

        With factor = sigma / sigma' a network for Gaussian noise sigma becomes one for sigma' (change of variables);
        all it has not seen are pictures of that contrast.
        """
        last = self.head[-1]
        for parameter in (self.encoder[0][0][0].weight, self.head[0][0].weight[:, -self.channels :], last.weight, last.bias):
            parameter.mul_(factor)


def _upsample(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def require_device(device: str) -> str:
    """`device` (cpu or cuda) itself; raises InputError where it is cuda and this machine has none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device = 'cuda': this machine has no usable CUDA device; use cpu")
    return device
