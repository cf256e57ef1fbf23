"""What several test modules share."""

import dataclasses
import hashlib
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from n2s_utils import config, datasets
from n2s_utils.cli import InputError
from n2s_utils.config import Config
from n2s_utils.network import Architecture

BENCHMARKS_PRESENT = datasets.locate("Set12/01.png").is_file()

TINY = {
    "name": "run",
    "data": {"dataset": "tiny", "held_out": "tiny-held-out", "held_out_pixels": 4 * 32**2},
    "noise": {"model": "gaussian", "sigma": 25},
    "objective": {"name": "antithetic", "s_max": 0.5, "s_min": 0.1},
    "optimisation": {"crop": 32, "batch": 1, "crops": 6, "warmup": 2},
    "machine": {"precision": "fp32", "every": 2},
}
POISSON = {"model": "poisson", "zeta": 0.05}
GAMMA = {"model": "gamma", "k": 50}
POISSON_GAUSSIAN = {"model": "poisson-gaussian", "zeta": 0.02, "sigma": 5}
TWIN = {"name": "supervised", "s_max": 0, "s_min": 0}
PAIR = TWIN | {"name": "noise2noise"}


def tiny_tables(**changes) -> dict:
    """The tables of a run of a few steps, with changes to its fields, wherever they are, or to a table (another noise is all new)."""
    tables = dict(TINY)
    for name, value in changes.items():
        if name == "noise":
            tables["noise"] = value
        elif name in config.TABLES:
            tables = config.merged(tables, {name: value})
        else:
            [(table, field)] = config.parse_change(f"{name}=0").items()
            tables = config.merged(tables, {table: {name: value}} if isinstance(field, dict) else {name: value})
    return tables


def tiny(**changes) -> Config:
    """The configuration of `tiny_tables`."""
    return config.from_tables(tiny_tables(**changes))


def record_of(architecture: Architecture, channels: int, **tables) -> dict:
    """As much of a record as a weights file is loaded by, and further tables of its configuration."""
    return {"channels": channels, "config": {"network": dataclasses.asdict(architecture)} | tables}


def pytest_report_header():
    return f"recorded PSNR is checked on {'the benchmark images' if BENCHMARKS_PRESENT else 'the sample photos: no benchmark images here'}"


@pytest.fixture(autouse=True)
def one_thread():
    """The pictures of the tests are so small that threads cost more than they gain, above all where processors are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def refused():
    """`with refused(part, ...)`: the block must raise InputError with one line that holds every part."""

    @contextmanager
    def check(*parts: object):
        with pytest.raises(InputError) as caught:
            yield
        message = str(caught.value)
        assert "\n" not in message
        for part in parts:
            assert str(part) in message

    return check


@pytest.fixture
def full_disk(monkeypatch):
    """`with full_disk():` the first byte written to a new temporary file fails, as on a disk without space."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")

    with_name = Path.with_name

    def full(path, name):
        temporary = with_name(path, name)
        if ".part" in name:
            temporary.symlink_to("/dev/full")
        return temporary

    @contextmanager
    def disk():
        with monkeypatch.context() as patch:
            patch.setattr(Path, "with_name", full)
            yield

    return disk


@pytest.fixture
def tiny_sets(tmp_path, monkeypatch):
    """Registered sets of real files, a few pixels large; returns relative path -> SHA-256.

    tiny: two colour pictures, 48x40 and 40x32 (width x height); tiny-held-out: one of 32x32;
    tiny-one: one of 32x32; tiny-grey: one grey picture of 40x32.
    """
    folder = tmp_path / "data"
    members = {
        "tiny": {"tiny/a.png": (40, 48, 3), "tiny/b.png": (32, 40, 3)},
        "tiny-held-out": {"tiny/c.png": (32, 32, 3)},
        "tiny-one": {"tiny/d.png": (32, 32, 3)},
        "tiny-grey": {"tiny/e.png": (32, 40)},
    }
    digests = {}
    rng = np.random.default_rng(0)
    for name, files in members.items():
        for file, shape in files.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            ramp = np.linspace(40, 200, shape[1])[None, :] + 10 * rng.standard_normal(shape[:1] + (1,))
            pixels = ramp if len(shape) == 2 else ramp[..., None] + np.array([0, 10, 20])
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
            digests[file] = hashlib.sha256(path.read_bytes()).hexdigest()
        channels = 1 if name == "tiny-grey" else 3
        monkeypatch.setitem(datasets.SETS, name, datasets.ImageSet(tuple(files), channels))
    monkeypatch.setattr(datasets, "registry", lambda: digests)
    monkeypatch.setenv(datasets.FOLDER_VARIABLE, str(folder))
    return digests
