"""Training on noisy pictures of the user's own."""

import sys

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import truncnorm

from n2s_utils import __main__, cli, estimation, noise, own_training, weights
from n2s_utils.clipping import spread
from n2s_utils.datasets import load
from n2s_utils.denoiser import Denoiser
from n2s_utils.evaluation import psnr

SIGMA = 25.0


def clean_pictures(count, side=64, channels=1):
    rng = np.random.default_rng(0)
    shape = (side, side) if channels == 1 else (side, side, channels)
    fields = [gaussian_filter(rng.standard_normal(shape), 8, axes=(0, 1)) for _ in range(count)]
    return [(0.5 + 0.12 * field / field.std()).clip(0.2, 0.8).astype(np.float32) for field in fields]


def save(path, picture, model=None, seed=0):
    model = model or noise.Gaussian(SIGMA)
    y = noise.realization(picture, model, "own", path.name, seed)
    Image.fromarray((255 * y).round().clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "cells"
    place.mkdir()
    for number, picture in enumerate(clean_pictures(10)):
        save(place / f"{number}.png", picture)
    return place


@pytest.fixture
def run(monkeypatch, capsys):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["n2s", "train", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.run(__main__.run)
        output = capsys.readouterr()
        return caught.value.code or 0, output.out, output.err

    return command


@pytest.fixture
def few_steps(monkeypatch):
    """A budget of a few steps, whatever the minutes."""
    monkeypatch.setattr(own_training.training.Run, "set_budget", lambda self, advance: setattr(self, "total", 4))


def test_a_folder_of_noisy_pictures_is_learned_from_and_what_was_won_is_said(folder, tmp_path, run, few_steps):
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("", encoding="utf-8")
    status, said, complained = run("--data", folder, "--out", tmp_path / "runs")
    assert status == 0, complained
    [line] = [line for line in said.splitlines() if line.startswith("estimated: gaussian noise of sigma")]
    assert float(line.split()[-1]) == pytest.approx(SIGMA, rel=0.06)
    assert "left out: " in said and "broken.png" in said and "1 files of another kind" in said
    assert "9 pictures to learn from, 1 held out" in said and "dB with the shipped weights" in said
    path = tmp_path / "runs" / "own-cells" / "own-cells.safetensors"
    record = weights.load_record(path)
    assert record["config"]["noise"]["model"] == "gaussian" and record["crops"] > 0
    assert f"n2s denoise {folder} --weights {path}" in said


def test_the_same_command_goes_on_and_a_folder_of_the_same_name_is_another_run(folder, tmp_path, run, few_steps):
    for _ in range(2):
        assert run("--data", folder, "--sigma", SIGMA, "--out", tmp_path / "runs")[0] == 0
    save(folder / "one-more.png", clean_pictures(1)[0])
    status, _, complained = run("--data", folder, "--sigma", SIGMA, "--out", tmp_path / "runs")
    assert status == 2 and "from another run (differs in data)" in complained


def test_from_scratch_begins_with_fresh_weights(folder, tmp_path, run, few_steps):
    status, said, _ = run("--data", folder, "--sigma", SIGMA, "--from", "scratch", "--out", tmp_path / "runs")
    record = weights.load_record(tmp_path / "runs" / "own-cells" / "own-cells.safetensors")
    assert status == 0 and record["config"]["start"] == "" and record["config"]["optimisation"]["learning_rate"] == 8e-4
    assert float(said.split(" dB with yours")[0].split()[-1]) < float(said.split(" dB with the shipped")[0].split()[-1])


@pytest.mark.parametrize("model", [noise.Poisson(0.03), noise.PoissonGaussian(0.02, 8.0), noise.Gamma(40.0)], ids=lambda m: m.name)
def test_every_model_and_colour_are_learned(tmp_path, run, few_steps, model):
    place = tmp_path / "in"
    place.mkdir()
    for number, picture in enumerate(clean_pictures(3, side=96, channels=3)):
        save(place / f"{number}.png", picture, model)
    status, said, complained = run("--data", place, "--noise", model.name, "--out", tmp_path / "runs")
    assert status == 0, complained
    found = weights.load_record(tmp_path / "runs" / "own-in" / "own-in.safetensors")["config"]["noise"]
    assert found["model"] == model.name and "estimated" in said


def test_what_cannot_be_learned_from_is_one_line(folder, tmp_path, run, few_steps):
    def refusal(*arguments):
        status, _, complained = run(*arguments, "--out", tmp_path / "runs")
        assert status == 2 and complained.count("\n") == 1
        return complained

    single = tmp_path / "single"
    single.mkdir()
    save(single / "a.png", clean_pictures(1)[0])
    assert "1 pictures to learn from; give two or more" in refusal("--data", single)
    save(single / "b.png", clean_pictures(1, side=20)[0])
    assert "b.png: smaller than 32 pixels" in refusal("--data", single, "--sigma", SIGMA)
    save(folder / "colour.png", clean_pictures(1, channels=3)[0])
    assert "colour.png" in refusal("--data", folder) and "give a configuration, or --data" in refusal()
    assert "give a configuration, or --data" in refusal("a.toml", "--data", folder)
    assert "--minutes: for --data" in refusal("a.toml", "--minutes", 5)
    assert "leave out one of the two" in refusal("--data", folder, "--noise", "poisson", "--sigma", 20)
    for path in single.iterdir():
        Image.fromarray(np.full((64, 64), 128, np.uint8)).save(path)
    assert "one value alone" in refusal("--data", single)


def test_a_series_of_16_bits_has_one_white(tmp_path):
    for number, top in enumerate((900, 4000)):
        Image.fromarray(np.linspace(0, top, 40 * 40).astype(np.uint16).reshape(40, 40)).save(tmp_path / f"{number}.png")
    dark, bright = own_training.photos_of(tmp_path).values()
    assert dark.white == bright.white == 4095
    assert dark.picture.max() == pytest.approx(900 / 4095) and bright.picture.max() == pytest.approx(4000 / 4095)


def test_held_out_pictures_follow_from_names_alone(folder):
    photos = own_training.photos_of(folder)
    pictures = {name: photo.picture for name, photo in photos.items()}
    learned, held_out = own_training.split(pictures)
    assert len(held_out) == 1 and not held_out.keys() & learned.keys()
    again = own_training.split(dict(reversed(pictures.items())))
    assert again[1].keys() == held_out.keys()


@pytest.mark.parametrize(
    ("model", "tolerance"),  # few counts are not linear in their step
    [(noise.Gaussian(25.0), 0.2), (noise.Poisson(0.02), 0.7), (noise.PoissonGaussian(0.01, 10.0), 0.3), (noise.Gamma(60.0), 0.3)],
    ids=str,
)
def test_the_expected_psnr_is_that_against_the_clean_picture(model, tolerance):
    """Which it is never told."""
    _, clean = next(load("sample-grey", ["camera"]))
    y = noise.realization(clean, model, "own", "a", 0)
    network = weights.load_weights(weights.for_every_noise(1))
    expected = own_training.expected_psnr(network, model, {"a": y})
    assert expected == pytest.approx(psnr(clean, Denoiser(network, model)(y)), abs=tolerance)


def test_values_of_a_file_are_spread_to_noise_that_has_a_density():
    model, rng = noise.Gaussian(SIGMA), np.random.default_rng(0)
    x = np.full((200, 200, 1), 0.5, np.float32)
    x[:100] = 0
    y = model.sample(x, rng)
    file = ((255 * y).round().clip(0, 255) / 255).astype(np.float32)
    out = spread(file, x, model, 1 / 255, rng)
    assert np.unique(out).size > 0.95 * out.size and np.abs(out - file)[100:].max() <= 0.51 / 255
    assert out[:100].mean() == pytest.approx(0, abs=0.002) and out[:100].std() == pytest.approx(model.std, rel=0.02)
    assert estimation.estimate(out[100:], "gaussian").sigma == pytest.approx(SIGMA, rel=0.05)
    bright = spread(np.ones_like(x), np.full_like(x, 0.9), model, 1 / 255, rng)
    assert bright.min() > 0.99 and bright.mean() == pytest.approx(truncnorm.mean((1 - 0.9) / model.std, np.inf, 0.9, model.std), abs=2e-3)
    counts = spread(np.zeros((10, 10, 1), np.float32), np.full((10, 10, 1), 0.01), noise.Poisson(0.05), 1 / 255, rng)
    assert counts.min() >= 0
