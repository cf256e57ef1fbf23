"""The training loop: exact resume, budgets, schedules, and everything that stops a run."""

import csv
import dataclasses
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from n2s_utils import cli, datasets, files, noise, objectives, training
from n2s_utils.training import Config, read_config, train
from n2s_utils.unet import UNet
from n2s_utils.weights import load_record, load_weights

# Bit equality is promised for one thread count only.
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(files.ROOT)}

TINY = {
    "name": "run",
    "objective": "antithetic",
    "s_max": 0.05,
    "s_min": 0.01,
    "dataset": "tiny",
    "held_out": "tiny-held-out",
    "crop": 32,
    "batch": 1,
    "crops": 6,
    "warmup": 2,
    "every": 2,
    "precision": "fp32",
}


def tiny(**changes) -> Config:
    return Config(**TINY | changes)


def _rows(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _checkpoint(folder: Path) -> dict:
    stored = (folder / "run" / "checkpoint.pt").read_bytes()  # a digest of 32 bytes, then what torch wrote
    return torch.load(io.BytesIO(stored[32:]), weights_only=True)


@pytest.fixture(autouse=True)
def few_held_out_crops(monkeypatch):
    monkeypatch.setattr(training, "HELD_OUT_PIXELS", 4 * 32**2)


def _after_each_step(monkeypatch, action):
    """Call `action(run)` when the training loop has taken a step."""
    take = training._Run._take_step

    def take_and_act(run):
        take(run)
        action(run)

    monkeypatch.setattr(training._Run, "_take_step", take_and_act)


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

    def poisoned(self, model, y, u, s_a):
        value = loss(self, model, y, u, s_a)
        calls.extend([1] * torch.is_grad_enabled())
        return value * float("nan") if torch.is_grad_enabled() and len(calls) > after else value

    monkeypatch.setattr(objectives.AntitheticARDAE, "loss", poisoned)


# A run in processes of its own, stopped from outside.

STEPS = 120
PROCESS = """
name = "run"
objective = "ar-dae"
s_max = 0.05
s_min = 0.001
dataset = "sample-train"
held_out = "sample"
crop = 32
batch = 2
crops = 240
warmup = 20
every = 15
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
        assert rows == expected and len(rows) == STEPS // 15
    record, expected = (json.loads((run / "run.json").read_text()) for run in (folder, other))
    for key in ("minutes", "crops_per_second"):
        assert record.pop(key) >= 0 and expected.pop(key) >= 0
    assert record == expected


def test_resume_after_ctrl_c_and_after_sigterm_is_bit_equal(uninterrupted, tmp_path):
    for which, rows in ((signal.SIGINT, 1), (signal.SIGTERM, 3)):
        status, _, err = _interrupt(tmp_path, which, rows)
        step = _checkpoint(tmp_path)["step"]
        assert 15 * rows <= step < STEPS
        assert status == 130
        assert err == f"stopped: run: saved at step {step}; the same command goes on from there\n"
        assert not (tmp_path / "run" / "run.safetensors").exists()
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoint.pt", "metrics.csv"]
    assert _finish(_start(tmp_path))[0] == 0
    _assert_same_run(tmp_path / "run", uninterrupted)


def test_resume_after_sigkill_is_bit_equal(uninterrupted, tmp_path):
    status, _, _ = _interrupt(tmp_path, signal.SIGKILL, 2)
    assert status == -signal.SIGKILL and not (tmp_path / "run" / "run.safetensors").exists()
    assert 15 <= _checkpoint(tmp_path)["step"] < STEPS
    assert _finish(_start(tmp_path))[0] == 0
    _assert_same_run(tmp_path / "run", uninterrupted)


def test_shipped_files_of_a_run(uninterrupted):
    record = load_record(uninterrupted / "run.safetensors")
    assert record["sha256"] == files.sha256(uninterrupted / "run.safetensors")
    assert (record["steps"], record["crops"]) == (STEPS, 2 * STEPS)
    assert record["config"] == dataclasses.asdict(read_config(uninterrupted.parent / "run.toml"))
    assert record["device"] and record["torch"] == torch.__version__
    rows = _rows(uninterrupted / "run.csv")
    assert [int(row["step"]) for row in rows] == list(range(15, STEPS + 1, 15))
    assert [int(row["crops"]) for row in rows] == [2 * int(row["step"]) for row in rows]
    assert float(rows[-1]["held_out_loss"]) == record["held_out_loss"]
    checkpoint = _checkpoint(uninterrupted.parent)
    assert checkpoint["data_sha256"] == record["data_sha256"]
    for name, tensor in load_file(uninterrupted / "run.safetensors").items():
        assert torch.equal(tensor, checkpoint["ema"][name].half())


def test_a_run_needs_neither_scikit_image_nor_the_download_code(tiny_sets, tmp_path):
    """pandas, matplotlib, pooch and scipy are blocked as well."""
    script = f"""
import sys
for name in ("skimage", "pandas", "matplotlib", "pooch", "scipy", "papermill", "nbformat", "IPython"):
    sys.modules[name] = None
from n2s_utils import datasets, training
training.HELD_OUT_CROPS = 1
datasets.SETS["tiny"] = datasets.ImageSet(("tiny/a.png", "tiny/b.png"), 3)
datasets.registry = lambda: {tiny_sets!r}
print(training.train(training.Config(**{TINY | {"held_out": "tiny", "crops": 1}!r}), {str(tmp_path)!r}))
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
    monkeypatch.setattr(training._Run, "_take_step", lambda run: pytest.fail("took a step"))
    assert train(tiny(), tmp_path).read_bytes() == content


def test_a_pixel_keeps_its_noise_in_every_step_and_after_a_resume(tiny_sets, tmp_path, monkeypatch):
    """The one training picture is as large as the crop, so each crop is that picture, flipped or turned."""
    seen, loss = [], objectives.AntitheticARDAE.loss

    def spy(self, model, y, u, s_a):
        if torch.is_grad_enabled():
            seen.append((y.clone(), u.clone()))
        return loss(self, model, y, u, s_a)

    monkeypatch.setattr(objectives.AntitheticARDAE, "loss", spy)
    config = tiny(dataset="tiny-one", crops=24, batch=2, every=4)
    with monkeypatch.context() as patch:
        _stop_after(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path)
    before = _checkpoint(tmp_path)["data_sha256"]
    train(config, tmp_path)
    assert _checkpoint(tmp_path)["data_sha256"] == before

    [(name, clean)] = datasets.load("tiny-one")
    noisy = noise.realization(clean, noise.Gaussian(25.0), "tiny-one", name, 0)
    poses = [np.rot90(flipped, turns) for flipped in (noisy, noisy[::-1]) for turns in range(4)]
    assert len(seen) == 12
    met = set()
    for y, _ in seen:
        for crop in y.permute(0, 2, 3, 1).numpy():
            [pose] = [i for i, other in enumerate(poses) if np.array_equal(crop, other)]
            met.add(pose)
    assert len(met) > 4
    draws = torch.stack([u for _, u in seen])
    assert draws.flatten(0, 1).flatten(1).unique(dim=0).shape[0] == 24  # whereas u is fresh in every crop
    assert draws.std().item() == pytest.approx(1, abs=0.02) and abs(draws.mean().item()) < 0.02


def test_options_of_the_data_reach_the_training_set_and_not_the_held_out_one(tiny_sets, tmp_path):
    def run(**changes):
        return training._Run(tiny(crops=1, **changes), tmp_path / "none.pt")

    whole = run()
    assert whole.data.shapes.tolist() == [[40, 48], [32, 40]]
    assert run(keep_every=2).data.shapes.tolist() == [[40, 48]]
    assert run(cut_once=32).data.shapes.tolist() == [[32, 32], [32, 32]]
    clipped = run(clip_noisy=True)
    assert torch.equal(clipped.data.pixels, whole.data.pixels.clip(0, 1)) and whole.data.pixels.max() > 1
    assert torch.equal(clipped.held_out[0], whole.held_out[0]) and whole.held_out[0].max() > 1


def test_the_level_of_a_crop_follows_its_number(tiny_sets, tmp_path, monkeypatch):
    seen, loss = [], objectives.ARDAE.loss

    def spy(self, model, y, u, s_a):
        seen.extend(s_a.flatten().tolist() if torch.is_grad_enabled() else [])
        return loss(self, model, y, u, s_a)

    monkeypatch.setattr(objectives.ARDAE, "loss", spy)
    train(tiny(objective="ar-dae", crops=8, batch=2), tmp_path)
    expected = objectives.ARDAE(0.05, 0.01).noise_levels(0, 8, np.random.default_rng(0))
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


def test_steps_depend_on_the_seed(tiny_sets, tmp_path):
    first = train(tiny(crops=2), tmp_path / "a").read_bytes()
    assert train(tiny(crops=2), tmp_path / "b").read_bytes() == first
    assert train(tiny(crops=2, seed=1), tmp_path / "c").read_bytes() != first


TWIN = {"objective": "supervised", "s_max": 0.0, "s_min": 0.0}
PAIR = TWIN | {"objective": "noise2noise", "second_seed": 1}


@pytest.mark.parametrize(
    "changes", [{"objective": name} for name in objectives.OBJECTIVES[:-2]] + [TWIN, PAIR], ids=lambda changes: changes["objective"]
)
def test_training_lowers_the_held_out_loss(tiny_sets, tmp_path, changes):
    config = tiny(crops=80, batch=2, every=10, warmup=10, **changes)
    rows = _rows(train(config, tmp_path).with_suffix(".csv"))
    losses = [float(row["held_out_loss"]) for row in rows]
    drop = losses[0] - losses[-1]
    assert drop > 0 and min(losses) >= losses[-1] - 0.1 * drop


def _batches(monkeypatch):
    """What the loss is handed in each step: a list that fills as a run trains."""
    batches, draw = [], training._Run._draw

    def draw_and_keep(run, *arguments):
        batches.append(draw(run, *arguments))
        return batches[-1]

    monkeypatch.setattr(training._Run, "_draw", draw_and_keep)
    return batches


def _crops_of(pictures: dict, batches: list) -> bool:
    """Whether every crop (side 32) of the batches is a flipped, turned cut-out of one of the pictures."""
    cuts = set()
    for picture in pictures.values():
        for top, left in np.ndindex(picture.shape[0] - 31, picture.shape[1] - 31):
            cut = picture[top : top + 32, left : left + 32]
            cuts |= {np.rot90(side, turns).tobytes() for side in (cut, cut[:, ::-1]) for turns in range(4)}
    return all(np.ascontiguousarray(crop.permute(1, 2, 0).numpy()).tobytes() in cuts for batch in batches for crop in batch)


def test_self_supervised_training_is_handed_noisy_crops_only(tiny_sets, tmp_path, monkeypatch):
    noisy = datasets.noisy_pictures("tiny", noise.Gaussian(25.0), 0)
    for name in objectives.OBJECTIVES[:-2]:
        batches = _batches(monkeypatch)
        train(tiny(name=name, objective=name, crops=8), tmp_path)
        assert _crops_of(noisy, [y for y, _, _ in batches[1:]])
        assert all(u.abs().mean() > 0.2 and s_a.numel() == 1 for _, u, s_a in batches[1:])


@pytest.mark.parametrize("changes", [TWIN, PAIR], ids=["supervised", "noise2noise"])
def test_twins_compare_the_fixed_noisy_crops_with_their_targets(tiny_sets, tmp_path, monkeypatch, changes):
    batches = _batches(monkeypatch)
    train(tiny(crops=8, **changes), tmp_path)
    model = noise.Gaussian(25.0)
    targets = dict(datasets.load("tiny")) if changes is TWIN else datasets.noisy_pictures("tiny", model, 1)
    assert _crops_of(datasets.noisy_pictures("tiny", model, 0), [y for y, _ in batches[1:]])
    assert _crops_of(targets, [target for _, target in batches[1:]])
    # The same place in both: what differs is the noise, of one image or of two.
    spread = {"supervised": 1, "noise2noise": math.sqrt(2)}[changes["objective"]] * model.std
    assert torch.cat([y - target for y, target in batches[1:]]).std().item() == pytest.approx(spread, rel=0.03)


def test_fresh_noise_differs_at_every_step(tiny_sets, tmp_path, monkeypatch):
    batches = _batches(monkeypatch)
    train(tiny(dataset="tiny-one", crops=8, fresh_noise=True, **TWIN), tmp_path)
    noises = torch.cat([y - clean for y, clean in batches[1:]]).flatten(1)
    assert noises.std().item() == pytest.approx(25 / 255, rel=0.03)
    assert torch.corrcoef(noises).fill_diagonal_(0).abs().max() < 0.2
    assert _crops_of(dict(datasets.load("tiny-one")), [clean for _, clean in batches[1:]])
    train(tiny(name="pair", dataset="tiny-one", crops=4, fresh_noise=True, **PAIR), tmp_path)
    first, second = batches[-1]
    assert (first - second).std().item() == pytest.approx(math.sqrt(2) * 25 / 255, rel=0.1)


def test_draws_repeat_the_crops_with_other_probes(tiny_sets, tmp_path, monkeypatch):
    batches = _batches(monkeypatch)
    train(tiny(crops=4, batch=2, draws=2), tmp_path)
    for y, u, s_a in batches[1:]:
        assert torch.equal(y[:2], y[2:]) and torch.equal(s_a[:2], s_a[2:])
        assert not torch.equal(u[:2], u[2:])


def test_a_run_starts_from_given_weights(tiny_sets, tmp_path, monkeypatch):
    first = train(tiny(crops=4), tmp_path)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda optimizer: None)
    second = train(tiny(name="second", crops=1, start=str(first)), tmp_path)
    assert second.read_bytes() == first.read_bytes()
    assert load_record(second)["start_sha256"] == files.sha256(first)
    third = load_record(train(tiny(name="third", crops=1, start=str(second)), tmp_path))
    assert [(stage["crop"], stage["crops"]) for stage in third["before"]] == [(32, 4), (32, 1)] and third["crops"] == 1


def test_a_start_is_rescaled_to_the_noise_level(tiny_sets, tmp_path, monkeypatch):
    first = train(tiny(crops=4), tmp_path)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda optimizer: None)
    expected, twice = load_weights(first), train(tiny(name="second", crops=1, parameter=50, start=str(first)), tmp_path)
    expected.rescale(0.5)
    y = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(load_weights(twice)(y), expected(y))


def test_a_start_of_another_scale_is_refused(tiny_sets, tmp_path, refused):
    first = train(tiny(crops=1, output_scale=1.0), tmp_path)
    with refused(f"start = '{first}'", "another output_scale"):
        train(tiny(name="second", crops=1, start=str(first)), tmp_path)


def test_network_options_reach_the_network_and_its_file(tiny_sets, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda optimizer: None)
    plain = load_weights(train(tiny(crops=1), tmp_path))
    small = load_weights(train(tiny(name="small", crops=1, output_scale=1.0), tmp_path))
    y = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(10 * small(y), plain(y))
    one_sided = load_weights(train(tiny(name="one-sided", crops=1, relu_output=True), tmp_path))
    assert torch.equal(one_sided(y), plain(y).relu()) and plain(y).min() < 0
    rounded = load_weights(train(tiny(name="rounded", crops=1, kink_width=0.2), tmp_path))
    assert not torch.allclose(rounded(y), plain(y))
    plain.activation.width = 0.2
    assert torch.equal(rounded(y), plain(y))
    shared = load_weights(train(tiny(name="shared", crops=1, shared_blocks=True), tmp_path)).state_dict()
    assert torch.equal(shared["encoder.1.0.weight"], shared["encoder.4.0.weight"])
    assert torch.equal(shared["decoder.1.0.0.weight"], shared["decoder.3.0.0.weight"])


@pytest.mark.parametrize("changes", [{"shared_blocks": True}, TWIN | {"fresh_noise": True}], ids=["shared blocks", "fresh noise"])
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
    rows = _rows(train(tiny(name="poisson", noise="poisson", parameter=0.05, crops=2), tmp_path).with_suffix(".csv"))
    assert rows[-1]["estimated_psnr"] == ""


def test_a_grey_set_trains_a_grey_network(tiny_sets, tmp_path):
    assert load_weights(train(tiny(dataset="tiny-grey", held_out="tiny-grey", crops=1), tmp_path)).channels == 1


def test_bf16_and_every_noise_model_run(tiny_sets, tmp_path):
    for name, parameter in (("gaussian", 50.0), ("poisson", 0.05), ("gamma", 50.0)):
        config = tiny(name=name, noise=name, parameter=parameter, precision="bf16", crops=2)
        assert all(tensor.isfinite().all() for tensor in load_file(train(config, tmp_path)).values())


# Schedules and averages.


def _rate(step, total=110, **changes):
    run = SimpleNamespace(config=tiny(learning_rate=1e-3, warmup=10, **changes), step=step, total=total)
    return training._Run.learning_rate(run)


def test_warm_up_then_cosine_to_zero():
    expected = {0: 1e-4, 4: 5e-4, 9: 1e-3, 10: 1e-3, 35: 1e-3 * (2 + math.sqrt(2)) / 4, 60: 5e-4, 110: 0}
    assert {step: _rate(step) for step in expected} == pytest.approx(expected)


def test_warm_up_then_one_step_to_a_tenth():
    expected = {0: 1e-4, 9: 1e-3, 10: 1e-3, 59: 1e-3, 60: 1e-4, 109: 1e-4}
    assert {step: _rate(step, schedule="step") for step in expected} == pytest.approx(expected)


def test_warm_up_then_constant():
    assert {_rate(step, schedule="constant") for step in (9, 60, 109)} == {1e-3}


def test_the_schedule_is_what_the_optimizer_uses(tiny_sets, tmp_path, monkeypatch):
    used = []
    _after_each_step(monkeypatch, lambda run: used.append(run.optimizer.param_groups[0]["lr"]))
    weights = train(tiny(crops=12, warmup=4, learning_rate=1e-3), tmp_path)
    cosine = [(1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert used == pytest.approx([1e-3 * rate for rate in [0.25, 0.5, 0.75, 1, *cosine]])
    logged = [float(row["learning_rate"]) for row in _rows(weights.with_suffix(".csv"))]
    assert logged[:2] == pytest.approx([7.5e-4, 1e-3]) and logged[-1] == 0  # of the step to come


def test_average_of_constant_weights_is_those_weights(tiny_sets, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda optimizer: None)
    train(tiny(seed=3), tmp_path)
    checkpoint = _checkpoint(tmp_path)
    torch.manual_seed(3)
    for name, tensor in UNet(3).state_dict().items():
        assert torch.equal(checkpoint["model"][name], tensor) and torch.equal(checkpoint["ema"][name], tensor)


@pytest.mark.parametrize(("ema", "decays"), [(0.999, (2 / 11, 3 / 12, 4 / 13)), (0.2, (2 / 11, 0.2, 0.2))])
def test_average_follows_the_weights_quickly_at_first(tiny_sets, tmp_path, monkeypatch, ema, decays):
    """Its decay after step t is the smaller of `ema` and (1 + t) / (10 + t)."""
    trail = []
    _after_each_step(monkeypatch, lambda run: trail.append([net.bottom[0].weight.detach().clone() for net in (run.model, run.ema)]))
    train(tiny(ema=ema, crops=3), tmp_path)
    torch.manual_seed(tiny().seed)
    expected = UNet(3).bottom[0].weight.detach()
    for decay, (current, average) in zip(decays, trail, strict=True):
        expected = decay * expected + (1 - decay) * current
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-7)
        assert not torch.equal(average, current)


def test_gradients_are_clipped(tiny_sets, tmp_path, monkeypatch):
    norms = []
    _after_each_step(monkeypatch, lambda run: norms.append(torch.cat([p.grad.flatten() for p in run.model.parameters()]).norm().item()))
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
    assert (record["config"]["minutes"], record["config"]["crops"]) == (0.25, 0)


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
    config = tiny(crops=0, minutes=0.15, warmup=6, every=50)
    with monkeypatch.context() as patch:
        _stop_after(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path)
    assert load_record(train(config, tmp_path))["steps"] == pytest.approx(18, abs=1)


def test_a_budget_once_set_survives_a_slower_machine(tiny_sets, tmp_path, monkeypatch):
    pace = 0.5
    _clock(monkeypatch, lambda: pace)
    config = tiny(crops=0, minutes=0.25, warmup=4, every=50)
    with monkeypatch.context() as patch:
        _stop_after(patch, 20)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path)
    pace = 50.0
    assert _checkpoint(tmp_path)["total"] == load_record(train(config, tmp_path))["steps"] == 30


# What stops a run.


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(tiny_sets, tmp_path, monkeypatch, refused):
    _poison(monkeypatch, after=4)  # good checkpoints at steps 2 and 4
    with refused("run: the loss", "no finite number before step 6", tmp_path / "run" / "checkpoint.pt"):
        train(tiny(crops=20), tmp_path)
    checkpoint = _checkpoint(tmp_path)
    assert checkpoint["step"] == 4 and all(tensor.isfinite().all() for tensor in checkpoint["model"].values())
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

    def poisoned(self, model, y, u, s_a):
        value = loss(self, model, y, u, s_a)
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
    "changes", [{"seed": 1}, {"crops": 60}, {"objective": "ar-dae"}, {"parameter": 50.0}, {"noise_seed": 1}, {"dataset": "tiny-one"}]
)
def test_checkpoint_of_another_configuration_is_refused(tiny_sets, tmp_path, refused, changes):
    train(tiny(crops=1), tmp_path)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with refused(tmp_path / "run" / "checkpoint.pt", "from another run", *changes):
        train(tiny(**{"crops": 1} | changes), tmp_path)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


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
    monkeypatch.setattr(training._Run, "write_metrics", lambda *_: None)  # so that the checkpoint meets the full disk first
    capsys.readouterr()
    with full_disk(), pytest.raises(SystemExit) as caught:
        cli.run(lambda: train(tiny(), tmp_path))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "disk full" in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    train(tiny(), tmp_path)  # and with space again it goes on


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_device_is_refused(refused):
    with refused("device = 'cuda'", "no usable CUDA device", "cpu"):
        tiny(device="cuda")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"crop": 33}, ("crop = 33", "multiple of 32")),
        ({"crop": 0}, ("crop = 0",)),
        ({"batch": 0}, ("batch = 0",)),
        ({"every": -1}, ("every = -1",)),
        ({"warmup": 0}, ("warmup = 0",)),
        ({"learning_rate": 0.0}, ("learning_rate = 0.0",)),
        ({"learning_rate": float("nan")}, ("learning_rate = nan",)),
        ({"clip": float("inf")}, ("clip = inf",)),
        ({"ema": 1.0}, ("ema = 1.0",)),
        ({"ema": -0.1}, ("ema = -0.1",)),
        ({"crops": 0}, ("crops = 0", "minutes = 0.0", "one of them")),
        ({"minutes": 2.0}, ("crops = 6", "minutes = 2.0", "one of them")),
        ({"crops": -8}, ("crops = -8",)),
        ({"crops": 8, "minutes": -1.0}, ("minutes = -1.0",)),
        ({"minutes": float("inf"), "crops": 0}, ("minutes = inf",)),
        ({"minutes": float("nan")}, ("minutes = nan",)),
        ({"seed": -1}, ("seed = -1",)),
        ({"name": ""}, ("name = ''",)),
        ({"name": "../x"}, ("name = '../x'", "without folders")),
        ({"schedule": "linear"}, ("schedule = 'linear'", "cosine, step")),
        ({"precision": "fp8"}, ("precision = 'fp8'", "bf16, fp32")),
        ({"device": "tpu"}, ("device = 'tpu'", "cpu, cuda")),
        ({"crops": 6.5}, ("crops = 6.5", "type int")),
        ({"draws": 0}, ("draws = 0",)),
        ({"cycle": 0}, ("cycle = 0",)),
        ({"output_scale": 0.0}, ("output_scale = 0",)),
        ({"kink_width": -0.1}, ("kink_width = -0.1",)),
        ({"objective": "noise2noise"}, ("second_seed = 0", "noise2noise", "second realization")),
        ({"second_seed": -1}, ("second_seed = -1",)),
        ({"batch": "8"}, ("batch = '8'", "type int")),
        ({"batch": True}, ("batch = True", "type int")),
        ({"parameter": "25"}, ("parameter = '25'", "type float")),
        ({"compile": 1}, ("compile = 1", "type bool")),
        ({"cut_once": 16}, ("cut_once = 16", "32")),
        ({"keep_every": 0}, ("keep_every = 0",)),
        ({"dataset": 3}, ("dataset = 3", "type str")),
    ],
)
def test_bad_configuration_is_refused(refused, changes, parts):
    with refused(*parts):
        tiny(**changes)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"objective": "n2v"}, ("'n2v'", "ar-dae")),
        ({"objective": "supervised"}, ("s_max = 0.05", "supervised")),
        ({"objective": "r2r", "noise": "gamma"}, ("'r2r'", "gaussian")),
        ({"fresh_noise": True}, ("fresh_noise", "antithetic")),
        ({"start": "none.safetensors"}, ("none.safetensors", "no such weights file")),
        ({"s_min": 0.2}, ("s_min = 0.2", "s_max = 0.05")),
        ({"parameter": 0.0}, ("sigma = 0",)),
        ({"parameter": float("nan")}, ("sigma = nan",)),
        ({"noise": "salt"}, ("'salt'", "gaussian")),
        ({"dataset": "CBSD"}, ("'CBSD'", "CBSD68")),
        ({"held_out": "tiny-grey"}, ("held_out = 'tiny-grey'", "'tiny'")),
        ({"crop": 64}, ("training image a, 48x40", "64")),
        ({"cut_once": 64}, ("training image a, 48x40", "64")),
        ({"slipped_flips": True}, ("slipped_flips", "2 training images")),
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


# The configuration file and the command.


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in TINY.items()))
    return path


def test_configuration_file(toml):
    assert read_config(toml) == tiny()
    assert read_config(toml, {"batch": 3, "parameter": 50}) == tiny(batch=3, parameter=50.0)


def test_a_length_given_later_replaces_the_file_s(toml):
    assert read_config(toml, {"minutes": 5}) == tiny(crops=0, minutes=5.0)
    assert read_config(toml, {"crops": 9}) == tiny(crops=9)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("name = 'a'\nsigmas = 3", ("unknown field 'sigmas'", "s_max")),
        ("name = 'a'", ("field 'objective' is missing",)),
        ("name = ", ("not TOML",)),
        ("\x00\x01", ("not TOML",)),
    ],
)
def test_bad_configuration_file_is_refused(tmp_path, refused, text, parts):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with refused(path, *parts):
        read_config(path)


def test_missing_configuration_file_is_refused(tmp_path, refused):
    with refused(tmp_path / "none.toml", "no readable configuration file"):
        read_config(tmp_path / "none.toml")
    with refused(tmp_path, "no readable configuration file"):
        read_config(tmp_path)


def _command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.run(training.main)
    return caught.value.code, capsys.readouterr()


def test_command_trains_with_changes(tiny_sets, toml, tmp_path, monkeypatch, capsys):
    status, output = _command(monkeypatch, capsys, toml, "crops=1", "name=short", "learning_rate=1e-4", "--out", tmp_path / "runs")
    weights = tmp_path / "runs" / "short" / "short.safetensors"
    assert not status and output.out == f"{weights}\n" and output.err == ""
    config = load_record(weights)["config"]
    assert (config["crops"], config["name"], config["learning_rate"]) == (1, "short", 1e-4)


@pytest.mark.parametrize(
    ("change", "part"),
    [("colour=blue", "unknown field 'colour'"), ("crops", "KEY=VALUE"), ("crops=many", "crops = 'many'"), ("dataset=Moon", "'Moon'")],
)
def test_command_refuses_in_one_line(tiny_sets, toml, tmp_path, monkeypatch, capsys, change, part):
    status, output = _command(monkeypatch, capsys, toml, change, "--out", tmp_path / "runs")
    assert status == 2 and output.out == "" and part in output.err
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()
