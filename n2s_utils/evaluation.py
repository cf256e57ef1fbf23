"""Measure denoised pictures: PSNR and SSIM, a row for each, and the command that denoises a folder.

    python -m n2s_utils.evaluation --weights FILE --data FOLDER NOISE [--seed K] [--csv FILE] [--pictures FOLDER]
                                   [--recorruptions J [--s-a S_A] | --x8] [--memory GB] [--device DEVICE]
    python -m n2s_utils.evaluation --weights FILE --data FOLDER NOISE|--noise MODEL --noisy --pictures FOLDER

NOISE is --sigma S (Gaussian), --zeta Z (Poisson), both (Poisson and Gaussian) or --k K (Gamma). The first adds noise to the clean
images of FOLDER and prints PSNR and SSIM of each; the second takes images that are noisy already and only writes pictures,
where --noise estimates the parameter of each (and with "auto" the model).
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from skimage.metrics import structural_similarity
from skimage.restoration import denoise_nl_means

from n2s_utils import cli, denoiser, estimation, noise
from n2s_utils.cli import InputError
from n2s_utils.datasets import load_folder
from n2s_utils.files import ROOT, atomic_write, sha256
from n2s_utils.machine import require_device
from n2s_utils.mixture import Mixture
from n2s_utils.weights import load_record

COLUMNS = ["dataset", "image", "method", "noise", "parameter", "known", "seed", "psnr", "ssim", "weights", "weights_sha256"]
MEASURED = [column for column in COLUMNS if column not in ("psnr", "ssim", "weights")]  # what one measurement is of

Denoise = Callable[[np.ndarray], np.ndarray]


def non_local_means(y: np.ndarray, model: noise.Model) -> np.ndarray:
    """The classical baseline on y (H, W, C): scikit-image's non-local means where the noise has unit deviation, told its parameter.

    Patch size, distance and h = 0.6 deviations are those of scikit-image's own example for its fast mode.
    """
    z = model.stabilise(model.coordinate(y))
    output = denoise_nl_means(z, patch_size=5, patch_distance=6, h=0.6, sigma=1.0, fast_mode=True, channel_axis=-1)
    return model.inverse(output.reshape(y.shape))


def psnr(clean: np.ndarray, output: np.ndarray) -> float:
    """PSNR in dB of the output clamped to [0, 1], not rounded; data range 1."""
    error = np.mean((np.clip(output, 0, 1) - clean) ** 2, dtype=np.float64)
    return float(-10 * np.log10(error)) if error else float("inf")


def ssim(clean: np.ndarray, output: np.ndarray) -> float:
    """SSIM (Wang et al. 2004) of the output clamped to [0, 1]: Gaussian window, sigma 1.5, data range 1.

    NaN for a picture smaller than the window of 11x11.
    """
    if min(clean.shape[:2]) < 11:
        return float("nan")
    return float(
        structural_similarity(
            clean,
            np.clip(output, 0, 1),
            data_range=1,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def measurement(dataset: str, image: str, method: str, model: noise.Model, seed: int, origin: dict, known: int = 1) -> dict[str, Any]:
    """What a row of results is of (MEASURED): what was denoised how, from which noise seed and weights (`origin_of`).

    `known` is 0 where the parameter of the noise was estimated.
    """
    of = {"dataset": dataset, "image": image, "method": method, "noise": model.name, "parameter": model.parameter}
    return of | {"known": known, "seed": seed} | origin


def result_row(of: dict[str, Any], clean: np.ndarray, output: np.ndarray) -> dict[str, Any]:
    """One row of results (COLUMNS): a `measurement`, and how well it went."""
    return of | {"psnr": round(psnr(clean, output), 4), "ssim": round(ssim(clean, output), 5)}


def origin_of(weights: Path | None) -> dict[str, str]:
    """The columns of a result row that name its weights file, empty where there is none."""
    return {"weights": weights.name if weights else "", "weights_sha256": sha256(weights) if weights else ""}


def evaluate(
    dataset: str,
    pictures: Iterable[tuple[str, np.ndarray]],
    model: noise.Model,
    method: str,
    denoise: Denoise,
    seeds: Iterable[int],
    weights: Path | None = None,
    recorded: pd.DataFrame | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield a result row per clean (name, picture) and noise seed, as they are measured.

    The noise is a pure function of data set, name, noise model and seed. `denoise` maps a noisy picture to a clean one;
    `weights` is the file it came from. A row that stands in `recorded` (COLUMNS) already, of the same noise, picture, seed,
    method and weights, is given again and not measured.
    """
    origin, known = origin_of(weights), _by_key(recorded)
    for name, clean in pictures:
        for seed in seeds:
            of = measurement(dataset, name, method, model, seed, origin)
            yield known.get(_key(of)) or result_row(of, clean, denoise(noise.realization(clean, model, dataset, name, seed)))


def evaluate_unknown(
    dataset: str,
    pictures: Iterable[tuple[str, np.ndarray]],
    model: noise.Model,
    method: str,
    denoiser_of: Callable[[noise.Model], Denoise],
    weights: Path,
    recorded: pd.DataFrame | None = None,
    estimate: Callable[[np.ndarray], noise.Model] | None = None,
) -> Iterator[dict[str, Any]]:
    """The same with the parameter of the noise estimated from each noisy picture, one noise seed (0): rows with `known` 0 and the
    parameter that was found, in a column `estimate`.

    `estimate` maps a noisy picture to its noise; None: estimation.estimate for the model, its name known. `denoiser_of` makes
    the denoiser for what was found.
    """
    origin, known = origin_of(weights), _by_key(recorded)
    estimate = estimate or partial(estimation.estimate, name=model.name)
    for name, clean in pictures:
        of = measurement(dataset, name, method, model, 0, origin, known=0)
        row = known.get(_key(of))
        if row is None:
            y = noise.realization(clean, model, dataset, name, 0)
            found = estimate(y)
            row = result_row(of, clean, denoiser_of(found)(y)) | {"estimate": found.rounded}
        yield row


def _by_key(rows: pd.DataFrame | None) -> dict[tuple[str, ...], dict[Any, Any]]:
    return {} if rows is None else {_key(row): row for row in rows.to_dict("records")}


def _key(row: dict[Any, Any]) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in MEASURED)


def method_of(weights: Path) -> str:
    """The method, as result rows name it, that a weights file was trained with."""
    config = load_record(weights)["config"]
    name = config["objective"]["name"].replace("ar-dae", "noise2score").replace("antithetic", "noise2score-antithetic")
    return name + "-fresh" * config["data"].get("fresh_noise", False)


def read_rows(files: Iterable[Path]) -> pd.DataFrame:
    """The result rows of CSV files, those that exist."""
    options: dict[str, Any] = {"dtype": {"image": str}, "keep_default_na": False, "na_values": {"psnr": "", "ssim": ""}}
    tables = [pd.read_csv(file, **options) for file in files if file.exists()]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def write_rows(rows: Iterable[dict], path: str | Path) -> pd.DataFrame:
    """Write result rows as CSV, whole or not at all, and return them; a column `estimate` stands last, where they have one."""
    table = pd.DataFrame(rows)
    table = table.reindex(columns=[*COLUMNS, *table.columns.difference(COLUMNS)])
    write_table(table, path)
    return table


def write_table(table: pd.DataFrame, path: str | Path) -> None:
    """Write a table as CSV, whole or not at all."""
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def write_picture(picture: np.ndarray, path: str | Path) -> None:
    """Write a picture (H, W, C), clamped to [0, 1], as 8-bit PNG."""
    pixels = (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)
    with atomic_write(path) as temporary:
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(temporary)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Denoise a folder of images and measure the result.")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file, such as one of data/weights")
    parser.add_argument("--data", type=Path, required=True, help="folder of images")
    parser.add_argument("--sigma", type=float, help="level of Gaussian noise, 0-255 scale; with --zeta that of counts beside it")
    parser.add_argument("--zeta", type=float, help="gain of Poisson noise")
    parser.add_argument("--k", type=float, help="shape of Gamma noise")
    parser.add_argument("--noise", choices=[*estimation.ESTIMATORS, "auto"], help="model, the parameter to be estimated; with --noisy")
    parser.add_argument("--noisy", action="store_true", help="the images are noisy already: only write pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the added noise (default 0)")
    parser.add_argument("--csv", type=Path, help="where to write the rows (default build/evaluation/FOLDER.csv)")
    parser.add_argument("--pictures", type=Path, help="folder to write the denoised pictures to")
    average = parser.add_mutually_exclusive_group()
    average.add_argument("--recorruptions", type=int, metavar="J", help="average over J recorrupted inputs")
    average.add_argument("--x8", action="store_true", help="average over the eight flips and turns")
    parser.add_argument("--s-a", type=float, default=0.3, help="of the recorruptions, in units of the noise (default 0.3)")
    parser.add_argument(
        "--memory", type=float, default=denoiser.MEMORY, metavar="GB", help="larger is faster on large pictures (default 1.5)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


def _noise_of(options: argparse.Namespace) -> noise.Model | None:
    """The noise of all pictures; None where it is to be estimated from each."""
    given = {name: getattr(options, name) for name in ("sigma", "zeta", "k") if getattr(options, name) is not None}
    if options.noise:
        if given or not options.noisy:
            raise InputError(f"--noise {options.noise}: estimates the parameter of noisy images; give --noisy, and no parameter")
        return None
    for name, model in noise.MODELS.items():
        if {field.name for field in fields(model)} == given.keys():
            return noise.make(name, **given)
    raise InputError("noise: give --sigma, --zeta, --k, or --zeta and --sigma together, or --noise to estimate it")


def _way_of(options: argparse.Namespace, model: noise.Model) -> tuple[denoiser.Denoiser, Denoise, str]:
    """The denoiser, the way it is used, and the suffix of the method's name; warns of noise that the weights did not see."""
    loaded = denoiser.load(options.weights, model, device=require_device(options.device))
    single = denoiser.Denoiser(loaded.network, model, options.memory)
    trained = denoiser.trained_noise(options.weights)
    if isinstance(trained, Mixture):
        if missed := trained.misses(model):
            print(f"warning: {missed}, which {options.weights.name} was trained for")
    elif trained != model and not options.noise:
        print(f"note: {options.weights.name} was trained on {trained}; used on {model} by a change of variables")
    if options.recorruptions is not None:
        draws = options.recorruptions
        return single, lambda y: denoiser.recorrupted(single, y, options.s_a, draws, noise.rng("recorruption")), "-recorrupted"
    return (single, partial(denoiser.x8, single), "-x8") if options.x8 else (single, single, "")


def _warn_if_not_counts(name: str, picture: np.ndarray, model: noise.Poisson) -> None:
    counts = model.coordinate(picture)
    if (off := float(np.mean(np.abs(counts - counts.round()) > 0.01))) > 0.01:
        print(f"warning: {name}: {off:.0%} of its values are no multiples of zeta {model.zeta:g}: not counts of that gain")


def _denoise_noisy(options: argparse.Namespace, model: noise.Model | None) -> None:
    """Write the denoised pictures; a picture that cannot be denoised is named, and does not cost the others."""
    refused, told = [], _way_of(options, model)[1] if model else None
    estimate = estimation.choose if options.noise == "auto" else partial(estimation.estimate, name=options.noise)
    for name, picture in load_folder(options.data, load_record(options.weights)["channels"]):
        try:
            found = model or estimate(picture)
            if isinstance(model, noise.Poisson) and not model.read_variance:
                _warn_if_not_counts(name, picture, model)
            denoise = told or _way_of(options, found)[1]
            write_picture(denoise(picture), options.pictures / f"{name}.png")
        except InputError as error:
            refused.append(name)
            print(f"{name}: left out: {error}", flush=True)
            continue
        print(f"{name}: written" + f", estimated {found}" * (model is None), flush=True)
    if refused:
        raise InputError(f"{len(refused)} pictures were left out: {', '.join(refused)}")


def main() -> None:
    options = _options()
    model = _noise_of(options)
    if options.pictures and options.pictures.resolve() == options.data.resolve():
        raise InputError(f"{options.pictures}: holds the input; give another folder to --pictures")
    if options.noisy and not options.pictures:
        raise InputError("--noisy: there is no clean image to measure against; give --pictures a folder for the results")
    if options.noisy:
        return _denoise_noisy(options, model)
    assert model
    single, denoise, suffix = _way_of(options, model)
    dataset, method, origin = options.data.resolve().name, method_of(options.weights) + suffix, origin_of(options.weights)
    rows = []
    for name, picture in load_folder(options.data, single.network.channels):
        output = denoise(noise.realization(picture, model, dataset, name, options.seed))
        if options.pictures:
            write_picture(output, options.pictures / f"{name}.png")
        rows.append(result_row(measurement(dataset, name, method, model, options.seed, origin), picture, output))
        print(f"{name}: PSNR {rows[-1]['psnr']:.2f} dB, SSIM {rows[-1]['ssim']:.4f}", flush=True)
    table = write_rows(rows, options.csv or ROOT / "build" / "evaluation" / f"{dataset}.csv")
    print(f"mean of {len(table)}: PSNR {table.psnr.mean():.2f} dB, SSIM {table.ssim.mean():.4f}")


if __name__ == "__main__":
    cli.run(main)
