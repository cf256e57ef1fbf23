"""Denoise whole images and measure them.

    python -m n2s_utils.evaluation --weights FILE --data FOLDER --sigma S [--seed K] [--csv FILE] [--pictures FOLDER]
                                   [--recorruptions J [--s-a S_A] | --x8]
    python -m n2s_utils.evaluation --weights FILE --data FOLDER --sigma S --noisy --pictures FOLDER

The first adds noise to the clean images of FOLDER and prints PSNR and SSIM of each; the second takes
images that are noisy already and only writes pictures.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from skimage.restoration import denoise_nl_means

from n2s_utils import cli, noise
from n2s_utils.cli import InputError
from n2s_utils.datasets import load_folder
from n2s_utils.files import ROOT, atomic_write, sha256
from n2s_utils.unet import RECEPTIVE_RADIUS, STRIDE, UNet, require_device
from n2s_utils.weights import load_record, load_weights

TILE = 512  # side of the part that one pass yields of a large picture: under 1.5 GB of memory
COLUMNS = ["dataset", "image", "method", "noise", "parameter", "known", "seed", "psnr", "ssim", "weights", "weights_sha256"]


@torch.inference_mode()
def score(model: UNet, y: np.ndarray, tile: int = TILE) -> np.ndarray:
    """The network's score of a noisy picture y (H, W, C), of the same shape, for any H and W from 1.

    The picture is reflected up to multiples of 32. A large one goes through in tiles of side `tile` (a
    multiple of 32), each with as much surrounding as the network can see, so that no seam exists.
    """
    height, width = y.shape[:2]
    padded = np.pad(y, ((0, -height % STRIDE), (0, -width % STRIDE), (0, 0)), mode="reflect")
    margin = RECEPTIVE_RADIUS
    if padded.shape[0] * padded.shape[1] <= (tile + 2 * margin) ** 2:
        tile = max(padded.shape)  # no larger than a tile with its surroundings: one pass
    device = next(model.parameters()).device
    tensor = torch.from_numpy(padded.transpose(2, 0, 1)[None]).to(device, memory_format=torch.channels_last)
    result = np.empty_like(padded)
    for top in range(0, padded.shape[0], tile):
        for left in range(0, padded.shape[1], tile):
            above, before = min(top, margin), min(left, margin)
            part = tensor[:, :, top - above : top + tile + margin, left - before : left + tile + margin]
            inner = model(part)[0, :, above : above + tile, before : before + tile]
            result[top : top + tile, left : left + tile] = inner.permute(1, 2, 0).cpu().numpy()
    return result[:height, :width]


def denoise(model: UNet, y: np.ndarray, noise_model: noise.Model) -> np.ndarray:
    """The posterior mean of the clean picture given the noisy y (H, W, C), by Tweedie's formula."""
    return noise_model.posterior_mean(y, score(model, y))


def denoise_recorrupted(
    model: UNet, y: np.ndarray, noise_model: noise.Gaussian, s_a: float, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """The mean over `draws` of the Tweedie step from v = y + s_a u: v + (std^2 + s_a^2) R(v), u ~ N(0, I).

    What a network trained at s_a > 0 learned is the score of that recorrupted picture. Raises InputError
    if `draws` is below 1 or s_a is not a finite number above 0.
    """
    if draws < 1 or not 0 < s_a < np.inf:
        raise InputError(f"recorruptions = {draws}, s_a = {s_a}: give 1 or more recorruptions and an s_a above 0")
    both = noise.Gaussian(255 * float(np.hypot(noise_model.std, s_a)))
    recorruption = noise.Gaussian(255 * s_a)
    return np.mean([denoise(model, recorruption.sample(y, rng), both) for _ in range(draws)], axis=0)


def denoise_x8(model: UNet, y: np.ndarray, noise_model: noise.Model) -> np.ndarray:
    """The mean of `denoise` over the eight flips and quarter turns of y (H, W, C), each turned back."""
    outputs = []
    for turns in range(4):
        for flip in (False, True):
            turned = np.rot90(y[:, ::-1] if flip else y, turns)
            output = np.rot90(denoise(model, np.ascontiguousarray(turned), noise_model), -turns)
            outputs.append(output[:, ::-1] if flip else output)
    return np.mean(outputs, axis=0)


def non_local_means(y: np.ndarray, noise_model: noise.Gaussian) -> np.ndarray:
    """The classical baseline on y (H, W, C): scikit-image's non-local means, told the noise level.

    Patch size, distance and h = 0.6 std are those of scikit-image's own example for its fast mode.
    """
    std = noise_model.std
    output = denoise_nl_means(y, patch_size=5, patch_distance=6, h=0.6 * std, sigma=std, fast_mode=True, channel_axis=-1)
    return output.reshape(y.shape)


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


def result_row(
    dataset: str, image: str, method: str, noise_model: noise.Model, seed: int, clean: np.ndarray, output: np.ndarray, origin: dict
) -> dict:
    """One row of results (COLUMNS): what was denoised how, from which noise seed and weights (`origin_of`), and how well."""
    return {
        "dataset": dataset,
        "image": image,
        "method": method,
        "noise": noise_model.name,
        "parameter": noise_model.parameter,
        "known": 1,
        "seed": seed,
        "psnr": round(psnr(clean, output), 4),
        "ssim": round(ssim(clean, output), 5),
    } | origin


def origin_of(weights: Path | None) -> dict:
    """The columns of a result row that name its weights file, empty where there is none."""
    return {"weights": weights.name if weights else "", "weights_sha256": sha256(weights) if weights else ""}


def evaluate(
    dataset: str,
    pictures: Iterable[tuple[str, np.ndarray]],
    noise_model: noise.Model,
    method: str,
    denoiser: Callable[[np.ndarray], np.ndarray],
    seeds: Iterable[int],
    weights: Path | None = None,
) -> Iterator[dict]:
    """Yield a result row per clean (name, picture) and noise seed, as they are measured.

    The noise is a pure function of data set, name, noise model and seed. `denoiser` maps a noisy
    picture to a clean one; `weights` is the file it came from.
    """
    origin = origin_of(weights)
    for name, clean in pictures:
        for seed in seeds:
            output = denoiser(noise.realization(clean, noise_model, dataset, name, seed))
            yield result_row(dataset, name, method, noise_model, seed, clean, output, origin)


def evaluate_as_earlier(
    dataset: str,
    pictures: list[tuple[str, np.ndarray]],
    noise_model: noise.Model,
    denoiser: Callable[[np.ndarray], np.ndarray],
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
        fixed = {name: quantised(noise.realization(clean, noise_model, dataset, name, seed=0)) for name, clean in pictures}
    means = []
    for draw in range(draws):
        rng, values = noise.rng("earlier", dataset, draw), []
        for name, clean in pictures:
            top, left = (int(rng.integers(max(side - size, 0) + 1)) for side in clean.shape[:2])
            place = np.s_[top : top + size, left : left + size]
            y = fixed[name][place] if fixed else noise_model.sample(clean[place], rng)
            values.append(psnr(clean[place], denoiser(y)))
        means.append(np.mean(values))
    return np.array(means)


def quantised(y: np.ndarray) -> np.ndarray:
    """A noisy picture as an 8-bit file keeps it: clipped to [0, 1] and rounded to 1/255."""
    return (y.clip(0, 1) * 255).round().astype(np.float32) / 255


def method_of(weights: Path) -> str:
    """The method, as result rows name it, that a weights file was trained with."""
    config = load_record(weights)["config"]
    name = config["objective"].replace("ar-dae", "noise2score").replace("antithetic", "noise2score-antithetic")
    return name + "-fresh" * config.get("fresh_noise", False)


def write_rows(rows: Iterable[dict], path: str | Path) -> pd.DataFrame:
    """Write result rows as CSV, whole or not at all, and return them."""
    table = pd.DataFrame(rows, columns=COLUMNS)
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


def main() -> None:
    parser = argparse.ArgumentParser(description="Denoise a folder of images and measure the result.")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors file, such as one of data/weights")
    parser.add_argument("--data", type=Path, required=True, help="folder of images")
    parser.add_argument("--sigma", type=float, required=True, help="noise level, 0-255 scale")
    parser.add_argument("--noisy", action="store_true", help="the images are noisy already: only write pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the added noise (default 0)")
    parser.add_argument("--csv", type=Path, help="where to write the rows (default build/evaluation/FOLDER.csv)")
    parser.add_argument("--pictures", type=Path, help="folder to write the denoised pictures to")
    average = parser.add_mutually_exclusive_group()
    average.add_argument("--recorruptions", type=int, metavar="J", help="average over J recorrupted inputs")
    average.add_argument("--x8", action="store_true", help="average over the eight flips and turns")
    parser.add_argument("--s-a", type=float, default=0.03, help="of the recorruptions, on the [0, 1] scale (default 0.03)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()

    noise_model = noise.Gaussian(options.sigma)
    model = load_weights(options.weights).to(require_device(options.device))
    trained = load_record(options.weights)["config"]["parameter"]
    if trained != options.sigma:
        print(f"warning: {options.weights.name} was trained at sigma {trained:g}, not {options.sigma:g}; expect a worse result")
    if options.pictures and options.pictures.resolve() == options.data.resolve():
        raise InputError(f"{options.pictures}: holds the input; give another folder to --pictures")
    if options.noisy and not options.pictures:
        raise InputError("--noisy: there is no clean image to measure against; give --pictures a folder for the results")

    if options.recorruptions is not None:
        draws, s_a, suffix = options.recorruptions, options.s_a, "-recorrupted"

        def denoiser(y):
            return denoise_recorrupted(model, y, noise_model, s_a, draws, noise.rng("recorruption"))
    else:
        average, suffix = (denoise_x8, "-x8") if options.x8 else (denoise, "")

        def denoiser(y):
            return average(model, y, noise_model)

    rows, dataset, method, origin = [], options.data.resolve().name, method_of(options.weights) + suffix, origin_of(options.weights)
    for name, picture in load_folder(options.data, model.channels):
        y = picture if options.noisy else noise.realization(picture, noise_model, dataset, name, options.seed)
        output = denoiser(y)
        if options.pictures:
            write_picture(output, options.pictures / f"{name}.png")
        if options.noisy:
            print(f"{name}: written", flush=True)
            continue
        rows.append(result_row(dataset, name, method, noise_model, options.seed, picture, output, origin))
        print(f"{name}: PSNR {rows[-1]['psnr']:.2f} dB, SSIM {rows[-1]['ssim']:.4f}", flush=True)
    if rows:
        table = write_rows(rows, options.csv or ROOT / "build" / "evaluation" / f"{dataset}.csv")
        print(f"mean of {len(table)}: PSNR {table.psnr.mean():.2f} dB, SSIM {table.ssim.mean():.4f}")


if __name__ == "__main__":
    cli.run(main)
