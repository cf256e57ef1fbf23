"""One run on two processes, as torchrun would start them: the same weights, and an end in one line."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from n2s_utils import checkpoint, files
from n2s_utils.network import Architecture
from n2s_utils.parallel import Group
from n2s_utils.weights import load_record

STEPS = 30
CONFIG = """
name = "run"
[data]
dataset = "sample-train"
held_out = "sample"
held_out_pixels = 2048
[noise]
model = "gaussian"
sigma = 25
[network]
kink = "leaky"
[objective]
name = "antithetic"
s_max = 0.5
s_min = 0.1
[optimisation]
crop = 32
batch = 4
crops = 120
warmup = 5
[machine]
precision = "fp32"
every = 5
"""


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _start(folder, size, *changes, stages=1):
    """The processes of a run, in order of rank."""
    folder.mkdir(exist_ok=True)
    (folder / "run.toml").write_text(CONFIG + "[[stages]]\n" * stages)
    command = [sys.executable, "-m", "n2s_utils.training", str(folder / "run.toml"), *changes, "--out", str(folder)]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_port()), "OMP_NUM_THREADS": "1"}
    environments = [
        os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": str(files.ROOT)} for rank in range(size)
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env=environment, **pipes) for environment in environments]


def _wait_for_checkpoint(folder, processes):
    path = folder / "run" / "checkpoint.pt"
    while not path.exists():
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.01)
    return path


def _weights(folder):
    return load_file(folder / "run" / "run.safetensors")


def test_two_processes_give_the_weights_of_one(tmp_path):
    """Over two steps: Adam amplifies any rounding in those that follow, on some processors a thousandfold by the tenth."""
    for size in (1, 2):
        for process in _start(tmp_path / str(size), size, "crops=8"):
            _, err = process.communicate(timeout=300)
            assert (process.returncode, err) == (0, ""), err
    torch.manual_seed(0)
    fresh = Architecture(kink="leaky").build(3).network.state_dict()
    one, two = _weights(tmp_path / "1"), _weights(tmp_path / "2")
    moved, apart = (torch.cat([(a[name] - b[name]).flatten().float() for name in one]).norm() for a, b in ((one, fresh), (one, two)))
    assert apart < 0.005 * moved
    losses = [(tmp_path / size / "run" / "run.csv").read_text().splitlines()[-1].split(",")[5] for size in "12"]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-4), "the loss is that of the whole batch"


def test_two_processes_go_through_the_stages_together(tmp_path):
    assert [process.wait(timeout=300) for process in _start(tmp_path, 2, "crops=8", stages=2)] == [0, 0]
    first = load_record(tmp_path / "run-1" / "run-1.safetensors")
    assert load_record(tmp_path / "run" / "run.safetensors")["start_sha256"] == first["sha256"]


def test_a_killed_process_ends_the_run_with_one_line_and_it_resumes(tmp_path):
    processes = _start(tmp_path, 2)
    path = _wait_for_checkpoint(tmp_path, processes)
    processes[1].kill()
    _, err = processes[0].communicate(timeout=60)
    assert processes[0].returncode == 2
    assert err == "error: another of the 2 processes is gone; the same command goes on from the last checkpoint\n"
    assert 5 <= checkpoint.load(path, "cpu")["step"] < STEPS
    assert [process.wait(timeout=300) for process in _start(tmp_path, 2)] == [0, 0]


def test_a_signal_to_one_stops_both_at_the_same_step(tmp_path):
    processes = _start(tmp_path, 2)
    path = _wait_for_checkpoint(tmp_path, processes)
    processes[1].send_signal(signal.SIGTERM)
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [130, 130]
    step = checkpoint.load(path, "cpu")["step"]
    assert [err for _, err in ends] == [f"stopped: run: saved at step {step}; the same command goes on from there\n"] * 2


def test_the_parts_of_a_batch_are_all_of_it_once(refused):
    crops = list(range(8))
    assert sum((crops[Group(rank, 4).part(8)] for rank in range(4)), []) == crops
    with refused("batch = 6", "4 processes"):
        Group(0, 4).part(6)
