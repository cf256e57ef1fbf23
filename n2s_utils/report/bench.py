"""Speed on this machine: python -m n2s_utils.report.bench [PART ...]

The parts, all but `verbs` by default:

    denoising  seconds per megapixel and peak memory of 0.4, 3 and 24 megapixels within the default memory, of 3 with more
    precision  what bf16 saves, and costs in dB; non-local means
    photo      n2s denoise on an 8-bit file of 12 megapixels; non-local means, and BM3D where it is installed, on its first one
    training   crops per second in float32 and bf16 with every kind of kink
    verbs      minutes of `make report` and of `make test`, their environment built before

Recorded in data/results/studies/bench.csv, the device and its instruction set beside each; rows of other parts stay as they are.
Ten minutes or so without the verbs; where bf16 is emulated it takes most of that.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from n2s_utils import cli, denoiser, machine
from n2s_utils.datasets import load
from n2s_utils.denoiser import Denoiser
from n2s_utils.evaluation import non_local_means, psnr, write_table
from n2s_utils.files import ROOT
from n2s_utils.network import Architecture
from n2s_utils.noise import Gaussian, realization
from n2s_utils.objectives import AntitheticARDAE
from n2s_utils.optimisation import Optimisation, Optimizer
from n2s_utils.unet import KINKS

CROPS, SIZE = 8, 128
SIZES = {0.4: (512, 768), 3: (1536, 2048), 24: (4000, 6000)}  # megapixels -> height, width
NOISE = Gaussian(25.0)
WEIGHTS = ROOT / "data" / "weights" / "colour-gaussian25-antithetic.safetensors"

Row = tuple[str, float, str]


def seconds_of(work: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds of `work` over `repeats` runs, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def training_speed(precision: str, kink: str) -> float:
    """Crops of 128x128 a second through the colour U-Net: a step of the antithetic loss, two passes a crop, and Adam."""
    torch.manual_seed(0)
    layout = machine.memory_format_of("cpu", precision)
    model = machine.placed(Architecture(kink=kink).build(3), "cpu", precision)
    optimizer = Optimizer(model, Optimisation(crops=1))
    c, u = (values.contiguous(memory_format=layout) for values in 10 * torch.rand(2, CROPS, 3, SIZE, SIZE))
    s_a = torch.full((CROPS, 1, 1, 1), 0.1)

    def step() -> None:
        with machine.autocast("cpu", precision):
            loss = AntitheticARDAE().loss(partial(model, noise=NOISE), c, u, s_a)
        optimizer.step(loss, 0, None)

    return CROPS / seconds_of(step, 2)


def training_rows() -> Iterator[Row]:
    for precision in ("fp32", "bf16"):
        for kink in KINKS:
            yield f"training, {precision}, {kink} kinks", training_speed(precision, kink), "crops of 128x128 a second"


def denoising(megapixels: float, memory: float = denoiser.MEMORY) -> tuple[float, float]:
    """Seconds per megapixel and peak memory in MiB of a process that does nothing else."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_denoise_here, megapixels, memory).result()


def _denoise_here(megapixels: float, memory: float) -> tuple[float, float]:
    height, width = SIZES[megapixels]
    y = np.random.default_rng(0).random((height, width, 3), np.float32)
    single = Denoiser(denoiser.load(WEIGHTS, NOISE).network, NOISE, memory)
    single(y[:64, :64])
    begin = time.perf_counter()
    single(y)
    seconds = (time.perf_counter() - begin) / (height * width / 1e6)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def denoising_rows() -> Iterator[Row]:
    for megapixels, memory in ((0.4, denoiser.MEMORY), (3, denoiser.MEMORY), (3, 6.0), (24, denoiser.MEMORY)):
        seconds, peak = denoising(megapixels, memory)
        work = f"denoising {megapixels:g} megapixels within {memory:g} GB"
        yield f"{work}, time", seconds, "seconds per megapixel"
        yield f"{work}, peak memory", peak, "MiB"


def photo_rows() -> Iterator[Row]:
    """The command from start to end, in a process of its own, on the sample photo repeated."""
    _, clean = next(load("sample", ["astronaut"]))
    y = realization(np.tile(clean, (6, 8, 1))[:3000, :4000], NOISE, "sample", "12 megapixels", 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.png"
        Image.fromarray((255 * y).round().clip(0, 255).astype(np.uint8)).save(path)
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            seconds, peak = pool.submit(_denoise_file, path).result()
    yield "n2s denoise, 12 megapixels, time", seconds, "seconds"
    yield "n2s denoise, 12 megapixels, peak memory", peak, "MiB"
    first = y[:1000, :1000]
    yield "non-local means, time", seconds_of(partial(non_local_means, first, NOISE), 1), "seconds per megapixel"
    if find_spec("bm3d"):
        from bm3d import bm3d_rgb

        yield "BM3D, time", seconds_of(partial(bm3d_rgb, first, NOISE.std), 1), "seconds per megapixel"


def _denoise_file(path: Path) -> tuple[float, float]:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "n2s_utils", "denoise", path], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def precision_rows() -> Iterator[Row]:
    """What bf16 saves and costs on one photo."""
    name, clean = next(load("sample", ["astronaut"]))
    y, network = realization(clean, NOISE, "sample", name, 0), denoiser.load(WEIGHTS, NOISE).network
    megapixels = y.shape[0] * y.shape[1] / 1e6
    for precision in ("fp32", "bf16"):
        single = Denoiser(network, NOISE, precision=precision)
        yield f"denoising {name}, {precision}, time", seconds_of(partial(single, y), 1) / megapixels, "seconds per megapixel"
        yield f"denoising {name}, {precision}, PSNR", psnr(clean, single(y)), "dB"
    yield "denoising, non-local means, time", seconds_of(partial(non_local_means, y, NOISE)) / megapixels, "seconds per megapixel"


def verb_rows() -> Iterator[Row]:
    for verb in ("report", "test"):
        begin = time.perf_counter()
        subprocess.run(["make", verb], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        yield f"make {verb}, wall time", (time.perf_counter() - begin) / 60, "minutes"


# Memory first, while this process is small: the peak of a new process begins at the size of its parent.
PARTS = {"denoising": denoising_rows, "photo": photo_rows, "precision": precision_rows, "training": training_rows, "verbs": verb_rows}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure speed on this machine.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default all but verbs)")
    chosen = parser.parse_args().parts or [part for part in PARTS if part != "verbs"]
    if unknown := [part for part in chosen if part not in PARTS]:
        raise cli.InputError(f"part {unknown[0]!r}: choose one of {', '.join(PARTS)}")
    place, rows = ROOT / "data" / "results" / "studies" / "bench.csv", []
    for part in chosen:
        for row in PARTS[part]():
            print(f"{row[0]}: {row[1]:.2f} {row[2]}", flush=True)
            rows.append({"part": part} | dict(zip(("work", "value", "unit"), row, strict=True)))
    measured = pd.DataFrame(rows).round(3)
    measured = measured.assign(device=machine.device_name("cpu"), instructions=machine.instruction_set("cpu"), torch=torch.__version__)
    earlier = pd.read_csv(place)
    write_table(pd.concat([earlier[~earlier.part.isin(chosen)], measured]), place)


if __name__ == "__main__":
    cli.run(main)
