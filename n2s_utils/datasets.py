"""Image sets, verified; the fixed noise of a training set; crops of it.

A picture is a float32 array (H, W, C) in [0, 1], C = 1 or 3, everywhere outside the network.
Training is handed noisy pictures only, but for the supervised twin, which asks for the clean ones by name.
"""

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from n2s_utils import noise
from n2s_utils.cli import InputError
from n2s_utils.files import CHECKOUT, ROOT, require_checkout
from n2s_utils.mixture import Source

FOLDER_VARIABLE = "N2S_DATA_DIR"
DOWNLOADS = ROOT / "data" / "downloads"


@dataclass(frozen=True)
class ImageSet:
    """Files of one set, relative to the data folder, and the channels they are read with."""

    files: tuple[str, ...]
    channels: int


def registry() -> dict[str, str]:
    """Relative path -> SHA-256 of every file of the benchmark and sample sets."""
    return _read_sums(ROOT / "data" / "registry.sha256")


def _read_sums(path: Path) -> dict[str, str]:
    return {file: digest for digest, file in (line.split("  ") for line in path.read_text(encoding="utf-8").splitlines())}


def _sets() -> dict[str, ImageSet]:
    files = sorted(registry())
    val = [f for f in files if f.startswith("BSDS500/images/val/")]
    chosen = set((ROOT / "data" / "cbsd68.txt").read_text(encoding="utf-8").split())
    test68 = tuple(f for f in val if Path(f).stem in chosen)
    held_out = tuple(f for f in val if Path(f).stem not in chosen)
    train400 = tuple(f for f in files if f.startswith(("BSDS500/images/train/", "BSDS500/images/test/")))
    sample = {name: f"skimage/{name}" for name in ("astronaut.png", "chelsea.png", "camera.png", "coins.png")}
    return {
        "CBSD68": ImageSet(test68, 3),
        "BSD68": ImageSet(test68, 1),
        "Kodak": ImageSet(tuple(f for f in files if f.startswith("Kodak24/")), 3),
        "Set12": ImageSet(tuple(f for f in files if f.startswith("Set12/")), 1),
        "CBSD400": ImageSet(train400, 3),
        "BSD400": ImageSet(train400, 1),
        "CBSD32": ImageSet(held_out, 3),
        "BSD32": ImageSet(held_out, 1),
        "DIV2K": ImageSet(tuple(f"DIV2K/DIV2K_train_HR/{i:04d}.png" for i in range(1, 801)), 3),
        "sample": ImageSet((sample["astronaut.png"], sample["chelsea.png"]), 3),
        "sample-grey": ImageSet((sample["camera.png"], sample["coins.png"]), 1),
        "sample-train": ImageSet(("skimage/coffee.png", "skimage/motorcycle_left.png", "skimage/rocket.jpg"), 3),
    }


SETS = _sets() if CHECKOUT else {}


def image_set(dataset: str) -> ImageSet:
    """The set called `dataset`; raises InputError that lists the known ones."""
    require_checkout(f"data set {dataset!r}")
    if dataset not in SETS:
        raise InputError(f"data set {dataset!r}: choose one of {', '.join(SETS)}")
    return SETS[dataset]


def locate(file: str) -> Path:
    """Where a registered file lies: the scikit-image wheel, the folder N2S_DATA_DIR, or data/downloads."""
    folder, _, name = file.partition("/")
    if folder == "skimage":
        spec = find_spec("skimage")
        assert spec and spec.origin, "scikit-image is among the dependencies"
        return Path(spec.origin).parent / "data" / name
    return Path(os.environ.get(FOLDER_VARIABLE) or DOWNLOADS) / file


def load(dataset: str, images: list[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (image name, picture) of a set in the order of its files, or of `images` (stems) alone.

    Every file is checked against its SHA-256 before it is decoded. Raises InputError naming the
    file that is missing, altered or of the wrong kind, and what to do.
    """
    chosen = image_set(dataset)
    files = {Path(file).stem: file for file in chosen.files}
    for image in images or ():
        if image not in files:
            raise InputError(f"image {image!r}: not in {dataset}, which has {', '.join(list(files)[:3])}, ...")
    digests = registry() | extracted_digests()
    fetch = "'make data SETS=DIV2K'" if dataset == "DIV2K" else "'make data'"
    for name, file in files.items():
        if images is not None and name not in images:
            continue
        path = locate(file)
        if not path.is_file() or file not in digests:
            raise InputError(f"{path}: missing; run {fetch} or set {FOLDER_VARIABLE} to a folder that holds it")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != digests[file]:
            raise InputError(f"{path}: truncated or altered (wrong SHA-256); delete it and run {fetch}")
        yield name, _decode(content, path, chosen.channels)


def extracted_digests() -> dict[str, str]:
    """The sums written when a verified DIV2K archive was unpacked; its files have no published ones."""
    sums = locate("DIV2K/SHA256SUMS")
    return _read_sums(sums) if sums.is_file() else {}


def _decode(content: bytes, path: Path, channels: int) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content)) as opened:
            kind = _kind(opened)
            image = opened.copy()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable image ({error}); replace or remove it") from None
    if kind not in ("RGB", "L"):
        raise InputError(f"{path}: {kind}; a benchmark image is 8-bit grey or RGB without alpha or palette")
    image = image.convert("RGB" if channels == 3 else "L")
    return np.asarray(image, np.float32).reshape(image.height, image.width, channels) / 255


def _kind(image: Image.Image) -> str:
    """Pillow's mode, except where the file has more than that mode tells: 16-bit RGB, a transparent colour."""
    tiles = getattr(image, "tile", ())
    raw = tiles[0].args if tiles else ""
    if isinstance(raw, str) and ";16" in raw:
        return f"16-bit {image.mode}"
    return f"{image.mode} with transparency" if "transparency" in image.info else image.mode


def noisy_pictures(dataset: str, source: Source, seed: int) -> dict[str, np.ndarray]:
    """Name -> the one noisy realization of every picture of a training set; the clean ones stay in here."""
    return {name: noise.realization(x, source.of(dataset, name), dataset, name, seed) for name, x in load(dataset)}


def require_size(name: str, picture: np.ndarray, size: int) -> None:
    """Raises InputError naming a training picture that is smaller than crops of `size`."""
    height, width = picture.shape[:2]
    if min(height, width) < size:
        raise InputError(f"training image {name}, {width}x{height}: smaller than the crop of {size}; lower crop or leave it out")


class Crops:
    """Pictures resident on a device, and random square crops of them.

    The pictures lie in one flat (pixels, C) buffer, so a batch from images of any sizes, each crop
    flipped and rotated, is a single gather. Raises InputError if a picture is smaller than `size`.
    """

    def __init__(self, pictures: dict[str, np.ndarray], size: int, device: str):
        for name, picture in pictures.items():
            require_size(name, picture, size)
        self.size = size
        self.shapes = np.array([p.shape[:2] for p in pictures.values()])
        self.offsets = np.concatenate([[0], self.shapes.prod(1).cumsum()[:-1]])
        flat = np.concatenate([p.reshape(-1, p.shape[2]) for p in pictures.values()])
        self.sha256 = hashlib.sha256(flat.tobytes()).hexdigest()
        self.pixels = torch.from_numpy(flat).to(device)

    def choose_pictures(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Their numbers (count,), uniform."""
        return generator.integers(len(self.shapes), size=count)

    def choose_flips(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Flip down, flip across, turn (3, count), each 0 or 1, uniform."""
        return generator.integers(2, size=(3, count), dtype=np.int64)

    def batch(self, count: int, generator: np.random.Generator) -> torch.Tensor:
        """`count` crops (count, C, size, size), channels_last: images, places, flips and turns uniform."""
        image = self.choose_pictures(count, generator)
        height, width = self.shapes[image].T
        top = generator.integers(height - self.size + 1)
        left = generator.integers(width - self.size + 1)
        origin = torch.from_numpy(self.offsets[image] + top * width + left)
        stride = torch.from_numpy(width)
        flip_i, flip_j, turn = torch.from_numpy(self.choose_flips(count, generator))

        device = self.pixels.device
        origin, stride, flip_i, flip_j, turn = (
            part.to(device, non_blocking=True).view(-1, 1, 1) for part in (origin, stride, flip_i, flip_j, turn)
        )
        ramp = torch.arange(self.size, device=device)
        i = torch.where(flip_i > 0, ramp.flip(0).view(1, -1, 1), ramp.view(1, -1, 1))
        j = torch.where(flip_j > 0, ramp.flip(0).view(1, 1, -1), ramp.view(1, 1, -1))
        index = origin + torch.where(turn > 0, j * stride + i, i * stride + j)
        return self.pixels[index].permute(0, 3, 1, 2)
