"""The U-Net of Noise2Noise (Lehtinen et al., ICML 2018, appendix A).

It has no final activation: a score takes both signs, and a ReLU there would let the
denoiser only brighten (notebook 03 draws the network layer by layer).
"""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from n2s_utils.cli import InputError

KINKS = ("leaky", "softplus", "silu")


class LeakyReLU(nn.Module):
    """Leaky ReLU of slope 0.1, its kink rounded over about `width` w on the scale of the input x:

    leaky:    0.1 x + 0.9 max(x, 0)
    softplus: 0.1 x + 0.9 w log(1 + exp(x / w))
    silu:     0.1 x + 0.9 x / (1 + exp(-x / w))

    A kink between y - s_a u and y + s_a u puts a jump into the antithetic loss's gradient (notebook 06).
    Raises InputError for an unknown kink, or a width that is not above 0 where one is needed.
    """

    def __init__(self, kink: str, width: float):
        super().__init__()
        if kink not in KINKS:
            raise InputError(f"kink = {kink!r}: choose one of {', '.join(KINKS)}")
        if kink != "leaky" and not 0 < width < float("inf"):
            raise InputError(f"kink_width = {width}: give a number above 0 for a {kink} kink")
        self.kink, self.width = kink, width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kink == "leaky":
            return F.leaky_relu(x, 0.1, inplace=True)
        if self.kink == "silu":
            return torch.add(0.1 * x, F.silu(x / self.width), alpha=0.9 * self.width)
        # CUDA's autocast gives softplus in float32, and lerp refuses mixed types.
        return torch.lerp(x, F.softplus(x, 1 / self.width).to(x.dtype), 0.9)


def _conv(inputs: int, outputs: int, activation: nn.Module) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, a=0.1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, activation)


class UNet(nn.Module):
    """Pictures (B, channels, H, W) -> the same shape, H and W multiples of `stride`.

    `channels` is 1 (grey) or 3 (colour), `width` the feature maps of an encoder's block. With `shared_blocks` the encoder's
    blocks from the second on are one block, and so are the decoder's (as in the code of Kim & Ye).
    """

    stride = 32  # five 2x poolings
    # Pixels of context an output pixel can see, two convolutions a scale (one in the inner ones) and the poolings. Beyond it
    # nothing changes an output, which is what makes exact tiling possible.
    reach = 158

    def __init__(
        self,
        channels: int,
        shared_blocks: bool = False,
        output_scale: float = 10.0,
        kink: str = "leaky",
        kink_width: float = 0.05,
        width: int = 48,
        inputs: int | None = None,
    ):
        """`inputs` is the channels that it sees (None: `channels`)."""
        super().__init__()
        self.channels, self.output_scale = channels, output_scale
        inputs, w = inputs or channels, width
        self.activation = LeakyReLU(kink, kink_width)
        conv = partial(_conv, activation=self.activation)
        self.encoder = nn.ModuleList([nn.Sequential(conv(inputs, w), conv(w, w))] + [conv(w, w) for _ in range(4)])
        self.bottom = conv(w, w)
        self.decoder = nn.ModuleList(nn.Sequential(conv(seen, 2 * w), conv(2 * w, 2 * w)) for seen in (2 * w, 3 * w, 3 * w, 3 * w))
        if shared_blocks:
            for i in (2, 3, 4):
                self.encoder[i] = self.encoder[1]
            for i in (2, 3):
                self.decoder[i] = self.decoder[1]
        self.head = nn.Sequential(
            conv(2 * w + inputs, 4 * w // 3), conv(4 * w // 3, 2 * w // 3), nn.Conv2d(2 * w // 3, channels, 3, padding=1)
        )

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
        return self.output_scale * self.head(x).float()


def _upsample(x: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")
