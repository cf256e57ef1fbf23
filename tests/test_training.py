"""The training loop: exact resume, budgets, precision, records, and everything that stops a run."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch._dynamo
from conftest import GAMMA, PAIR, POISSON, POISSON_GAUSSIAN, TINY, TWIN, tiny
from safetensors.torch import load_file

from n2s_utils import checkpoint, cli, datasets, denoiser, files, machine, noise, objectives, training
from n2s_utils.config import read_stages
from n2s_utils.feed import Feed
from n2s_utils.network import NETWORKS
from n2s_utils.parallel import Group
from n2s_utils.training import Run, train
from n2s_utils.unet import UNet
from n2s_utils.weights import load_record, load_weights

# Bit equality is promised for one thread count only.
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(files.ROOT)}


def _rows(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _checkpoint(folder: Path) -> dict:
    return checkpoint.load(folder / "run" / "checkpoint.pt", "cpu")


def _after_each_step(monkeypatch, action):
    """Call `action(run)` when the training loop has taken a step."""
    take = Run._take_step

    def take_and_act(run):
        take(run)
        action(run)

    monkeypatch.setattr(Run, "_take_step", take_and_act)


def _stop_after(monkeypatch, steps: int, which=signal.SIGINT):
    """Send this process a signal while its step number `steps` runs."""
    _after_each_step(monkeypatch, lambda run: run.step == steps and signal.raise_signal(which))


def _clock(monkeypatch, pace):
    """Let time pass only in steps, `pace()` seconds in each."""
    now = [1000.0]
    _after_each_step(monkeypatch, lambda run: now.append(now.pop() + pace()))
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: now[0]))


def _poison(monkeypatch, after: int):
    """Make the loss NaN from its training call number `after` + 1 on."""
    loss, calls = objectives.AntitheticARDAE.loss, []

    def poisoned(self, *arguments):
        value = loss(self, *arguments)
        calls.extend([1] * torch.is_grad_enabled())
        return value * float("nan") if torch.is_grad_enabled() and len(calls) > after else value

    monkeypatch.setattr(objectives.AntitheticARDAE, "loss", poisoned)


# A run in processes of its own, stopped from outside.

STEPS, EVERY = 64, 8
PROCESS = """
name = "run"

[data]
dataset = "sample-train"
held_out = "sample"
held_out_pixels = 4096

[noise]
model = "gaussian"
sigma = 25

[objective]
name = "ar-dae"
s_max = 0.5
s_min = 0.01

[optimisation]
crop = 32
batch = 2
crops = 128
warmup = 10

[machine]
precision = "fp32"
every = 8
"""


def _start(folder: Path) -> subprocess.Popen:
    (folder / "run.toml").write_text(PROCESS)
    command = [sys.executable, "-m", "n2s_utils.training", str(folder / "run.toml"), "--out", str(folder)]
    return subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def _interrupt(folder: Path, which: int, rows: int) -> tuple[int, str, str]:
    """Start or resume the run and send a signal once its log has `rows` rows."""
    process = _start(folder)
    metrics = folder / "run" / "metrics.csv"
    while process.poll() is None and not (metrics.exists() and len(_rows(metrics)) >= rows):
        time.sleep(0.005)
    process.send_signal(which)
    return _finish(process)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    status, out, err = _finish(_start(folder))
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == str(folder / "run" / "run.safetensors")
    return folder / "run"


def _assert_same_run(folder: Path, other: Path):
    assert (folder / "run.safetensors").read_bytes() == (other / "run.safetensors").read_bytes()
    for name in ("run.csv", "metrics.csv"):
        rows, expected = ([row | {"seconds": None} for row in _rows(run / name)] for run in (folder, other))
        assert rows == expected and len(rows) == STEPS // EVERY
    record, expected = (json.loads((run / "run.json").read_text()) for run in (folder, other))
    for key in ("minutes", "crops_per_second"):
        assert record.pop(key) >= 0 and expected.pop(key) >= 0
    assert record == expected


def test_resume_after_ctrl_c_and_after_sigterm_is_bit_equal(uninterrupted, tmp_path):
    for which, rows in ((signal.SIGINT, 1), (signal.SIGTERM, 3)):
        status, _, err = _interrupt(tmp_path, which, rows)
        step = _checkpoint(tmp_path)["step"]
        assert EVERY * rows <= step < STEPS
        assert status == 130
        assert err == f"stopped: run: saved at step {step}; the same command goes on from there\n"
        assert not (tmp_path / "run" / "run.safetensors").exists()
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoint.pt", "metrics.csv"]
    assert _finish(_start(tmp_path))[0] == 0
    _assert_same_run(tmp_path / "run", uninterrupted)


def test_resume_after_sigkill_is_bit_equal(uninterrupted, tmp_path):
    status, _, _ = _interrupt(tmp_path, signal.SIGKILL, 2)
    assert status == -signal.SIGKILL and not (tmp_path / "run" / "run.safetensors").exists()
    assert EVERY <= _checkpoint(tmp_path)["step"] < STEPS
    assert _finish(_start(tmp_path))[0] == 0
    _assert_same_run(tmp_path / "run", uninterrupted)


def test_shipped_files_of_a_run(uninterrupted):
    record = load_record(uninterrupted / "run.safetensors")
    assert record["sha256"] == files.sha256(uninterrupted / "run.safetensors")
    assert (record["steps"], record["crops"]) == (STEPS, 2 * STEPS)
    assert [record["config"]] == [stage.tables() for stage in read_stages(uninterrupted.parent / "run.toml")]
    assert record["channels"] == 3 and record["precision"] == "fp32"
    assert record["device"] and record["torch"] == torch.__version__
    rows = _rows(uninterrupted / "run.csv")
    assert [int(row["step"]) for row in rows] == list(range(EVERY, STEPS + 1, EVERY))
    assert [int(row["crops"]) for row in rows] == [2 * int(row["step"]) for row in rows]
    assert float(rows[-1]["held_out_loss"]) == record["held_out_loss"]
    saved = _checkpoint(uninterrupted.parent)
    assert saved["data_sha256"] == record["data_sha256"] and saved["config"] == record["config"]
    for name, tensor in load_file(uninterrupted / "run.safetensors").items():
        assert torch.equal(tensor, saved["ema"][name].half())


def test_a_run_needs_neither_scikit_image_nor_the_download_code(tiny_sets, tmp_path):
    """pandas, matplotlib, pooch and scipy are blocked as well."""
    script = f"""
import sys
for name in ("skimage", "pandas", "matplotlib", "pooch", "scipy", "papermill", "nbformat", "IPython"):
    sys.modules[name] = None
from n2s_utils import config, datasets, training
datasets.SETS["tiny"] = datasets.ImageSet(("tiny/a.png", "tiny/b.png"), 3)
datasets.registry = lambda: {tiny_sets!r}
print(training.train(config.from_tables({tiny(held_out="tiny", crops=1).tables()!r}), {str(tmp_path)!r}))
"""
    environment = ONE_THREAD | {datasets.FOLDER_VARIABLE: os.environ[datasets.FOLDER_VARIABLE]}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "run" / "run.safetensors").exists()


# The same inside this process.


@pytest.fixture
def signals():
    """Nothing but the training loop reacts to Ctrl-C and SIGTERM; afterwards its handlers must be gone."""
    both = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(which, signal.SIG_IGN) for which in both]
    yield
    after = [signal.signal(which, handler) for which, handler in zip(both, before, strict=True)]
    assert after == [signal.SIG_IGN] * 2


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_step_and_a_rerun_goes_on(tiny_sets, tmp_path, monkeypatch, signals, which):
    with monkeypatch.context() as patch:
        _stop_after(patch, 3, which)  # step 3 is no multiple of `every`
        with pytest.raises(KeyboardInterrupt, match="run: saved at step 3; the same command goes on"):
            train(tiny(), tmp_path / "a")
    assert _checkpoint(tmp_path / "a")["step"] == 3 and len(_checkpoint(tmp_path / "a")["rows"]) == 1
    resumed, straight = train(tiny(), tmp_path / "a"), train(tiny(), tmp_path / "b")
    assert resumed.read_bytes() == straight.read_bytes()
    logs = [[row | {"seconds": None} for row in _rows(weights.with_suffix(".csv"))] for weights in (resumed, straight)]
    assert logs[0] == logs[1] and len(logs[0]) == 3


def test_a_finished_run_is_not_trained_again(tiny_sets, tmp_path, monkeypatch):
    weights = train(tiny(), tmp_path)
    content = weights.read_bytes()
    weights.unlink()
    monkeypatch.setattr(Run, "_take_step", lambda run: pytest.fail("took a step"))
    assert train(tiny(), tmp_path).read_bytes() == content


def test_a_pixel_keeps_its_noise_in_every_step_and_after_a_resume(tiny_sets, tmp_path, monkeypatch):
    """The one training picture is as large as the crop, so each crop is that picture, flipped or turned."""
    seen, loss = [], objectives.AntitheticARDAE.loss

    def spy(self, network, c, u, *rest):
        if torch.is_grad_enabled():
            seen.append((c.clone(), u.clone()))
        return loss(self, network, c, u, *rest)

    monkeypatch.setattr(objectives.AntitheticARDAE, "loss", spy)
    whole = tiny(dataset="tiny-one", crops=24, batch=2, every=4)
    with monkeypatch.context() as patch:
        _stop_after(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train(whole, tmp_path)
    before = _checkpoint(tmp_path)["data_sha256"]
    train(whole, tmp_path)
    assert _checkpoint(tmp_path)["data_sha256"] == before

    [(name, clean)] = datasets.load("tiny-one")
    model = noise.Gaussian(25.0)
    noisy = model.coordinate(noise.realization(clean, model, "tiny-one", name, 0))
    poses = [np.rot90(flipped, turns) for flipped in (noisy, noisy[::-1]) for turns in range(4)]
    assert len(seen) == 12
    met = set()
    for c, _ in seen:
        for crop in c.permute(0, 2, 3, 1).numpy():
            [pose] = [i for i, other in enumerate(poses) if np.array_equal(crop, other)]
            met.add(pose)
    assert len(met) > 4
    draws = torch.stack([u for _, u in seen])
    assert draws.flatten(0, 1).flatten(1).unique(dim=0).shape[0] == 24  # whereas u is fresh in every crop
    assert draws.std().item() == pytest.approx(1, abs=0.02) and abs(draws.mean().item()) < 0.02


def test_the_level_of_a_crop_follows_its_number(tiny_sets, tmp_path, monkeypatch):
    seen, loss = [], objectives.ARDAE.loss

    def spy(self, network, c, u, s_a, *rest):
        seen.extend(s_a.flatten().tolist() if torch.is_grad_enabled() else [])
        return loss(self, network, c, u, s_a, *rest)

    monkeypatch.setattr(objectives.ARDAE, "loss", spy)
    train(tiny(objective={"name": "ar-dae"}, crops=8, batch=2), tmp_path)
    expected = objectives.ARDAE(0.5, 0.1).noise_levels(0, 8, np.random.default_rng(0))
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


def test_steps_depend_on_the_seed(tiny_sets, tmp_path):
    first = train(tiny(crops=2), tmp_path / "a").read_bytes()
    assert train(tiny(crops=2), tmp_path / "b").read_bytes() == first
    assert train(tiny(crops=2, seed=1), tmp_path / "c").read_bytes() != first


ALL = [{"objective": {"name": name}} for name in objectives.SCORE_MATCHING if name != "r2r"]
ALL.append({"objective": {"name": "r2r", "s_min": 0.3}})  # below, the variance of its target hides what 40 steps learn
TWINS = [{"objective": TWIN}, {"objective": PAIR, "second_seed": 1}]
OTHER_NOISE = [twin | {"noise": table} for table in (POISSON, GAMMA, POISSON_GAUSSIAN) for twin in TWINS]
OTHER_NOISE += [{"noise": table} for table in (POISSON, GAMMA, POISSON_GAUSSIAN)]
RECORRUPTED = {"objective": {"name": "gr2r", "s_max": 2, "s_min": 0.5}}
OTHER_NOISE += [RECORRUPTED] + [RECORRUPTED | {"noise": table} for table in (POISSON, GAMMA)]


def _name(changes: dict) -> str:
    return "-".join([changes.get("objective", TINY["objective"])["name"], changes.get("noise", TINY["noise"])["model"]])


@pytest.mark.parametrize("changes", [*ALL, *TWINS, *OTHER_NOISE], ids=_name)
def test_training_lowers_the_held_out_loss(tiny_sets, tmp_path, changes):
    rows = _rows(train(tiny(crops=80, batch=2, every=10, warmup=10, **changes), tmp_path).with_suffix(".csv"))
    losses = [float(row["held_out_loss"]) for row in rows]
    drop = losses[0] - losses[-1]
    assert drop > 0 and min(losses) >= losses[-1] - 0.1 * drop


def test_a_run_starts_from_given_weights(tiny_sets, tmp_path, monkeypatch):
    first = train(tiny(crops=4), tmp_path)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda optimizer: None)
    second = train(tiny(name="second", crops=1, start=str(first)), tmp_path)
    assert second.read_bytes() == first.read_bytes()
    assert load_record(second)["start_sha256"] == files.sha256(first)
    third = load_record(train(tiny(name="third", crops=1, start=str(second)), tmp_path))
    assert [(stage["crop"], stage["crops"]) for stage in third["before"]] == [(32, 4), (32, 1)] and third["crops"] == 1


def test_a_start_serves_another_noise_level_by_a_change_of_variables(tiny_sets, tmp_path, monkeypatch):
    """The network is the same; what it sees and what its output is worth follow from the noise."""
    first = train(tiny(crops=4), tmp_path)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda optimizer: None)
    twice = train(tiny(name="second", crops=1, noise={"model": "gaussian", "sigma": 50}, start=str(first)), tmp_path)
    assert twice.read_bytes() == first.read_bytes()
    y, models = torch.rand(1, 3, 32, 32), (noise.Gaussian(25.0), noise.Gaussian(50.0))
    ours = load_weights(twice)(models[1].coordinate(y), models[1]) / models[1].std
    expected = 0.5 * load_weights(first)(models[0].coordinate(0.5 * y), models[0]) / models[0].std
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(
    "changes", [{"output_scale": 1.0}, {"deviation": 0.2}, {"shared_blocks": True}, {"width": 12}, {"skewness": True}], ids=str
)
def test_a_start_of_another_network_is_refused(tiny_sets, tmp_path, refused, changes):
    first = train(tiny(crops=1, **changes), tmp_path)
    [(name, value)] = changes.items()
    with refused(f"start = '{first}'", "of another network", f"give {name} = {json.dumps(value)} in [network]"):
        train(tiny(name="second", crops=1, start=str(first)), tmp_path)


def test_a_start_that_was_not_told_the_skewness_serves_a_network_that_is(tiny_sets, tmp_path):
    first = train(tiny(crops=1), tmp_path)
    second = load_weights(train(tiny(name="second", crops=1, skewness=True, start=str(first)), tmp_path))
    assert second.skewness and second.network.encoder[0][0][0].weight.shape[1] == 4


def test_a_start_is_named_after_the_run_beside(tiny_sets, tmp_path):
    first = train(tiny(crops=1), tmp_path)
    second = train(tiny(name="second", crops=1, start="run"), tmp_path)
    assert load_record(second)["start_sha256"] == files.sha256(first)


def test_a_missing_start_is_refused(tiny_sets, tmp_path, refused):
    with refused("start = 'none.safetensors'", "no such weights file", tmp_path):
        train(tiny(start="none.safetensors"), tmp_path)
    assert not list(tmp_path.glob("run*"))


def test_network_options_reach_the_network_and_its_file(tiny_sets, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda optimizer: None)
    model, c = noise.Gaussian(25.0), 10 * torch.rand(1, 3, 32, 32)

    def trained(name, **changes):
        return load_weights(train(tiny(name=name, crops=1, **changes), tmp_path))

    plain = trained("run", kink="leaky")
    torch.testing.assert_close(10 * trained("small", kink="leaky", output_scale=1.0)(c, model), plain(c, model))
    rounded = trained("rounded", kink="softplus", kink_width=0.2)
    assert not torch.allclose(rounded(c, model), plain(c, model))
    plain.network.activation.kink, plain.network.activation.width = "softplus", 0.2
    assert torch.equal(rounded(c, model), plain(c, model))
    shared = trained("shared", shared_blocks=True).network.state_dict()
    assert torch.equal(shared["encoder.1.0.weight"], shared["encoder.4.0.weight"])
    assert torch.equal(shared["decoder.1.0.0.weight"], shared["decoder.3.0.0.weight"])
    assert trained("wide", deviation=0.5).deviation == 0.5


class Plain(torch.nn.Module):
    """A network of its own: half the size and back, stride 2, reach 4."""

    stride, reach = 2, 4

    def __init__(self, channels, output_scale, **_):
        super().__init__()
        self.channels, self.output_scale = channels, output_scale
        down, up = torch.nn.Conv2d(channels, 8, 4, 2, 1), torch.nn.ConvTranspose2d(8, channels, 4, 2, 1)
        self.layers = torch.nn.Sequential(down, torch.nn.SiLU(), up)

    def forward(self, t):
        return self.output_scale * self.layers(t)


def test_another_network_trains_is_saved_loaded_by_its_record_and_denoises(tiny_sets, tmp_path, monkeypatch):
    monkeypatch.setitem(NETWORKS, "plain", Plain)
    weights = train(tiny(network={"name": "plain", "kink": "leaky"}, crop=30, crops=60, every=20, learning_rate=1e-2), tmp_path)
    losses = [float(row["held_out_loss"]) for row in _rows(weights.with_suffix(".csv"))]
    assert losses[-1] < losses[0]
    single = denoiser.load(weights, noise.Gaussian(25.0), channels=3)
    assert isinstance(single.network.network, Plain) and (single.network.stride, single.network.reach, single.margin) == (2, 4, 4)
    for name, tensor in load_file(weights).items():
        assert torch.equal(single.network.network.state_dict()[name].half(), tensor)
    y = np.random.default_rng(0).random((31, 45, 3), np.float32)
    assert single(y).shape == y.shape
    monkeypatch.setattr(denoiser, "LEAST_SIDE", 8)
    tiled = denoiser.Denoiser(single.network, single.noise, memory=0.0)
    assert tiled.tile(31, 45)[0] < 31
    np.testing.assert_allclose(tiled(y), single(y), atol=1e-5)


def test_a_crop_must_fit_the_network(tiny_sets, tmp_path, monkeypatch, refused):
    with refused("crop = 30", "multiple of 32"):
        train(tiny(crop=30), tmp_path)
    monkeypatch.setitem(NETWORKS, "plain", Plain)
    with refused("crop = 31", "multiple of 2"):
        train(tiny(network={"name": "plain"}, crop=31), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"shared_blocks": True}, {"objective": TWIN, "fresh_noise": True}, {"noise": GAMMA}, RECORRUPTED | {"noise": POISSON}],
    ids=["shared", "fresh", "gamma", "recorrupted"],
)
def test_resume_is_bit_equal_with_other_networks_and_data(tiny_sets, tmp_path, monkeypatch, signals, changes):
    whole = train(tiny(**changes), tmp_path / "whole").read_bytes()
    with monkeypatch.context() as patch:
        _stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(**changes), tmp_path / "part")
    assert train(tiny(**changes), tmp_path / "part").read_bytes() == whole


def test_estimated_psnr_needs_gaussian_noise_and_rises(tiny_sets, tmp_path):
    rows = _rows(train(tiny(crops=80, batch=2, every=10, warmup=10), tmp_path).with_suffix(".csv"))
    estimates = [float(row["estimated_psnr"]) for row in rows]
    assert estimates[-1] > estimates[0] and 15 < estimates[-1] < 45
    for name, changes in (("poisson", {"noise": POISSON}), ("many-levels", RECORRUPTED)):
        rows = _rows(train(tiny(name=name, crops=2, **changes), tmp_path).with_suffix(".csv"))
        assert rows[-1]["estimated_psnr"] == ""


def test_a_grey_set_trains_a_grey_network(tiny_sets, tmp_path):
    assert load_weights(train(tiny(dataset="tiny-grey", held_out="tiny-grey", crops=1), tmp_path)).channels == 1


@pytest.mark.parametrize("table", [{"model": "gaussian", "sigma": 50}, POISSON, GAMMA, POISSON_GAUSSIAN], ids=lambda table: table["model"])
def test_bf16_and_every_noise_model_run(tiny_sets, tmp_path, table):
    weights = train(tiny(noise=table, precision="bf16", crops=2), tmp_path)
    assert all(tensor.isfinite().all() for tensor in load_file(weights).values())
    assert load_record(weights)["config"]["noise"]["model"] == table["model"]


# What is held out.


def _run(folder, group=None, **changes) -> Run:
    return Run(tiny(**changes), folder / "none.pt", None, Feed, group or Group())


def test_the_held_out_loss_is_that_of_the_average(tiny_sets, tmp_path):
    run = _run(tmp_path)
    before = run.held_out_loss(), run.estimated_psnr()
    with torch.no_grad():
        for parameter in run.optimizer.model.parameters():
            parameter.mul_(1.5)
    assert (run.held_out_loss(), run.estimated_psnr()) == before
    with torch.no_grad():
        for parameter in run.optimizer.ema.parameters():
            parameter.mul_(1.5)
    assert run.held_out_loss() != before[0] and run.estimated_psnr() != before[1]


def test_held_out_crops_are_the_same_for_every_seed_and_name(tiny_sets, tmp_path):
    first, other = _run(tmp_path), _run(tmp_path, seed=1, name="other", batch=2)
    for ours, theirs in zip(first.feed.held_out, other.feed.held_out, strict=True):
        assert torch.equal(ours, theirs)


def test_the_held_out_loss_is_computed_in_float32_in_every_precision(tiny_sets, tmp_path):
    first, other = (_run(tmp_path, precision=precision) for precision in ("fp32", "bf16"))
    kinds = []
    other.optimizer.ema.network.bottom[0].register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    assert other.held_out_loss() == pytest.approx(first.held_out_loss(), rel=1e-5)
    other.estimated_psnr()
    assert set(kinds) == {torch.float32}


# Precision.


def _kinds(monkeypatch) -> list:
    """The types that convolutions put out in training steps: a list that fills as runs train."""
    kinds, forward = [], torch.nn.Conv2d.forward

    def spy(self, x):
        output = forward(self, x)
        if torch.is_grad_enabled():
            kinds.append(output.dtype)
        return output

    monkeypatch.setattr(torch.nn.Conv2d, "forward", spy)
    return kinds


@pytest.mark.parametrize(
    ("choice", "units", "expected"),
    [("bf16", False, "bf16"), ("fp32", True, "fp32"), ("auto", True, "bf16"), ("auto", False, "fp32")],
)
def test_steps_are_computed_in_the_precision_that_is_recorded(tiny_sets, tmp_path, monkeypatch, choice, units, expected):
    kinds = _kinds(monkeypatch)
    monkeypatch.setattr(machine, "has_bf16_units", lambda device: units)
    weights = train(tiny(crops=1, precision=choice), tmp_path)
    assert set(kinds) == {torch.bfloat16 if expected == "bf16" else torch.float32}
    assert load_record(weights)["precision"] == expected == _checkpoint(tmp_path)["precision"]


@pytest.mark.parametrize(("first", "units"), [("bf16", False), ("fp32", True)])
def test_a_run_goes_on_in_the_precision_it_began_in(tiny_sets, tmp_path, monkeypatch, capsys, refused, first, units):
    """On a machine that would take the other one, with one line that says so; asked for by name it is refused."""
    other = {"bf16": "fp32", "fp32": "bf16"}[first]
    whole = train(tiny(precision=first), tmp_path / "whole").read_bytes()
    with monkeypatch.context() as patch:
        _stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(precision=first), tmp_path / "part")
    monkeypatch.setattr(machine, "has_bf16_units", lambda device: units)
    with refused(tmp_path / "part" / "run" / "checkpoint.pt", f"began in {first}, asked for {other}", "auto"):
        train(tiny(precision=other), tmp_path / "part")
    capsys.readouterr()
    kinds = _kinds(monkeypatch)
    weights = train(tiny(precision="auto"), tmp_path / "part")
    assert capsys.readouterr().out == f"run: goes on in {first}, as it began; this machine would take {other}\n"
    assert weights.read_bytes() == whole and load_record(weights)["precision"] == first
    assert set(kinds) == {torch.bfloat16 if first == "bf16" else torch.float32}


# Schedules and averages.


def test_the_schedule_is_what_the_optimizer_uses(tiny_sets, tmp_path, monkeypatch):
    used = []
    _after_each_step(monkeypatch, lambda run: used.append(run.optimizer.adam.param_groups[0]["lr"]))
    weights = train(tiny(crops=12, warmup=4, learning_rate=1e-3), tmp_path)
    cosine = [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert used == pytest.approx([1e-3 * rate for rate in [0.25, 0.5, 0.75, 1, *cosine]])
    logged = [float(row["learning_rate"]) for row in _rows(weights.with_suffix(".csv"))]
    assert logged[:2] == pytest.approx([7.5e-4, 1e-3]) and logged[-1] == 0  # of the step to come


def test_average_of_constant_weights_is_those_weights(tiny_sets, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda optimizer: None)
    train(tiny(seed=3), tmp_path)
    saved = _checkpoint(tmp_path)
    torch.manual_seed(3)
    for name, tensor in UNet(3).state_dict().items():
        assert torch.equal(saved["model"][name], tensor) and torch.equal(saved["ema"][name], tensor)


def _bottom(model) -> torch.Tensor:
    return model.network.bottom[0].weight.detach().clone()


@pytest.mark.parametrize(("ema", "decays"), [(0.999, (2 / 11, 3 / 12, 4 / 13)), (0.2, (2 / 11, 0.2, 0.2))])
def test_average_follows_the_weights_quickly_at_first(tiny_sets, tmp_path, monkeypatch, ema, decays):
    """Its decay after step t is the smaller of `ema` and (1 + t) / (10 + t)."""
    trail = []
    _after_each_step(monkeypatch, lambda run: trail.append([_bottom(net) for net in (run.optimizer.model, run.optimizer.ema)]))
    train(tiny(ema=ema, crops=3), tmp_path)
    torch.manual_seed(tiny().optimisation.seed)
    expected = UNet(3).bottom[0].weight.detach()
    for decay, (current, average) in zip(decays, trail, strict=True):
        expected = decay * expected + (1 - decay) * current
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(average, current)


def _gradient_norm(run) -> float:
    return torch.cat([parameter.grad.flatten() for parameter in run.optimizer.model.parameters()]).norm().item()


def test_gradients_are_clipped(tiny_sets, tmp_path, monkeypatch):
    norms = []
    _after_each_step(monkeypatch, lambda run: norms.append(_gradient_norm(run)))
    train(tiny(crops=1, clip=1e-3), tmp_path / "a")
    train(tiny(crops=1, clip=1e9), tmp_path / "b")
    assert norms[0] == pytest.approx(1e-3, rel=1e-2) and norms[1] > 1e-2


def test_minutes_become_a_recorded_budget_whose_schedule_ends(tiny_sets, tmp_path, monkeypatch, capsys):
    """On a clock where a step takes 0.5 s, 15 seconds are 30 steps."""
    _clock(monkeypatch, lambda: 0.5)
    weights = train(tiny(crops=0, minutes=0.25, batch=2, warmup=8, every=50), tmp_path)
    record = load_record(weights)
    assert (record["steps"], record["crops"], record["minutes"]) == (30, 60, 0.2)
    assert "0.25 minutes allow 60 crops" in capsys.readouterr().out
    assert _rows(weights.with_suffix(".csv"))[-1]["learning_rate"] == "0.0"
    assert _checkpoint(tmp_path)["total"] == 30
    assert (record["config"]["optimisation"]["minutes"], record["config"]["optimisation"]["crops"]) == (0.25, 0)


@pytest.mark.parametrize("warmup", [1, 3, 16])
def test_minutes_reach_the_end_of_the_schedule_after_any_warm_up(tiny_sets, tmp_path, monkeypatch, warmup):
    """Six seconds are 12 steps; a warm-up longer than that is finished all the same."""
    _clock(monkeypatch, lambda: 0.5)
    weights = train(tiny(crops=0, minutes=0.1, warmup=warmup, every=50), tmp_path)
    steps = load_record(weights)["steps"]
    assert steps == 12 if warmup < 12 else warmup < steps < warmup + 12
    assert _rows(weights.with_suffix(".csv"))[-1]["learning_rate"] == "0.0"


@pytest.mark.parametrize("stop", [1, 6, 15])
def test_minutes_survive_a_stop_before_and_after_the_speed_is_known(tiny_sets, tmp_path, monkeypatch, stop):
    _clock(monkeypatch, lambda: 0.5)
    timed = tiny(crops=0, minutes=0.15, warmup=6, every=50)
    with monkeypatch.context() as patch:
        _stop_after(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            train(timed, tmp_path)
    assert load_record(train(timed, tmp_path))["steps"] == pytest.approx(18, abs=1)


def test_a_budget_once_set_survives_a_slower_machine(tiny_sets, tmp_path, monkeypatch):
    pace = 0.5
    _clock(monkeypatch, lambda: pace)
    timed = tiny(crops=0, minutes=0.25, warmup=4, every=50)
    with monkeypatch.context() as patch:
        _stop_after(patch, 20)
        with pytest.raises(KeyboardInterrupt):
            train(timed, tmp_path)
    pace = 50.0
    assert _checkpoint(tmp_path)["total"] == load_record(train(timed, tmp_path))["steps"] == 30


# What stops a run.


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(tiny_sets, tmp_path, monkeypatch, refused):
    _poison(monkeypatch, after=4)  # good checkpoints at steps 2 and 4
    with refused("run: the loss", "no finite number before step 6", tmp_path / "run" / "checkpoint.pt"):
        train(tiny(crops=20), tmp_path)
    saved = _checkpoint(tmp_path)
    assert saved["step"] == 4 and all(tensor.isfinite().all() for tensor in saved["model"].values())
    assert [row["step"] for row in _rows(tmp_path / "run" / "metrics.csv")] == ["2", "4"]
    assert not (tmp_path / "run" / "run.safetensors").exists()


def test_nan_loss_before_the_first_checkpoint_leaves_none(tiny_sets, tmp_path, monkeypatch, refused):
    _poison(monkeypatch, after=0)
    with refused("run: the loss", "no finite number"):
        train(tiny(), tmp_path)
    assert not (tmp_path / "run").exists()


def test_ctrl_c_after_a_nan_loss_keeps_the_last_good_checkpoint(tiny_sets, tmp_path, monkeypatch, refused):
    _poison(monkeypatch, after=4)
    _stop_after(monkeypatch, 5)  # before the next check
    with refused("no finite number before step 5"):
        train(tiny(crops=20), tmp_path)
    assert _checkpoint(tmp_path)["step"] == 4


def test_nan_gradient_of_a_finite_loss_stops_even_in_the_last_step(tiny_sets, tmp_path, monkeypatch, refused):
    loss = objectives.AntitheticARDAE.loss

    def poisoned(self, *arguments):
        value = loss(self, *arguments)
        if torch.is_grad_enabled():
            value.register_hook(lambda gradient: gradient * float("nan") if (tmp_path / "run").exists() else gradient)
        return value

    monkeypatch.setattr(objectives.AntitheticARDAE, "loss", poisoned)
    with refused("run: the loss or its gradient", "no finite number before step 3"):
        train(tiny(crops=3), tmp_path)
    assert _checkpoint(tmp_path)["step"] == 2 and not (tmp_path / "run" / "run.safetensors").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a checkpoint", b"PK\x03\x04" + bytes(500), bytes(1000)],
    ids=["empty", "text", "zip header", "zeros"],
)
def test_corrupt_checkpoint_is_refused(tiny_sets, tmp_path, refused, content):
    path = tmp_path / "run" / "checkpoint.pt"
    path.parent.mkdir()
    path.write_bytes(content)
    with refused(path, "corrupt or not a checkpoint of ours", "remove it"):
        train(tiny(), tmp_path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9999])
def test_truncated_checkpoint_is_refused(tiny_sets, tmp_path, refused, share):
    train(tiny(crops=1), tmp_path)
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with refused(path, "corrupt or not a checkpoint of ours", "remove it"):
        train(tiny(crops=1), tmp_path)


def test_a_checkpoint_with_any_byte_altered_is_refused(tiny_sets, tmp_path, refused):
    train(tiny(crops=1), tmp_path)
    path = tmp_path / "run" / "checkpoint.pt"
    good = path.read_bytes()
    for place in np.random.default_rng(0).integers(len(good), size=20):
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bad)
        with refused(path, "corrupt"):
            train(tiny(crops=1), tmp_path)


@pytest.mark.parametrize("content", [{"model": {}}, [1, 2]], ids=["dict", "list"])
def test_torch_file_of_another_program_is_refused(tiny_sets, tmp_path, refused, content):
    path = tmp_path / "run" / "checkpoint.pt"
    path.parent.mkdir()
    torch.save(content, path)
    with refused(path, "not a checkpoint of ours"):
        train(tiny(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"seed": 1}, "optimisation.seed"),
        ({"crops": 60}, "optimisation.crops"),
        ({"objective": {"name": "ar-dae"}}, "objective.name"),
        ({"noise": {"model": "gaussian", "sigma": 50}}, "noise.sigma"),
        ({"noise_seed": 1}, "data.noise_seed, data"),
        ({"dataset": "tiny-one"}, "data.dataset, data"),
        ({"kink": "leaky", "clip": 2.0}, "network.kink, optimisation.clip"),
    ],
)
def test_checkpoint_of_another_configuration_is_refused(tiny_sets, tmp_path, refused, changes, names):
    train(tiny(crops=1), tmp_path)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with refused(tmp_path / "run" / "checkpoint.pt", "from another run", names):
        train(tiny(**{"crops": 1} | changes), tmp_path)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def _edit_checkpoint(folder, change) -> None:
    saved = _checkpoint(folder)
    change(saved)
    checkpoint.save(folder / "run" / "checkpoint.pt", saved)


def test_a_checkpoint_without_a_field_of_today_is_one_of_its_default(tiny_sets, tmp_path, refused):
    content = train(tiny(), tmp_path).read_bytes()

    def forget(saved):
        del saved["config"]["network"]["kink_width"], saved["config"]["optimisation"]["clip"], saved["config"]["objective"]["draws"]

    _edit_checkpoint(tmp_path, forget)
    assert train(tiny(), tmp_path).read_bytes() == content
    with refused("from another run", "optimisation.clip"):
        train(tiny(clip=3.0), tmp_path)


def test_a_change_of_the_machine_is_no_other_run(tiny_sets, tmp_path, monkeypatch):
    whole = train(tiny(), tmp_path / "whole").read_bytes()
    with monkeypatch.context() as patch:
        _stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), tmp_path / "part")
    assert train(tiny(every=1), tmp_path / "part").read_bytes() == whole
    assert _rows(tmp_path / "part" / "run" / "run.csv")[-1]["step"] == "6"


def test_a_retrained_start_is_refused(tiny_sets, tmp_path, refused):
    first = train(tiny(crops=1), tmp_path)
    again = tiny(name="second", crops=1, start=str(first))
    train(again, tmp_path)
    train(again, tmp_path)
    (tmp_path / "run" / "checkpoint.pt").unlink()
    train(tiny(crops=2), tmp_path)
    with refused(tmp_path / "second" / "checkpoint.pt", "from another run", "the weights of start"):
        train(again, tmp_path)


def test_a_finished_run_keeps_the_record_of_where_it_was_made(tiny_sets, tmp_path, monkeypatch):
    weights = train(tiny(), tmp_path)
    before = {path.name: path.read_bytes() for path in weights.parent.iterdir()}
    monkeypatch.setattr(machine, "device_name", lambda device: "another processor")
    monkeypatch.setattr(torch, "__version__", "9.9")
    train(tiny(), tmp_path)
    assert {path.name: path.read_bytes() for path in weights.parent.iterdir()} == before
    assert "another" not in load_record(weights)["device"] and load_record(weights)["torch"] != "9.9"


def test_a_run_on_two_machines_names_both(tiny_sets, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "device_name", lambda device: "first")
    with monkeypatch.context() as patch:
        _stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), tmp_path)
    monkeypatch.setattr(machine, "device_name", lambda device: "second")
    assert load_record(train(tiny(), tmp_path))["device"] == "first; second"


def test_checkpoint_of_other_data_is_refused(tiny_sets, tmp_path, monkeypatch, refused):
    train(tiny(crops=1), tmp_path)
    monkeypatch.setitem(datasets.SETS, "tiny", datasets.ImageSet(("tiny/a.png",), 3))
    with refused("checkpoint.pt", "from another run", "data"):
        train(tiny(crops=1), tmp_path)


def test_full_disk_keeps_the_old_checkpoint(tiny_sets, tmp_path, monkeypatch, full_disk, capsys):
    with monkeypatch.context() as patch:
        _stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), tmp_path)
    folder = tmp_path / "run"
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(checkpoint, "write_metrics", lambda *_: None)  # so that the checkpoint meets the full disk first
    capsys.readouterr()
    with full_disk(), pytest.raises(SystemExit) as caught:
        cli.run(lambda: train(tiny(), tmp_path))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "disk full" in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    train(tiny(), tmp_path)  # and with space again it goes on


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"objective": {"name": "n2v"}}, ("'n2v'", "ar-dae")),
        ({"objective": {"name": "supervised"}}, ("s_max = 0.5", "supervised")),
        ({"objective": {"name": "r2r"}, "noise": GAMMA}, ("'r2r'", "gaussian")),
        ({"objective": PAIR}, ("second_seed = 0", "a pair", "second realization")),
        ({"fresh_noise": True}, ("fresh_noise = true", "one noisy realization")),
        ({"start": "none.safetensors"}, ("none.safetensors", "no such weights file")),
        ({"objective": {"s_min": 2.0}}, ("s_min = 2.0", "s_max = 0.5")),
        ({"draws": 0}, ("draws = 0",)),
        ({"cycle": 0}, ("cycle = 0",)),
        ({"crop": 16}, ("crop = 16", "multiple of 32")),
        ({"output_scale": 0.0}, ("output_scale = 0",)),
        ({"deviation": 0.0}, ("deviation = 0",)),
        ({"kink_width": -0.1}, ("kink_width = -0.1",)),
        ({"kink": "sharp"}, ("kink = 'sharp'", "leaky")),
        ({"network": {"name": "vit"}}, ("'vit'", "unet")),
        ({"dataset": "CBSD"}, ("'CBSD'", "CBSD68")),
        ({"held_out": "tiny-grey"}, ("held_out = 'tiny-grey'", "'tiny'")),
        ({"crop": 64}, ("training image a, 48x40", "64")),
    ],
)
def test_bad_data_or_objective_is_refused_before_anything_is_written(tiny_sets, tmp_path, refused, changes, parts):
    with refused(*parts):
        train(tiny(**changes), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_missing_image_is_refused(tiny_sets, tmp_path, monkeypatch, refused):
    missing = Path(os.environ[datasets.FOLDER_VARIABLE]) / "tiny" / "b.png"
    missing.unlink()
    with refused(missing, "missing"):
        train(tiny(), tmp_path)


# The command.


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "run.toml"
    tables = {name: value for name, value in TINY.items() if isinstance(value, dict)}
    lines = [f"[{name}]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) for name, table in tables.items()]
    path.write_text("\n".join(['name = "run"', *lines]) + "\n")
    assert read_stages(path) == [tiny()]
    return path


def _command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.run(training.main)
    return caught.value.code, capsys.readouterr()


def test_command_trains_with_changes(tiny_sets, toml, tmp_path, monkeypatch, capsys):
    changes = "crops=1", "name=short", "optimisation.learning_rate=1e-4"
    status, output = _command(monkeypatch, capsys, toml, *changes, "--out", tmp_path / "runs")
    weights = tmp_path / "runs" / "short" / "short.safetensors"
    assert not status and output.out == f"{weights}\n" and output.err == ""
    tables = load_record(weights)["config"]
    settings = tables["optimisation"]
    assert (settings["crops"], tables["name"], settings["learning_rate"]) == (1, "short", 1e-4)


def test_command_trains_every_stage_each_from_the_one_before(tiny_sets, toml, tmp_path, monkeypatch, capsys):
    toml.write_text(toml.read_text() + "\n[[stages]]\noptimisation = { crops = 3 }\n[[stages]]\noptimisation = { crops = 2 }\n")
    status, output = _command(monkeypatch, capsys, toml, "--out", tmp_path / "runs")
    first, last = (tmp_path / "runs" / name / f"{name}.safetensors" for name in ("run-1", "run"))
    assert not status and output.out == f"{last}\n"
    record = load_record(last)
    assert (load_record(first)["crops"], record["crops"], record["before"][0]["crops"]) == (3, 2, 3)
    assert record["start_sha256"] == files.sha256(first) and record["config"]["start"] == "run-1"
    monkeypatch.setattr(Run, "_take_step", lambda run: pytest.fail("took a step"))
    assert not _command(monkeypatch, capsys, toml, "--out", tmp_path / "runs")[0]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("colour=blue", "unknown field 'colour'"),
        ("crops", "KEY=VALUE"),
        ("crops=many", "crops = 'many'"),
        ("dataset=Moon", "'Moon'"),
        ("paint.colour=blue", "'paint'"),
    ],
)
def test_command_refuses_in_one_line(tiny_sets, toml, tmp_path, monkeypatch, capsys, change, part):
    status, output = _command(monkeypatch, capsys, toml, change, "--out", tmp_path / "runs")
    assert status == 2 and output.out == "" and part in output.err
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_two_processes_do_not_share_a_run(tiny_sets, tmp_path, refused):
    with files.locked(tmp_path / "run"):
        with refused(tmp_path / "run", "another process is at work here"):
            train(tiny(), tmp_path)
    assert train(tiny(), tmp_path).exists()


def test_training_in_a_thread_leaves_signals_alone(tiny_sets, tmp_path):
    paths = []
    thread = threading.Thread(target=lambda: paths.append(train(tiny(), tmp_path)))
    thread.start()
    thread.join()
    assert paths and paths[0].exists()


def test_a_start_whose_record_does_not_say_how_it_was_trained_is_refused(tiny_sets, tmp_path, refused):
    start = train(tiny(name="first"), tmp_path)
    record = json.loads(start.with_suffix(".json").read_text())
    start.with_suffix(".json").write_text(json.dumps({key: value for key, value in record.items() if key != "crops"}))
    with refused("first.json", "does not say how the weights were trained"):
        train(tiny(start="first"), tmp_path)
    assert not (tmp_path / "run").exists()


def test_the_network_is_compiled_once_though_every_batch_has_another_noise(tiny_sets, tmp_path, monkeypatch):
    mixture = {"model": "mixture", "sigma": [5, 60], "zeta": [0.003, 0.1], "k": [20, 150]}
    plain = train(tiny(name="plain", noise=mixture, crops=12), tmp_path)
    compiled = torch.nn.Module.compile
    # Dynamo's own backend takes the same graphs as the default one, and needs no compiler.
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled(module, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    path = train(tiny(name="compiled", noise=mixture, crops=12, compile=True), tmp_path)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    for name, tensor in load_file(plain).items():
        torch.testing.assert_close(load_file(path)[name], tensor)
