"""What feeds a training: crops of noisy pictures, in the coordinate of their noise, and what the objective needs beside them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from n2s_utils.cli import InputError
from n2s_utils.datasets import Crops, image_set, load, noisy_pictures
from n2s_utils.mixture import Mixture, Noise, PerCrop, Source
from n2s_utils.noise import Model, Poisson
from n2s_utils.objectives import Objective, Regression, Settings
from n2s_utils.recorruption import noisier, recorrupt

Batch = tuple[torch.Tensor, ...]  # what a loss takes after the network: (c, u, s_a), (c, target) or (c, target, s_a)


@dataclass(frozen=True)
class Data:
    """The table [data] of a configuration."""

    dataset: str = "CBSD400"
    held_out: str = "CBSD32"  # noisy pictures for the held-out loss
    noise_seed: int = 0
    second_seed: int = 0  # of the second realization, for noise2noise; another than noise_seed
    fresh_noise: bool = False  # supervised and noise2noise only: new noise at every step, not one realization per picture
    keep_every: int = 1  # train on every so-many-th picture of the set
    held_out_pixels: int = 64 * 64**2  # about so many, in whole crops

    def __post_init__(self):
        for field in ("noise_seed", "second_seed"):
            if getattr(self, field) < 0:
                raise InputError(f"{field} = {getattr(self, field)}: give a whole number from 0")
        for field in ("keep_every", "held_out_pixels"):
            if getattr(self, field) < 1:
                raise InputError(f"{field} = {getattr(self, field)}: give a number above 0")


class Feed:
    """The crops of a run. Of clean pictures only an objective that asks for them by name is handed any.

    Raises InputError if sets and objective do not fit together.
    """

    def __init__(self, data: Data, noise: Source, objective: Objective, crop: int, settings: Settings, device: str = "cpu"):
        self.data, self.noise, self.objective, self.crop, self.device = data, noise, objective, crop, device
        self.draws, self.s_counts = settings.draws, settings.s_counts
        self.recorrupts = isinstance(objective, Regression) and objective.s_max > 0
        if data.fresh_noise and (objective.needs == "noisy" or self.recorrupts):
            raise InputError("fresh_noise = true: the objective learns from one noisy realization; leave it out")
        if objective.needs == "pair" and data.second_seed == data.noise_seed:
            raise InputError(f"second_seed = {data.second_seed}: a pair needs a second realization; give another than noise_seed")
        self.channels = self.channels_of(data.dataset)
        if self.channels_of(data.held_out) != self.channels:
            raise InputError(f"held_out = {data.held_out!r}: not the channels of {data.dataset!r}")
        pictures = self._coordinates(data.dataset, data.noise_seed)
        self.names = list(self.kept(pictures))
        self.models = [noise.of(data.dataset, name) for name in self.names]
        self.crops = self.training_crops(pictures)
        self.targets = self._targets(data.dataset, data.fresh_noise)
        self.held_out = self._held_out()

    def channels_of(self, dataset: str) -> int:
        """Of the pictures of a set."""
        return image_set(dataset).channels

    def noisy(self, dataset: str, seed: int) -> dict[str, np.ndarray]:
        """Name -> noisy picture y."""
        return noisy_pictures(dataset, self.noise, seed)

    def kept(self, pictures: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Those of a set that are trained on."""
        return dict(islice(pictures.items(), 0, None, self.data.keep_every))

    def training_crops(self, pictures: dict[str, np.ndarray]) -> Crops:
        """Crops of the pictures that are trained on."""
        return Crops(self.kept(pictures), self.crop, self.device)

    @property
    def sha256(self) -> str:
        """Of the noisy training pictures, in c (as they are where two are made from each)."""
        return self.crops.sha256

    def batch(self, seed: int, step: int, size: int, part: slice = slice(None)) -> Batch:
        """The crops of a step, a pure function of (seed, step); `part` of the `size` crops alone, as one process of several takes it."""
        rng = np.random.default_rng([seed, step])
        same_places = copy.deepcopy(rng)
        crops, own = self.crops.batch(size, rng), self._own_noise(seed, step, size)
        target = self.targets.batch(size, same_places) if self.targets else None
        if self.recorrupts:
            return tuple(values[part] for values in self._recorrupted(crops, own, self._levels(own, size, seed, step), target, rng))
        if target is None:
            return self._with_probe(crops, own, rng, step * size, part)
        if self.data.fresh_noise:
            crops = own.coordinate(_fresh(target, own, rng))
            target = target if self.objective.needs == "clean" else _fresh(target, own, rng)
        return crops[part], target[part]

    def noise_of(self, seed: int, step: int, size: int, part: slice = slice(None)) -> Noise:
        """The noise of the same crops, as the loss is handed them."""
        own = self._own_noise(seed, step, size)
        if self.recorrupts:
            own = _noisier(own, self._levels(own, size, seed, step))
        return PerCrop(own.models[part]) if isinstance(own, PerCrop) else own

    def _own_noise(self, seed: int, step: int, size: int) -> Noise:
        """That of the pictures which the crops are cut from."""
        return self._noise_of(self.models, self.crops.choose_pictures(size, np.random.default_rng([seed, step])))

    def _noise_of(self, models: list[Model], chosen: np.ndarray) -> Noise:
        if not isinstance(self.noise, Mixture):
            return self.noise
        return PerCrop([models[picture] for picture in chosen])

    def _levels(self, own: Noise, size: int, *key: int) -> np.ndarray:
        """s_a of recorrupted crops (size,), a pure function of `key`: their noise stays in the ranges of a mixture where it may."""
        assert isinstance(self.objective, Regression)
        bounds = [self.noise.headroom(model) if isinstance(self.noise, Mixture) else np.inf for model in _models(own, size)]
        return self.objective.noise_levels(np.sqrt(np.maximum(np.array(bounds) - 1, 0)), np.random.default_rng([*key, 1]))

    def _recorrupted(self, y: torch.Tensor, own: Noise, levels: np.ndarray, target: torch.Tensor | None, rng: np.random.Generator) -> Batch:
        """(c, target, s_a) of noisy crops y; without clean ones the target is the second picture that was made of each."""
        s_a = torch.from_numpy(levels).float().view(-1, 1, 1, 1).to(y.device)
        first, second = recorrupt(y, PerCrop(_models(own, len(y))), s_a, int(rng.integers(2**63)))
        return _noisier(own, levels).coordinate(first), second if target is None else target, s_a

    def _with_probe(self, c: torch.Tensor, noise: Noise, rng: np.random.Generator, crops_seen: int | None, part: slice) -> Batch:
        """(c, u, s_a), `draws` of u per crop; the levels of held-out crops (`crops_seen` None) are spread over their range."""
        assert not isinstance(self.objective, Regression)
        size = len(c)
        u = self.objective.probe(_repeat(c, self.draws), torch.Generator(c.device).manual_seed(int(rng.integers(2**63))))
        if crops_seen is None:
            levels = np.geomspace(self.objective.s_min, self.objective.s_max, size)
        else:
            levels = self.objective.noise_levels(crops_seen, size, rng)
        if self.s_counts:
            levels = np.where([isinstance(model, Poisson) for model in _models(noise, size)], self.s_counts, levels)
        s_a = torch.from_numpy(levels).float().view(-1, 1, 1, 1).to(c.device)
        u = torch.cat([u[draw * size : (draw + 1) * size][part] for draw in range(self.draws)])
        return _repeat(c[part], self.draws), u, s_a[part].repeat(self.draws, 1, 1, 1)

    def _coordinates(self, dataset: str, seed: int) -> dict[str, np.ndarray]:
        """Name -> noisy picture in c, or as it is where it will be recorrupted."""
        if self.recorrupts:
            return self.noisy(dataset, seed)
        return {name: self.noise.of(dataset, name).coordinate(y) for name, y in self.noisy(dataset, seed).items()}

    def _targets(self, dataset: str, fresh: bool) -> Crops | None:
        if self.objective.needs == "noisy":
            return None
        if self.objective.needs == "clean" or fresh:
            return self.training_crops(dict(load(dataset)))
        return self.training_crops(self.noisy(dataset, self.data.second_seed))

    def _held_out(self) -> Batch:
        """Fixed crops of noisy pictures not trained on, the same for every run."""
        data, size = self.data, max(self.data.held_out_pixels // self.crop**2, 1)
        rng = np.random.default_rng(0)
        same_places = copy.deepcopy(rng)
        pictures = self._coordinates(data.held_out, data.noise_seed)
        of_pictures, target = Crops(pictures, self.crop, self.device), None
        crops = of_pictures.batch(size, rng)
        self.held_out_noise = self._noise_of(
            [self.noise.of(data.held_out, name) for name in pictures], of_pictures.choose_pictures(size, copy.deepcopy(same_places))
        )
        if self.objective.needs != "noisy":
            clean = self.objective.needs == "clean"
            pictures = dict(load(data.held_out)) if clean else self.noisy(data.held_out, data.second_seed)
            target = Crops(pictures, self.crop, self.device).batch(size, same_places)
        if self.recorrupts:
            own, levels = self.held_out_noise, self._levels(self.held_out_noise, size)
            self.held_out_noise = _noisier(own, levels)
            return self._recorrupted(crops, own, levels, target, rng)
        return self._with_probe(crops, self.held_out_noise, rng, None, slice(None)) if target is None else (crops, target)


def _models(noise: Noise, size: int) -> Sequence[Model]:
    """One for each of `size` crops."""
    return noise.models if isinstance(noise, PerCrop) else [noise] * size


def _noisier(own: Noise, levels: np.ndarray) -> PerCrop:
    """The noise of recorrupted crops, `levels` the s_a of each."""
    return PerCrop([noisier(model, s_a) for model, s_a in zip(_models(own, len(levels)), levels.tolist(), strict=True)])


def _fresh(clean: torch.Tensor, noise: Noise, rng: np.random.Generator) -> torch.Tensor:
    noisy = torch.from_numpy(noise.sample(clean.cpu().numpy(), rng))
    return noisy.to(clean.device, memory_format=torch.channels_last)


def _repeat(c: torch.Tensor, times: int) -> torch.Tensor:
    """c (B, C, H, W) `times` after itself, still channels_last, which repeat would drop."""
    return c if times == 1 else torch.cat([c] * times).contiguous(memory_format=torch.channels_last)
