"""What training on a folder of one's own wins: python -m n2s_utils.report.own_folder [--minutes M] [TEXTURE ...]

A folder of forty 8-bit pictures of 128x128 with noise of sigma 25, cut from three quarters of a texture that scikit-image brings,
as a microscope's series would be; the shipped weights and those of `n2s train --data` on the folder denoise the fourth quarter,
which neither has seen. Rows in data/results/studies/own_folder.csv.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import skimage
from PIL import Image

from n2s_utils import cli, machine, noise, own_training, photo
from n2s_utils.denoising import Way
from n2s_utils.evaluation import psnr, write_table
from n2s_utils.files import BUILD, ROOT
from n2s_utils.weights import for_every_noise, load_record

MODEL = noise.Gaussian(25.0)
TEXTURES = ("page", "brick", "grass", "ihc")  # print, a wall, grass, stained tissue (colour)
PLACE = ROOT / "data" / "results" / "studies" / "own_folder.csv"


def texture(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The clean texture (H, W, C): what is learned from, and what is measured on."""
    whole = photo.read(Path(skimage.__file__).parent / "data" / f"{name}.png").picture
    place = whole.shape[1] * 3 // 4
    return whole[:, :place], whole[:, place:]


def save_noisy(clean: np.ndarray, model: noise.Model, name: str, path: Path) -> None:
    """A picture with noise as an 8-bit file; `name` is the key of the noise."""
    pixels = (255 * noise.realization(clean, model, "own", name, 0)).round().clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path)


def fill(folder: Path, name: str, count: int = 40, side: int = 128) -> None:
    """The folder of noisy pictures."""
    clean, rng = texture(name)[0], noise.rng("own folder", name)
    for number in range(count):
        top, left = (rng.integers(length - side + 1) for length in clean.shape[:2])
        save_noisy(clean[top : top + side, left : left + side], MODEL, f"{name} {number}", folder / f"{number:02d}.png")


def measure(name: str, minutes: float, out: Path) -> Iterator[dict[str, Any]]:
    """A row for each weights file: what the held-out noisy pictures expect of it, and what the clean rest of the texture says."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        fill(folder, name)
        save_noisy(texture(name)[1], MODEL, f"{name} rest", Path(temporary) / "rest.png")
        rest = photo.read(Path(temporary) / "rest.png")
        path, expected = own_training.train_own(folder, None, MODEL.name, minutes, True, out, "cpu")
    record = load_record(path)
    of = {"texture": name, "minutes": record["minutes"], "crops": record["crops"], "device": record["device"]}
    for way, weights, psnr_expected in zip(("shipped", "own"), (for_every_noise(record["channels"]), path), expected, strict=True):
        output = Way(weights=weights)(rest, MODEL)
        row = {"weights": way, "psnr_expected": psnr_expected, "psnr": psnr(texture(name)[1], output)}
        yield of | {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on folders of one texture each, and measure what that wins.")
    parser.add_argument("textures", nargs="*", default=TEXTURES, metavar="TEXTURE", help=f"of {', '.join(TEXTURES)} (default all)")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, each (default 10)")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in options.textures:
        rows += measure(name, options.minutes, BUILD / "own_folder")
        print(f"{machine.device_name('cpu')}: {name}: {rows[-2]['psnr']:.2f} dB shipped, {rows[-1]['psnr']:.2f} dB own", flush=True)
        write_table(pd.DataFrame(rows), PLACE)


if __name__ == "__main__":
    cli.run(main)
