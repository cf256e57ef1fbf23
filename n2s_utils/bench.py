"""Speed on this machine, in one run: python -m n2s_utils.bench

Training crops per second for float32 contiguous against our setting (bf16 autocast, channels_last),
with rounded kinks and without, inference seconds per megapixel for our network against non-local means,
and the peak memory of training and of denoising, each in a process of its own. Recorded in
data/results/studies/bench.csv.
"""

import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch

from n2s_utils import cli
from n2s_utils.datasets import load
from n2s_utils.evaluation import denoise, non_local_means, write_table
from n2s_utils.files import ROOT
from n2s_utils.noise import Gaussian
from n2s_utils.objectives import ARDAE
from n2s_utils.training import device_name
from n2s_utils.unet import UNet

CROPS, SIZE = 8, 128
KINK_WIDTH = 0.05  # as the shipped weights have


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of `work` over `repeats` runs, after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def training_speed(memory_format: torch.memory_format, bf16: bool, kink_width: float = KINK_WIDTH) -> float:
    """Crops of 128x128 a second through the colour U-Net: forward, backward and Adam step of AR-DAE."""
    torch.manual_seed(0)
    model = UNet(3, kink_width=kink_width).to(memory_format=memory_format)
    optimizer = torch.optim.Adam(model.parameters())
    y, u = torch.rand(2, CROPS, 3, SIZE, SIZE)
    y, u = y.contiguous(memory_format=memory_format), u.contiguous(memory_format=memory_format)
    s_a = torch.full((CROPS, 1, 1, 1), 0.05)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = ARDAE().loss(model, y, u, s_a)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return CROPS / seconds_of(step, 5)


def train_bf16() -> float:
    return training_speed(torch.channels_last, bf16=True)


def denoise_kodak_size() -> None:
    denoise(UNet(3, kink_width=KINK_WIDTH).eval(), np.random.default_rng(0).random((512, 768, 3), np.float32), Gaussian(25.0))


def peak_megabytes(work: Callable[[], object]) -> float:
    """Peak memory of a fresh process that imports the project and does `work`."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_peak_here, work).result()


def _peak_here(work: Callable[[], object]) -> float:
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    # First, while this process is small: the peak of a new process begins at the size of its parent.
    memory = [
        (f"peak memory, training, bf16 channels_last, {CROPS} crops of 128x128", peak_megabytes(train_bf16), "MB"),
        ("peak memory, denoising 768x512, U-Net", peak_megabytes(denoise_kodak_size), "MB"),
    ]
    noise = Gaussian(25.0)
    _, clean = next(load("sample", ["astronaut"]))
    y = noise.sample(clean, np.random.default_rng(0))
    megapixels = y.shape[0] * y.shape[1] / 1e6
    model = UNet(3, kink_width=KINK_WIDTH).eval()
    measured = [
        ("training, float32 contiguous", training_speed(torch.contiguous_format, bf16=False), "crops of 128x128 a second"),
        ("training, bf16 channels_last", train_bf16(), "crops of 128x128 a second"),
        ("the same with leaky ReLUs", training_speed(torch.channels_last, bf16=True, kink_width=0.0), "crops of 128x128 a second"),
        ("denoising, U-Net", seconds_of(lambda: denoise(model, y, noise), 3) / megapixels, "seconds per megapixel"),
        ("denoising, non-local means", seconds_of(lambda: non_local_means(y, noise), 3) / megapixels, "seconds per megapixel"),
        *memory,
    ]
    table = pd.DataFrame(measured, columns=["work", "value", "unit"]).assign(device=device_name("cpu"), torch=torch.__version__)
    print(table.round(2).to_string(index=False))
    write_table(table.round(2), ROOT / "data" / "results" / "studies" / "bench.csv")


if __name__ == "__main__":
    cli.run(main)
