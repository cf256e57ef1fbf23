"""Whole-image denoising: sizes, tiles, measures, and the command."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from n2s_utils import evaluation, noise
from n2s_utils.files import sha256
from n2s_utils.unet import RECEPTIVE_RADIUS, UNet, require_device
from n2s_utils.weights import save_weights


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return UNet(1).eval()


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "grey.safetensors"
    save_weights(model.state_dict(), path, {"config": {"objective": "ar-dae", "parameter": 25.0}})
    return path


@pytest.fixture
def folder(tmp_path):
    """Two grey pictures, one of them with 16 bits."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "in" / "deep.png")
    return tmp_path / "in"


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "n2s_utils.evaluation", *map(str, arguments)], capture_output=True, text=True)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (31, 33), (32, 64), (65, 3)])
def test_any_size_denoises_to_the_same_size(model, shape):
    y = np.random.default_rng(0).random((*shape, 1), np.float32)
    output = evaluation.denoise(model, y, noise.Gaussian(25))
    assert output.shape == y.shape
    assert np.isfinite(output).all()


class Shrinkage(torch.nn.Module):
    """R(y) = -a y, so that all averages are known."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, y):
        return -self.a * y


def test_recorrupted_average_is_the_tweedie_step_at_the_larger_noise():
    y = np.random.default_rng(0).random((32, 32, 3), np.float32)
    gaussian, s_a, draws = noise.Gaussian(51), 0.3, 400
    output = evaluation.denoise_recorrupted(Shrinkage(), y, gaussian, s_a, draws, np.random.default_rng(1))
    shrink = 1 - 2 * (0.2**2 + s_a**2)
    assert output.shape == y.shape
    assert np.mean(output / shrink - y) == pytest.approx(0, abs=4 * s_a / np.sqrt(draws * y.size))
    assert np.std(output / shrink - y) == pytest.approx(s_a / np.sqrt(draws), rel=0.05)


@pytest.mark.parametrize(("draws", "s_a"), [(0, 0.03), (-1, 0.03), (4, 0.0), (4, float("nan"))])
def test_no_recorruption_is_refused(model, refused, draws, s_a):
    with refused(f"recorruptions = {draws}", f"s_a = {s_a}"):
        evaluation.denoise_recorrupted(model, np.zeros((32, 32, 1), np.float32), noise.Gaussian(25), s_a, draws, np.random.default_rng(0))


def test_x8_is_plain_for_a_network_without_direction_and_turns_with_the_picture(model):
    y = np.random.default_rng(0).random((40, 33, 1), np.float32)
    gaussian = noise.Gaussian(25)
    np.testing.assert_allclose(evaluation.denoise_x8(Shrinkage(), y, gaussian), evaluation.denoise(Shrinkage(), y, gaussian), rtol=1e-5)
    output = evaluation.denoise_x8(model, y, gaussian)
    turned = evaluation.denoise_x8(model, np.ascontiguousarray(np.rot90(y[::-1])), gaussian)
    np.testing.assert_allclose(turned, np.rot90(output[::-1]), atol=1e-5)


def test_multiples_of_32_are_not_padded(model):
    y = np.random.default_rng(0).random((64, 96, 1), np.float32)
    with torch.no_grad():
        direct = model(torch.from_numpy(y.transpose(2, 0, 1)[None])).numpy()[0].transpose(1, 2, 0)
    np.testing.assert_allclose(evaluation.score(model, y), direct, atol=1e-4)


@pytest.mark.parametrize("shape", [(64, 3200, 1), (3200, 64, 1)])
def test_tiles_leave_no_seam(model, shape):
    y = np.random.default_rng(0).random(shape, np.float32)
    assert y.size > (64 + 2 * RECEPTIVE_RADIUS) ** 2, "or the second call would use one pass as well"
    whole = evaluation.score(model, y, tile=1024)
    tiled = evaluation.score(model, y, tile=64)
    assert np.abs(whole).max() > 1
    np.testing.assert_allclose(tiled, whole, atol=1e-4)


def test_the_earlier_protocol_measures_crops_under_8_bit_noise_of_cbsd68_only():
    model, pictures = noise.Gaussian(25), [("a", np.zeros((40, 50, 3), np.float32))]
    seen = []
    means = evaluation.evaluate_as_earlier("CBSD68", pictures, model, lambda y: seen.append(y) or y, draws=5, size=32)
    assert means.shape == (5,) and {y.shape for y in seen} == {(32, 32, 3)}
    whole = evaluation.quantised(noise.realization(pictures[0][1], model, "CBSD68", "a", 0))
    assert whole.min() == 0 and np.allclose(whole * 255, np.round(whole * 255), atol=1e-4)
    assert all(set(np.unique(y)) <= set(np.unique(whole)) for y in seen) and len({y.tobytes() for y in seen}) > 1
    # Half of the noise on black is cut off: its PSNR is that of the other half.
    assert means.mean() == pytest.approx(-10 * np.log10(model.std**2 / 2), abs=0.1)
    seen.clear()
    evaluation.evaluate_as_earlier("Kodak", pictures, model, lambda y: seen.append(y) or y, draws=2, size=32)
    assert seen[0].min() < 0 and not np.array_equal(seen[0], seen[1])


def test_psnr_of_known_errors():
    clean = np.full((8, 8, 1), 0.5, np.float32)
    assert evaluation.psnr(clean, clean + 0.1) == pytest.approx(20, abs=1e-4)
    assert evaluation.psnr(clean, clean) == float("inf")
    assert evaluation.psnr(np.ones_like(clean), np.full_like(clean, 3)) == float("inf"), "the output is clamped"


def test_psnr_at_sigma_25_before_clipping_is_20_17():
    clean = np.full((256, 256, 1), 0.5, np.float32)
    y = noise.realization(clean, noise.Gaussian(25), "test", "flat", 0)
    assert evaluation.psnr(clean, y) == pytest.approx(20 * np.log10(255 / 25), abs=0.05)


def test_ssim_of_equal_and_of_tiny_pictures():
    clean = np.random.default_rng(0).random((16, 16, 3), np.float32)
    assert evaluation.ssim(clean, clean) == pytest.approx(1)
    assert evaluation.ssim(clean, 1 - clean) < 0
    assert np.isnan(evaluation.ssim(clean[:10], clean[:10]))


def test_non_local_means_removes_noise_and_keeps_the_shape():
    clean = np.tile(np.linspace(0.2, 0.8, 48, dtype=np.float32), (48, 1))[:, :, None]
    y = noise.realization(clean, noise.Gaussian(25), "test", "ramp", 0)
    output = evaluation.non_local_means(y, noise.Gaussian(25))
    assert output.shape == y.shape
    assert evaluation.psnr(clean, output) > evaluation.psnr(clean, y) + 5


def test_rows_have_the_columns_and_see_the_same_noise_for_every_method(tmp_path):
    pictures = [("a", np.full((16, 16, 1), 0.5, np.float32))]
    seen = []
    for method in ("one", "two"):
        rows = list(evaluation.evaluate("set", pictures, noise.Gaussian(25), method, lambda y: seen.append(y) or y, [0, 1]))
    assert [row["seed"] for row in rows] == [0, 1]
    assert np.array_equal(seen[0], seen[2]) and np.array_equal(seen[1], seen[3]) and not np.array_equal(seen[0], seen[1])
    table = evaluation.write_rows(rows, tmp_path / "rows.csv")
    assert list(pd.read_csv(tmp_path / "rows.csv").columns) == evaluation.COLUMNS == list(table.columns)


def test_command_measures_a_folder_and_writes_pictures(weights, folder, tmp_path):
    done = command("--weights", weights, "--data", folder, "--sigma", 25, "--csv", tmp_path / "rows.csv", "--pictures", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert list(rows.image) == ["a", "deep"] and set(rows.weights_sha256) == {sha256(weights)} and set(rows.method) == {"noise2score"}
    assert f"mean of 2: PSNR {rows.psnr.mean():.2f} dB" in done.stdout
    assert "deep.png: converted from 16-bit I" in done.stdout
    assert Image.open(tmp_path / "out" / "deep.png").size == (50, 40)


def test_command_on_noisy_images_only_writes_pictures(weights, folder, tmp_path):
    done = command("--weights", weights, "--data", folder, "--sigma", 50, "--noisy", "--pictures", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "deep.png"]
    assert "trained at sigma 25, not 50" in done.stdout and "PSNR" not in done.stdout


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"--sigma": "0"}, ["sigma = 0.0"]),
        ({"--sigma": "-5"}, ["sigma = -5.0"]),
        ({"--sigma": "nan"}, ["sigma = nan"]),
        ({"--data": "nowhere"}, ["nowhere", "no such folder"]),
        ({"--weights": "nothing.safetensors"}, ["nothing.safetensors"]),
        ({"--noisy": None}, ["--noisy", "--pictures"]),
    ],
)
def test_command_refuses_bad_input_with_one_line(weights, folder, tmp_path, change, parts):
    options = {"--weights": weights, "--data": folder, "--sigma": "25", "--csv": tmp_path / "rows.csv"} | change
    done = command(*(part for option in options.items() for part in option if part is not None))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    for part in parts:
        assert part in done.stderr
    assert not (tmp_path / "rows.csv").exists()


def test_command_does_not_overwrite_its_input(weights, folder):
    before = (folder / "a.png").read_bytes()
    done = command("--weights", weights, "--data", folder, "--sigma", 25, "--noisy", "--pictures", folder)
    assert done.returncode == 2 and str(folder) in done.stderr
    assert (folder / "a.png").read_bytes() == before


def test_weights_without_their_record_are_refused(weights, refused):
    record = weights.with_suffix(".json")
    content = record.read_text()
    record.unlink()
    with refused(record):
        evaluation.method_of(weights)
    record.write_text(content)
    assert json.loads(content)["sha256"] == sha256(weights)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused(refused):
    with refused("cuda", "cpu"):
        require_device("cuda")
