"""The faults of the earlier reproduction that notebook 07 studies, and its way of measuring.

They are what angelac345/Noise2Score-Reproduce does; none of it is part of the method.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from n2s_utils import noise
from n2s_utils.cli import InputError
from n2s_utils.datasets import Crops, noisy_pictures, require_size
from n2s_utils.evaluation import psnr
from n2s_utils.feed import Data, Feed
from n2s_utils.mixture import Source
from n2s_utils.network import NETWORKS
from n2s_utils.report.variants import EstimatedMixture, varied
from n2s_utils.unet import UNet

SLIPPED = (0, 2, 3, 5)  # the pictures that its flipped copies came from


class OneSidedUNet(UNet):
    """A U-Net that ends in a ReLU: no score below zero."""

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return F.relu(super().forward(y))


NETWORKS["unet-relu-output"] = OneSidedUNet


@dataclass(frozen=True)
class Faults:
    """Those of the training pictures."""

    sigma_divided_twice: bool = False  # noise of sigma / 255 on the 0-255 scale: almost clean pictures
    clip_noisy: bool = False  # noisy pictures clamped to [0, 1]
    cut_once: int = 0  # one square of this side of each picture is all that is ever seen; 0: all of it
    slipped_flips: bool = False  # see SlippedCrops


class FaultyFeed(Feed):
    """A feed with `faults`, or with a variant of the noise (a key of variants.VARIANTS)."""

    def __init__(self, data: Data, source: Source, *arguments: Any, faults: Faults, variant: str = "", **options: Any):
        self.faults, self.truth = faults, source
        super().__init__(data, varied(source, variant), *arguments, **options)

    def noisy(self, dataset: str, seed: int) -> dict[str, np.ndarray]:
        model = self.truth if isinstance(self.noise, EstimatedMixture) else self.noise
        if self.faults.sigma_divided_twice:
            assert isinstance(model, noise.Gaussian)
            model = noise.Gaussian(model.sigma / 255)
        pictures = noisy_pictures(dataset, model, seed)
        if self.faults.clip_noisy and dataset != self.data.held_out:
            pictures = {name: y.clip(0, 1) for name, y in pictures.items()}
        if isinstance(self.noise, EstimatedMixture):
            self.noise.learn(dataset, pictures)
        return pictures

    def training_crops(self, pictures: dict[str, np.ndarray]) -> Crops:
        if self.faults.cut_once:
            pictures = cut_once(pictures, self.faults.cut_once)
        if self.faults.slipped_flips:
            return SlippedCrops(self.kept(pictures), self.crop, self.device)
        return super().training_crops(pictures)


def cut_once(pictures: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """One square of side `size` of each picture, at a place that follows from the picture's name.

    Raises InputError naming a picture that is smaller.
    """
    squares = {}
    for name, picture in pictures.items():
        require_size(name, picture, size)
        rng = noise.rng("cut", name)
        top, left = (int(rng.integers(side - size + 1)) for side in picture.shape[:2])
        squares[name] = picture[top : top + size, left : left + size]
    return squares


class SlippedCrops(Crops):
    """Crops without flips and turns but for a second half of the set: flipped copies of the pictures 0, 2, 3 and 5 only.

    Raises InputError if there is no picture 5 to slip to.
    """

    def __init__(self, pictures: dict[str, np.ndarray], size: int, device: str):
        if len(pictures) <= max(SLIPPED):
            raise InputError(f"slipped_flips = true: {len(pictures)} training images; give {max(SLIPPED) + 1} or more")
        super().__init__(pictures, size, device)

    def choose_pictures(self, count: int, generator: np.random.Generator) -> np.ndarray:
        image = super().choose_pictures(count, generator)
        self._copy = generator.integers(2, size=count)
        return np.where(self._copy, generator.choice(SLIPPED, size=count), image)

    def choose_flips(self, count: int, generator: np.random.Generator) -> np.ndarray:
        return np.stack([0 * self._copy, self._copy, 0 * self._copy])


def evaluate_as_earlier(
    dataset: str,
    pictures: list[tuple[str, np.ndarray]],
    model: noise.Model,
    denoise: Callable[[np.ndarray], np.ndarray],
    draws: int,
    size: int = 128,
) -> np.ndarray:
    """Mean PSNR in dB of each of `draws` evaluations (draws,) in the way of angelac345/Noise2Score-Reproduce.

    One random crop of side `size`, or all of a smaller picture, is all that is denoised of each (name, picture).
    CBSD68 has one noisy version of each picture, clipped and rounded to 8 bits; other sets have new noise at each
    evaluation, left as it is.
    """
    fixed = {}
    if dataset == "CBSD68":
        fixed = {name: quantised(noise.realization(clean, model, dataset, name, seed=0)) for name, clean in pictures}
    means = []
    for draw in range(draws):
        rng, values = noise.rng("earlier", dataset, draw), []
        for name, clean in pictures:
            top, left = (int(rng.integers(max(side - size, 0) + 1)) for side in clean.shape[:2])
            place = np.s_[top : top + size, left : left + size]
            y = fixed[name][place] if fixed else model.sample(clean[place], rng)
            values.append(psnr(clean[place], denoise(y)))
        means.append(np.mean(values))
    return np.array(means)


def quantised(y: np.ndarray) -> np.ndarray:
    """A noisy picture as an 8-bit file keeps it: clipped to [0, 1] and rounded to 1/255."""
    return (y.clip(0, 1) * 255).round().astype(np.float32) / 255
