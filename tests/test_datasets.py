"""Reading the image sets, the fixed noise, and crops of it."""

import hashlib
import itertools
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from n2s_utils import datasets, noise
from n2s_utils.cli import InputError
from n2s_utils.datasets import Crops, ImageSet, load, noisy_pictures

GAUSSIAN = noise.Gaussian(25.0)
RECORDED = [0.1197784, -0.03698288, -0.1586664]  # of the key CBSD68, 101085, gaussian, 25, 0


def colour(seed: int, height: int = 20, width: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Register files of the folder `tiny` as the sets tiny (colour) and tiny-grey: register(name=image or bytes, ...)."""
    digests = {}
    monkeypatch.setenv(datasets.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(datasets, "registry", lambda: digests)
    (tmp_path / "tiny").mkdir()

    def register(**contents):
        for name, content in contents.items():
            path = tmp_path / "tiny" / f"{name}.png"
            path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
            digests[f"tiny/{name}.png"] = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(datasets.SETS, "tiny", ImageSet(tuple(digests), 3))
        monkeypatch.setitem(datasets.SETS, "tiny-grey", ImageSet(tuple(digests), 1))
        return tmp_path / "tiny"

    return register


def test_pictures_come_in_order_as_floats_between_0_and_1(tiny):
    tiny(a=colour(1), b=colour(2, 8, 40))
    pictures = dict(load("tiny"))
    assert list(pictures) == ["a", "b"]
    assert pictures["b"].shape == (8, 40, 3) and pictures["b"].dtype == np.float32
    assert np.array_equal(pictures["a"], np.asarray(colour(1), np.float32) / 255)
    assert [name for name, _ in load("tiny", ["b"])] == ["b"]


def test_grey_is_pillow_s_convert(tiny):
    tiny(a=colour(1))
    ((_, picture),) = load("tiny-grey")
    assert np.array_equal(picture[..., 0], np.asarray(colour(1).convert("L"), np.float32) / 255)


def test_a_grey_file_serves_a_colour_set(tiny):
    tiny(a=colour(1).convert("L"))
    ((_, picture),) = load("tiny")
    assert picture.shape == (20, 24, 3) and np.array_equal(picture[..., 0], picture[..., 2])


def test_unknown_set_lists_the_known_ones():
    with pytest.raises(InputError, match="'CBSD69': choose one of CBSD68, "):
        list(load("CBSD69"))


def test_a_missing_file_is_named(tiny):
    folder = tiny(a=colour(1), b=colour(2))
    (folder / "b.png").unlink()
    with pytest.raises(InputError, match=r"b\.png: missing; run 'make data'"):
        list(load("tiny"))


@pytest.mark.parametrize("content", [lambda good: good[:-5], lambda good: b"", lambda good: good[:-1] + b"x", lambda good: b"<html>"])
def test_a_truncated_or_altered_file_is_named(tiny, content):
    folder = tiny(a=colour(1))
    (folder / "a.png").write_bytes(content((folder / "a.png").read_bytes()))
    with pytest.raises(InputError, match=r"a\.png: truncated or altered"):
        list(load("tiny"))


def test_a_file_that_is_no_image_is_named(tiny):
    tiny(a=b"no image")
    with pytest.raises(InputError, match=r"a\.png: not a readable image"):
        list(load("tiny"))


DEEP = Image.fromarray(np.linspace(0, 65535, 20 * 24).astype(np.uint16).reshape(20, 24))
ODD = {
    "alpha": colour(1).convert("RGBA"),
    "grey with alpha": colour(1).convert("LA"),
    "palette": colour(1).convert("P"),
    "16 bits": DEEP,
    "1 bit": colour(1).convert("1"),
}


def png_of_16_bit_rgb(pixels: np.ndarray) -> bytes:
    """A PNG as Pillow cannot write it: (H, W, 3) of uint16."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colour_of_16_bits_is_not_taken_for_8(tiny):
    deep = np.linspace(0, 65535, 20 * 24 * 3).astype(np.uint16).reshape(20, 24, 3)
    tiny(a=png_of_16_bit_rgb(deep))
    with pytest.raises(InputError, match=r"a\.png: 16-bit RGB"):
        list(load("tiny"))


def test_a_transparent_colour_counts_as_alpha(tiny, tmp_path):
    colour(1).save(tmp_path / "t.png", transparency=(1, 2, 3))
    tiny(a=(tmp_path / "t.png").read_bytes())
    with pytest.raises(InputError, match=r"a\.png: RGB with transparency"):
        list(load("tiny"))


def test_an_image_that_the_set_does_not_have_is_named():
    with pytest.raises(InputError, match="'kodim25': not in Kodak, which has kodim01"):
        list(load("Kodak", ["kodim25"]))


@pytest.mark.parametrize("image", ODD.values(), ids=ODD)
def test_an_odd_image_is_refused_in_a_benchmark(tiny, image):
    tiny(a=image)
    with pytest.raises(InputError, match=rf"a\.png: .*{image.mode}; a benchmark image is 8-bit grey or RGB"):
        list(load("tiny"))


def test_the_benchmark_sets_are_disjoint_and_complete():
    sizes = {"CBSD68": 68, "CBSD32": 32, "CBSD400": 400, "Kodak": 24, "Set12": 12}
    assert {name: len(set(datasets.SETS[name].files)) for name in sizes} == sizes
    for one, other in itertools.combinations(sizes, 2):
        assert not set(datasets.SETS[one].files) & set(datasets.SETS[other].files)
    for colour_set, grey_set in (("CBSD68", "BSD68"), ("CBSD400", "BSD400"), ("CBSD32", "BSD32")):
        assert datasets.SETS[colour_set].files == datasets.SETS[grey_set].files


def test_no_picture_is_twice_in_the_registry():
    digests = list(datasets.registry().values())
    assert len(digests) == len(set(digests))


def test_the_sample_photos_need_no_download(monkeypatch):
    monkeypatch.setenv(datasets.FOLDER_VARIABLE, "/nowhere")
    for dataset, channels in (("sample", 3), ("sample-grey", 1), ("sample-train", 3)):
        assert all(picture.shape[2] == channels for _, picture in load(dataset))


def test_noise_is_a_pure_function_of_its_key():
    x = np.full((6, 5, 3), 0.5, np.float32)
    y = noise.realization(x, GAUSSIAN, "set", "image", 0)
    assert np.array_equal(y, noise.realization(x, noise.Gaussian(25), "set", "image", 0))
    others = [
        noise.realization(x, GAUSSIAN, "set", "image", 1),
        noise.realization(x, GAUSSIAN, "set", "other", 0),
        noise.realization(x, GAUSSIAN, "other", "image", 0),
        noise.realization(x, noise.Gaussian(25.5), "set", "image", 0),
    ]
    assert not any(np.array_equal(y, other) for other in others)


def test_noise_is_the_same_on_every_machine():
    y = noise.realization(np.zeros(3), GAUSSIAN, "CBSD68", "101085", 0)
    assert np.allclose(y, RECORDED, rtol=1e-5)


@pytest.mark.parametrize("model", [GAUSSIAN, noise.Poisson(0.05), noise.Gamma(50.0)], ids=lambda model: model.name)
def test_noise_has_its_mean_and_variance_and_is_neither_clipped_nor_rounded(model):
    x = 0.4
    y = noise.realization(np.full(400_000, x), model, "set", "image", 0)
    variance = {"gaussian": (25 / 255) ** 2, "poisson": 0.05 * x, "gamma": x**2 / 50}[model.name]
    assert y.dtype == np.float32
    assert y.mean() == pytest.approx(x, abs=5 * (variance / y.size) ** 0.5)
    assert y.var() == pytest.approx(variance, rel=0.02)
    assert model.sample(np.full(1000, 1.0), np.random.default_rng(0)).max() > 1


def test_training_pictures_are_noisy_and_the_same_in_every_epoch(tiny):
    tiny(a=colour(1), b=colour(2, 16, 40))
    clean = dict(load("tiny"))
    noisy = noisy_pictures("tiny", GAUSSIAN, seed=0)
    again, other = noisy_pictures("tiny", GAUSSIAN, seed=0), noisy_pictures("tiny", GAUSSIAN, seed=1)
    assert list(noisy) == list(clean)
    for name, y in noisy.items():
        assert np.array_equal(y, again[name]) and not np.array_equal(y, other[name])
        assert np.array_equal(y, noise.realization(clean[name], GAUSSIAN, "tiny", name, 0))


def test_crops_hold_noisy_pixels_only(tiny):
    tiny(a=colour(1, 64, 64), b=colour(2, 70, 66))
    crops = Crops(noisy_pictures("tiny", GAUSSIAN, seed=0), 16, "cpu")
    clean = np.concatenate([x.reshape(-1, 3) for _, x in load("tiny")])
    assert [name for name, value in vars(crops).items() if len(np.ravel(value)) > 1000] == ["pixels"]
    error = crops.pixels.numpy() - clean
    assert (error == 0).mean() < 1e-3
    assert error.std() == pytest.approx(GAUSSIAN.std, rel=0.02)


SIZES = ((5, 6), (4, 7), (9, 4))


@pytest.fixture
def numbered():
    """Pictures of different sizes in which every pixel is its own number, its channel in the fraction."""
    first = np.cumsum([0] + [height * width for height, width in SIZES[:-1]])
    return {
        f"{width}x{height}": (start + np.arange(height * width).reshape(height, width, 1) + np.array([0, 0.25, 0.5])).astype(np.float32)
        for start, (height, width) in zip(first, SIZES, strict=True)
    }


def turns(window: np.ndarray) -> list[np.ndarray]:
    """The eight flips and rotations of a square (size, size, C)."""
    return [np.rot90(side, k) for side in (window, window[:, ::-1]) for k in range(4)]


def test_every_crop_is_a_window_of_a_picture_in_one_of_eight_positions(numbered):
    windows = {
        turned.tobytes(): (number, top, left, turn)
        for number, picture in enumerate(numbered.values())
        for top in range(picture.shape[0] - 3)
        for left in range(picture.shape[1] - 3)
        for turn, turned in enumerate(turns(picture[top : top + 4, left : left + 4]))
    }
    batch = Crops(numbered, 4, "cpu").batch(6000, np.random.default_rng(0))
    assert batch.shape == (6000, 3, 4, 4) and batch.is_contiguous(memory_format=torch.channels_last)
    seen = [windows[np.ascontiguousarray(crop).tobytes()] for crop in batch.permute(0, 2, 3, 1).numpy()]
    assert set(seen) == set(windows.values())  # all pictures, places and turns occur

    for part, kinds in ((0, 3), (3, 8)):
        counts = np.bincount([place[part] for place in seen])
        assert np.abs(counts - 6000 / kinds).max() < 6 * (6000 / kinds) ** 0.5


def test_a_crop_may_fill_the_picture(numbered):
    batch = Crops({"6x5": numbered["6x5"]}, 5, "cpu").batch(50, np.random.default_rng(0))
    assert set(np.unique(batch[:, 0].numpy())) == set(range(30))


def test_batches_follow_from_the_generator_s_state(numbered):
    crops = Crops(numbered, 4, "cpu")
    one, other = np.random.default_rng(7), np.random.default_rng(7)
    assert torch.equal(crops.batch(9, one), crops.batch(9, other))
    state = one.bit_generator.state
    second = crops.batch(9, one)
    assert not torch.equal(second, crops.batch(9, np.random.default_rng(7)))
    other.bit_generator.state = state
    assert torch.equal(second, crops.batch(9, other))


def test_a_picture_smaller_than_the_crop_is_an_error(numbered):
    with pytest.raises(InputError, match="training image 7x4, 7x4: smaller than the crop of 5"):
        Crops(numbered, 5, "cpu")


def test_the_hash_of_the_data_follows_its_pixels(numbered):
    assert Crops(numbered, 4, "cpu").sha256 == Crops(numbered, 3, "cpu").sha256
    altered = numbered | {"6x5": numbered["6x5"] + 1}
    assert Crops(numbered, 4, "cpu").sha256 != Crops(altered, 4, "cpu").sha256
