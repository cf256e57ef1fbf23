"""Train a score network, also on noisy pictures of your own.

    n2s train CONFIG [TABLE.KEY=VALUE ...] [--out FOLDER]                          see n2s_utils.training
    n2s train --data FOLDER [--noise MODEL | --sigma S ...] [--minutes M] [--from shipped|scratch] [--out FOLDER]

The second learns from pictures that are noisy, and from nothing else: no noise is added but the loss's own, no clean picture is
asked for. One noise serves them all: given, or estimated from all together. An eighth of the pictures, chosen by name,
is held out, and tells at the end what was won.
"""

import argparse
import hashlib
import math
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from n2s_utils import batch, cli, config, estimation, machine, noise, photo, training, weights
from n2s_utils.cli import InputError
from n2s_utils.clipping import spread, unclipped
from n2s_utils.denoiser import Denoiser
from n2s_utils.feed import Data, Feed
from n2s_utils.files import ROOT
from n2s_utils.network import ScoreNetwork
from n2s_utils.optimisation import Optimisation
from n2s_utils.photo import Photo

Pictures = dict[str, np.ndarray]
MINUTES = 20.0
STEP = 0.05  # of the derivative, in deviations of the noise


class OwnFeed(Feed):
    """The crops of noisy pictures that are at hand: set -> name -> picture y."""

    def __init__(self, sets: dict[str, Pictures], *arguments: Any):
        self.sets = sets
        super().__init__(*arguments)

    def channels_of(self, dataset: str) -> int:
        return next(iter(self.sets[dataset].values())).shape[2]

    def noisy(self, dataset: str, seed: int) -> Pictures:
        return self.sets[dataset]


def photos_of(folder: Path) -> dict[str, Photo]:
    """Name -> photo of every picture in a folder; what cannot be used is named and left out.

    Raises InputError for less than two pictures, and where some are grey and some in colour.
    """
    files, left_out = batch.pictures_of([folder])
    photos: dict[str, Photo] = {}
    for path in files:
        try:
            photos[batch.shown(path)] = photo.read(path)
            for note in photos[batch.shown(path)].notes:
                print(f"{batch.shown(path)}: {note}", flush=True)
        except InputError as error:
            print(f"left out: {error}", flush=True)
    for reason, count in left_out.items():
        print(f"left out: {count} {reason}")
    if len(photos) < 2:
        raise InputError(f"{folder}: {len(photos)} pictures to learn from; give two or more, one of which is held out")
    colour = [name for name, source in photos.items() if source.picture.shape[2] == 3]
    if 0 < len(colour) < len(photos):
        raise InputError(f"{folder}: {len(colour)} pictures are in colour ({colour[0]}), the others grey; train on one kind at a time")
    white = {kind: max(s.white for s in photos.values() if s.dtype == kind) for kind in {s.dtype for s in photos.values()}}
    return {name: _in_units_of(white[source.dtype], source) for name, source in photos.items()}


def _in_units_of(white: float, source: Photo) -> Photo:
    """The photo with the white of its whole series, whose darkest pictures do not tell it."""
    return replace(source, picture=source.picture * np.float32(source.white / white), white=white)


def common_noise(photos: dict[str, Photo], name: str) -> noise.Model:
    """The noise of a folder, its model known, from the patches of all pictures together; printed.

    Raises InputError as estimation.estimate does.
    """
    clipped = any(source.clipped for source in photos.values())
    model = estimation.estimate_common([source.picture for source in photos.values()], name, clipped)
    print(f"estimated: {model}", flush=True)
    return model


def opened(photos: dict[str, Photo], model: noise.Model) -> Pictures:
    """Name -> noisy picture y: what a file has rounded and cut off is drawn anew, about what the shipped weights take for clean."""
    pictures = {name: source.picture for name, source in photos.items()}
    denoise = Denoiser(weights.load_weights(weights.for_every_noise(next(iter(pictures.values())).shape[2])), model)
    for name, source in photos.items():
        if source.clipped:
            y = source.picture
            x = unclipped(denoise(y), model)
            pictures[name] = spread(y, x, model, 1 / source.white, noise.rng("spread", name))
    return pictures


def split(pictures: Pictures) -> tuple[Pictures, Pictures]:
    """The pictures to learn from, and those held out: an eighth, one at least, the first by the hash of their names."""
    by_hash = sorted(pictures, key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = set(by_hash[: max(len(pictures) // 8, 1)])
    return {n: y for n, y in pictures.items() if n not in held_out}, {n: y for n, y in pictures.items() if n in held_out}


def configuration(
    name: str, model: noise.Model, learned: Pictures, held_out: Pictures, minutes: float, shipped: bool, device: str
) -> config.Config:
    """How the shipped weights for every noise were made before their last stage, for one noise and pictures of one's own.

    `shipped`: from weights.score_matching, with little steps; else from fresh ones. Crops as large as the smallest picture allows, up
    to 128.
    """
    pictures = learned | held_out
    channels, side = next(iter(pictures.values())).shape[2], min(min(y.shape[:2]) for y in pictures.values())
    start = weights.score_matching(channels)
    made = weights.load_record(start)["config"]
    crop = min(side, 128) // 32 * 32
    if not crop:
        small = min(pictures, key=lambda name: min(pictures[name].shape[:2]))
        raise InputError(f"{small}: smaller than 32 pixels a side; leave it out")
    there = sum(y.shape[0] * y.shape[1] for y in held_out.values())
    length = {"crops": 0, "minutes": minutes, "crop": crop, "batch": max(4, 4 * 128**2 // crop**2 // 2)}
    rate = {} if shipped else {"learning_rate": Optimisation.learning_rate}
    tables = made | {
        "name": name,
        "start": os.path.relpath(start, ROOT) if shipped else "",
        "noise": {"model": model.name} | model.parameters,
        "data": {"dataset": name, "held_out": f"{name}, held out", "held_out_pixels": min(there, Data.held_out_pixels)},
        "optimisation": made["optimisation"] | length | rate,
        "machine": {"device": device},
    }
    return config.from_tables(tables)


def expected_psnr(network: ScoreNetwork, model: noise.Model, pictures: Pictures) -> float:
    """The PSNR in dB of the denoised pictures that an unbiased estimate of the error expects, no clean picture being known.

    With f(y) the posterior mean and v(y) an unbiased estimate of the variance of the noise, the mean of
    (f(y) - y)^2 - v(y) + 2 v(y) df/dy: Stein's (SURE) for Gaussian noise; for counts and speckle to the first order in df, which is
    some tenths of a dB off where counts are few, the same way before and after a training.
    """
    denoise, errors = Denoiser(network, model), []
    for name, y in pictures.items():
        variance = model.variance(y) / (1 + 1 / model.k if isinstance(model, noise.Gamma) else 1)
        probe = noise.rng("probe", name).choice([-1.0, 1.0], y.shape).astype(np.float32) * np.sqrt(variance)
        slope = probe * (denoise(y + STEP * probe) - denoise(y - STEP * probe)) / (2 * STEP)
        errors.append(np.mean((denoise(y) - y) ** 2 - variance + 2 * slope, dtype=float))
    return -10 * math.log10(max(float(np.mean(errors)), 1e-9))


def train_own(
    folder: Path, given: noise.Model | None, name: str, minutes: float, shipped: bool, out: Path, device: str
) -> tuple[Path, tuple[float, float]]:
    """Train on the noisy pictures of a folder, their noise `given` or that of the model `name`, estimated, from the `shipped` weights
    or fresh ones; returns the path of the weights, and the PSNR expected on the held-out pictures before and after.

    Raises InputError as `photos_of`, `common_noise` and training.train do.
    """
    photos = photos_of(folder)
    model = given or common_noise(photos, name)
    learned, held_out = split(opened(photos, model))
    run = f"own-{folder.resolve().name}"
    chosen = configuration(run, model, learned, held_out, minutes, shipped, device)
    print(f"{len(learned)} pictures to learn from, {len(held_out)} held out: {', '.join(held_out)}", flush=True)
    channels = next(iter(learned.values())).shape[2]
    before = expected_psnr(weights.load_weights(weights.for_every_noise(channels)), model, held_out)
    sets = {chosen.data.dataset: learned, chosen.data.held_out: held_out}
    path = training.train(chosen, out, partial(OwnFeed, sets))
    after = expected_psnr(weights.load_weights(path), model, held_out)
    print(f"expected on the held-out pictures: {before:.2f} dB with the shipped weights, {after:.2f} dB with yours ({after - before:+.2f})")
    return path, (before, after)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a score network: by a configuration, or on noisy pictures of your own.")
    parser.add_argument("config", nargs="?", help="TOML file, such as those of data/weights")
    parser.add_argument("changes", nargs="*", metavar="TABLE.KEY=VALUE", help="replace a field of it, e.g. machine.device=cuda minutes=9")
    parser.add_argument("--data", type=cli.path, metavar="FOLDER", help="noisy pictures of your own, in place of a configuration")
    parser.add_argument("--noise", choices=list(estimation.ESTIMATORS), help="its model, the parameter to be estimated (default gaussian)")
    estimation.add_arguments(parser)
    parser.add_argument("--minutes", type=cli.positive, help=f"of training (default {MINUTES:g})")
    parser.add_argument("--from", dest="start", choices=("shipped", "scratch"), help="the first weights (default shipped)")
    parser.add_argument("--out", type=cli.path, default=training.RUNS, metavar="FOLDER", help="of the runs (default build/runs)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_intermixed_args()


def main() -> None:
    options = _options()
    if bool(options.config) == bool(options.data):
        raise InputError("n2s train: give a configuration, or --data with a folder of noisy pictures")
    given = estimation.told(options)
    own = {"--noise": options.noise, "--minutes": options.minutes, "--from": options.start, "a parameter of the noise": given}
    if options.config and (extra := [name for name, value in own.items() if value is not None]):
        raise InputError(f"{extra[0]}: for --data; a configuration says it itself, or give a change such as optimisation.minutes=9")
    if options.config:
        training.train_configuration(options.config, options.changes, options.out)
        return
    machine.require_device(options.device)
    minutes, shipped = options.minutes or MINUTES, options.start != "scratch"
    path, _ = train_own(options.data, given, options.noise or "gaussian", minutes, shipped, options.out, options.device)
    print(f"denoise with them: n2s denoise {options.data} --weights {path} --out FOLDER")
