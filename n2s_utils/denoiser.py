"""From a noisy picture to the posterior mean of the clean one: weights and noise make a denoiser."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from n2s_utils import cli, noise
from n2s_utils.cli import InputError
from n2s_utils.machine import autocast, memory_format_of, placed
from n2s_utils.mixture import Mixture, Source, from_table
from n2s_utils.network import ScoreNetwork
from n2s_utils.weights import load_record, load_weights

MEMORY = 1.5  # GB that denoising may take by default: what Binder gives
# Measured on one process: what it takes before the first picture, and for each pixel of a pass.
BASE_GB, BYTES_PER_PIXEL = 0.4, 1500
LEAST_SIDE = 256  # of a tile, however little memory there is


@dataclass(frozen=True)
class Denoiser:
    """The way of a noisy picture y (H, W, C), float32, for any H and W from 1: coordinate, score, posterior mean.

    A picture too large for `memory` GB goes through in tiles, each with as much surrounding as the network can see, so that no
    seam exists. `precision` is that of the network's pass (fp32, or bf16 autocast).
    """

    network: ScoreNetwork
    noise: noise.Model
    memory: float = MEMORY
    precision: str = "fp32"

    def __call__(self, y: np.ndarray) -> np.ndarray:
        """The posterior mean, of the shape of y; raises InputError where y cannot be a picture with this noise."""

        def posterior_mean(y: np.ndarray) -> np.ndarray:
            c = self.noise.coordinate(y)
            return (self.noise.regression_mean if self.network.regression else self.noise.posterior_mean)(c, self._pass(c))

        return self._in_tiles(y, posterior_mean)

    def score(self, c: np.ndarray) -> np.ndarray:
        """The network's score of c (H, W, C), of the same shape."""
        return self._in_tiles(c, self._pass)

    @property
    def margin(self) -> int:
        """Pixels around a tile that its scores depend on, in whole strides, so that the poolings fall where they would."""
        return -(-self.network.reach // self.network.stride) * self.network.stride

    def tile(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what one pass yields of a picture of that size: all of it, or as much as memory allows."""
        picture = 8 * self.network.channels * height * width  # itself and the result, float32
        pixels, stride = ((self.memory - BASE_GB) * 1e9 - picture) / BYTES_PER_PIXEL, self.network.stride
        if height * width <= pixels:
            return height, width
        side = max(int(max(pixels, 0) ** 0.5 - 2 * self.margin) // stride * stride, LEAST_SIDE)
        parts = -(-height // side), -(-width // side)
        # Of equal size, or the last ones would be narrow and nearly all margin.
        return -(-height // parts[0] // stride) * stride, -(-width // parts[1] // stride) * stride

    def _in_tiles(self, picture: np.ndarray, work: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """`work` done on the picture (H, W, C), tile by tile; it keeps the shape and sees no further than `margin`.

        Where memory does not suffice, tiles half as high and wide are tried; raises InputError where the least are too large.
        """
        stride, (down, across) = self.network.stride, self.tile(*picture.shape[:2])
        while True:
            try:
                return self._by(down, across, picture, work)
            except (MemoryError, RuntimeError) as error:
                if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                    raise
                if max(down, across) <= LEAST_SIDE:
                    least = f"{picture.shape[1]}x{picture.shape[0]}: out of memory, even in tiles of {across}x{down}"
                    raise InputError(f"{least}; end other programs, or cut the picture into parts") from None
            down, across = (max(-(-side // 2 // stride) * stride, stride) for side in (down, across))

    def _by(self, down: int, across: int, picture: np.ndarray, work: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        (height, width), margin = picture.shape[:2], self.margin
        places = [(top, left) for top in range(0, height, down) for left in range(0, width, across)]
        result = np.empty_like(picture)
        for top, left in cli.progress(places, len(places), "tiles") if len(places) > 1 else places:
            above, before = min(top, margin), min(left, margin)
            part = picture[top - above : top + down + margin, left - before : left + across + margin]
            inner = work(part)[above : above + down, before : before + across]
            result[top : top + down, left : left + across] = inner
        return result

    @torch.inference_mode()
    def _pass(self, c: np.ndarray) -> np.ndarray:
        """One pass of the network, c reflected up to whole strides."""
        (height, width), stride = c.shape[:2], self.network.stride
        padded = np.pad(c, ((0, -height % stride), (0, -width % stride), (0, 0)), mode="reflect")
        device = next(self.network.parameters()).device
        layout = memory_format_of(device.type, self.precision)
        tensor = torch.from_numpy(padded.transpose(2, 0, 1)[None]).to(device).contiguous(memory_format=layout)
        with autocast(device.type, self.precision):
            score = self.network(tensor, self.noise)
        return score[0].permute(1, 2, 0).cpu().numpy()[:height, :width]


def load(path: str | Path, model: noise.Model, channels: int | None = None, device: str = "cpu") -> Denoiser:
    """The denoiser that a weights file makes for a noise model; raises InputError where it was trained for others alone.

    A parameter other than that of the training is served by a change of variables (see network.ScoreNetwork).
    """
    network, trained = load_weights(path, channels), trained_noise(path)
    mixed = isinstance(trained, Mixture) and model.parameters.keys() <= trained.ranges.keys()
    if not mixed and trained.name != model.name:
        raise InputError(f"{path}: trained for {trained.name} noise, asked to denoise {model.name}; use weights for {model.name} noise")
    return Denoiser(placed(network, device, "fp32"), model)


def trained_noise(path: str | Path) -> Source:
    """The noise that a weights file was trained for: what it saw, be it made from pictures of less noise (objectives.Settings.noisiest).

    Raises InputError where its record does not say it.
    """
    try:
        config = load_record(path)["config"]
        seen = from_table(config["noise"])
        return seen.ends[1] if isinstance(seen, Mixture) and config.get("objective", {}).get("noisiest") else seen
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(f"{Path(path).with_suffix('.json')}: does not say which noise the weights saw ({error})") from None


def recorrupted(denoiser: Denoiser, y: np.ndarray, s_a: float, draws: int, rng: np.random.Generator) -> np.ndarray:
    """For Gaussian noise, the mean over `draws` of the Tweedie step from v = c + s_a u: v + (1 + s_a^2) R(v), u ~ N(0, I).

    What a network trained at s_a > 0, in units of the noise, learned is the score of that recorrupted picture. Raises
    InputError if `draws` is below 1 or s_a is not a finite number above 0.
    """
    if draws < 1 or not 0 < s_a < np.inf:
        raise InputError(f"recorruptions = {draws}, s_a = {s_a}: give 1 or more recorruptions and an s_a above 0")
    if not isinstance(denoiser.noise, noise.Gaussian):
        raise InputError(f"recorruptions: for gaussian noise only, not {denoiser.noise.name}")
    c, outputs = denoiser.noise.coordinate(y), []
    for _ in range(draws):
        v = c + (s_a * rng.standard_normal(c.shape)).astype(np.float32)
        outputs.append(denoiser.noise.posterior_mean(v, (1 + s_a**2) * denoiser.score(v)))
    return np.mean(outputs, axis=0)


def as_published(denoiser: Denoiser, y: np.ndarray) -> np.ndarray:
    """For counts, the score read by the formula as published (noise.Poisson.published_mean)."""
    assert isinstance(denoiser.noise, noise.Poisson)
    c = denoiser.noise.coordinate(y)
    return denoiser.noise.published_mean(c, denoiser.score(c))


def x8(denoiser: Denoiser, y: np.ndarray) -> np.ndarray:
    """The mean over the eight flips and quarter turns of y (H, W, C), each turned back."""
    outputs = []
    for turns in range(4):
        for flip in (False, True):
            turned = np.rot90(y[:, ::-1] if flip else y, turns)
            output = np.rot90(denoiser(np.ascontiguousarray(turned)), -turns)
            outputs.append(output[:, ::-1] if flip else output)
    return np.mean(outputs, axis=0)
