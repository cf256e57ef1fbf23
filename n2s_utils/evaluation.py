"""Measure denoised pictures: PSNR and SSIM, a row for each, and the command that denoises a folder.

    n2s evaluate --weights FILE --data FOLDER NOISE [--seed K] [--csv FILE] [--pictures FOLDER]
                 [--recorruptions J [--s-a S_A] | --x8] [--memory GB] [--device DEVICE]

adds noise to the clean images of FOLDER (or one file), denoises them and prints PSNR and SSIM of each. NOISE is --sigma S
(Gaussian), --zeta Z (Poisson), both (Poisson and Gaussian) or --k K (Gamma). For pictures that are noisy already: n2s denoise.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from skimage.metrics import structural_similarity
from skimage.restoration import denoise_nl_means

from n2s_utils import batch, cli, denoiser, estimation, noise, photo
from n2s_utils.cli import InputError
from n2s_utils.files import BUILD, atomic_write, sha256
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
    """The method, as result rows name it, that a weights file was trained with: its objective, and `-fresh` for fresh noise."""
    try:
        config = load_record(weights)["config"]
        name, fresh = config["objective"]["name"], config["data"].get("fresh_noise", False)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{weights.with_suffix('.json')}: does not say what the weights were trained with ({error})") from None
    return name + "-fresh" * fresh


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
    parser.add_argument("--weights", type=cli.path, required=True, help="safetensors file, such as one of data/weights")
    parser.add_argument("--data", type=cli.path, required=True, help="folder of images")
    estimation.add_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the added noise (default 0)")
    parser.add_argument("--csv", type=cli.path, help="where to write the rows (default build/evaluation/FOLDER-WEIGHTS-NOISE.csv)")
    parser.add_argument("--pictures", type=cli.path, help="folder to write the denoised pictures to")
    parser.add_argument("--force", action="store_true", help="replace pictures that exist there")
    average = parser.add_mutually_exclusive_group()
    average.add_argument("--recorruptions", type=int, metavar="J", help="average over J recorrupted inputs")
    average.add_argument("--x8", action="store_true", help="average over the eight flips and turns")
    parser.add_argument("--s-a", type=float, default=0.3, help="of the recorruptions, in units of the noise (default 0.3)")
    parser.add_argument(
        "--memory", type=cli.positive, default=denoiser.MEMORY, metavar="GB", help="larger is faster on large pictures (default 1.5)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser.parse_args()


def _way_of(options: argparse.Namespace, model: noise.Model) -> tuple[denoiser.Denoiser, Denoise, str]:
    """The denoiser, the way it is used, and the suffix of the method's name; warns of noise that the weights did not see."""
    loaded = denoiser.load(options.weights, model, device=require_device(options.device))
    single = denoiser.Denoiser(loaded.network, model, options.memory)
    trained = denoiser.trained_noise(options.weights)
    if isinstance(trained, Mixture):
        if missed := trained.misses(model):
            print(f"warning: {missed}, which {options.weights.name} was trained for")
    elif trained != model:
        print(f"note: {options.weights.name} was trained on {trained}; used on {model} by a change of variables")
    if options.recorruptions is not None:
        draws = options.recorruptions
        return (
            single,
            lambda y: denoiser.recorrupted(single, y, options.s_a, draws, noise.rng("recorruption")),
            f"-recorrupted{draws}-{options.s_a:g}",
        )
    return (single, partial(denoiser.x8, single), "-x8") if options.x8 else (single, single, "")


def main() -> None:
    options = _options()
    model = estimation.told(options)
    if model is None:
        raise InputError("noise: give --sigma, --zeta, --k, or --zeta and --sigma together")
    files, _ = batch.pictures_of([options.data])
    jobs = _plan(files, options.pictures)
    single, denoise, suffix = _way_of(options, model)
    dataset, method, origin = options.data.resolve().name, method_of(options.weights) + suffix, origin_of(options.weights)
    name = f"{dataset}-{options.weights.stem}{suffix}-{model.label}-seed{options.seed}.csv"
    path = options.csv or BUILD / "evaluation" / name
    kept = read_rows([path]).to_dict("records")  # of an earlier run: what is measured already is not measured again
    rows: list[dict[Any, Any]] = []
    failed: list[str] = []
    for job in jobs:
        try:
            of = measurement(dataset, job.input.stem, method, model, options.seed, origin) | {"image_sha256": sha256(job.input)}
            row, *_ = *(old for old in kept if of.items() <= old.items()), None
            there = options.pictures and job.output.exists()
            if there and row is None and not options.force:
                raise InputError(f"{job.output}: exists; give --force to replace it, or another --pictures")
            if row is None or (options.pictures and (options.force or not there)):
                row = _measured(job, of, single.network.channels, model, denoise, bool(options.pictures))
                kept = [old for old in kept if not of.items() <= old.items()] + [row]
                write_rows(kept, path)
        except (InputError, OSError) as error:
            failed.append(str(error))
            continue
        rows.append(row)
        print(f"{job.input.stem}: PSNR {row['psnr']:.2f} dB, SSIM {row['ssim']:.4f}", flush=True)
    if rows:
        table = pd.DataFrame(rows)
        print(f"mean of {len(table)}: PSNR {table.psnr.mean():.2f} dB, SSIM {table.ssim.mean():.4f}; rows in {path}")
    if failed:
        raise InputError(f"{len(failed)} of {len(jobs)} pictures could not be measured: {'; '.join(failed)}")


def _plan(files: list[Path], pictures: Path | None) -> list[batch.Job]:
    """Where each denoised picture goes, if anywhere; raises InputError for two of one name."""
    for file in files:
        if [other.stem for other in files].count(file.stem) > 1:
            raise InputError(f"{file}: another picture has the same name but for the suffix; rename one")
    return batch.plan(files, pictures, ".png") if pictures else [batch.Job(file, file) for file in files]


def _measured(job: batch.Job, of: dict[str, Any], channels: int, model: noise.Model, denoise: Denoise, write: bool) -> dict[str, Any]:
    """The row of one picture file, which is denoised, and written if asked for."""
    source = photo.read(job.input)
    if source.picture.shape[2] != channels:
        print(f"{job.input.name}: treated as {'grey' if channels == 1 else 'colour'}, as the weights are", flush=True)
    for note in source.notes:
        print(f"{job.input.name}: {note}", flush=True)
    picture = photo.as_channels(source.picture, channels)
    output = denoise(noise.realization(picture, model, of["dataset"], of["image"], of["seed"]))
    if write:
        write_picture(output, job.output)
    return result_row(of, picture, output)


if __name__ == "__main__":
    cli.run(main)
