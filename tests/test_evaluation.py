"""Measures, result rows, and the command that denoises a folder."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import record_of
from PIL import Image
from scipy.ndimage import gaussian_filter

from n2s_utils import cli, denoiser, estimation, evaluation, noise, photo
from n2s_utils.evaluation import evaluate_unknown
from n2s_utils.files import ROOT, sha256
from n2s_utils.mixture import Mixture
from n2s_utils.network import Architecture
from n2s_utils.weights import save_weights


def _save(path, model, objective="ar-dae", **data):
    torch.manual_seed(0)
    network = Architecture().build(1).network
    record = record_of(Architecture(), 1, objective={"name": objective}, noise={"model": model.name} | model.parameters, data=data)
    save_weights(network.state_dict(), path, record)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return _save(tmp_path_factory.mktemp("weights") / "grey.safetensors", noise.Gaussian(25.0))


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


def _ssim(clean, output):
    """By the paper's formula: window of deviation 1.5 cut at 3.5 deviations (11x11), moments with it, its radius cropped."""

    def mean(values):
        return gaussian_filter(values.astype(np.float64), sigma=1.5, truncate=3.5, axes=(0, 1))

    x, y = clean.astype(np.float64), np.clip(output, 0, 1).astype(np.float64)
    mu_x, mu_y = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2, mean(x * y) - mu_x * mu_y
    values = (2 * mu_x * mu_y + 0.01**2) * (2 * cov + 0.03**2) / ((mu_x**2 + mu_y**2 + 0.01**2) * (var_x + var_y + 0.03**2))
    return values[5:-5, 5:-5].mean()


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_wang_et_al(channels):
    rng = np.random.default_rng(0)
    clean = gaussian_filter(rng.random((40, 33, channels)), 2, axes=(0, 1)).astype(np.float32) * 2 - 0.5
    clean = clean.clip(0, 1)
    output = (clean + 0.2 * rng.standard_normal(clean.shape)).astype(np.float32)  # beyond [0, 1] too
    assert output.min() < 0 < output.max()
    assert evaluation.ssim(clean, output) == pytest.approx(_ssim(clean, output), abs=1e-5)


@pytest.mark.parametrize("model", [noise.Gaussian(25), noise.Poisson(0.02), noise.PoissonGaussian(0.01, 10), noise.Gamma(30)], ids=str)
def test_non_local_means_removes_noise_and_keeps_shape_and_brightness(model):
    clean = np.tile(np.linspace(0.2, 0.8, 48, dtype=np.float32), (48, 1))[:, :, None]
    y = noise.realization(clean, model, "test", "ramp", 0)
    output = evaluation.non_local_means(y, model)
    assert output.shape == y.shape
    assert evaluation.psnr(clean, output) > evaluation.psnr(clean, y) + 5
    assert output.mean() == pytest.approx(clean.mean(), rel=0.01)


def test_rows_have_the_columns_and_see_the_same_noise_for_every_method(tmp_path):
    pictures = [("a", np.full((16, 16, 1), 0.5, np.float32))]
    seen = []
    for method in ("one", "two"):
        rows = list(evaluation.evaluate("set", pictures, noise.Gaussian(25), method, lambda y: seen.append(y) or y, [0, 1]))
    assert [row["seed"] for row in rows] == [0, 1]
    assert np.array_equal(seen[0], seen[2]) and np.array_equal(seen[1], seen[3]) and not np.array_equal(seen[0], seen[1])
    table = evaluation.write_rows(rows, tmp_path / "rows.csv")
    assert list(pd.read_csv(tmp_path / "rows.csv").columns) == evaluation.COLUMNS == list(table.columns)


class Counted:
    """A denoiser that does nothing but count its calls."""

    calls = 0

    def __call__(self, y):
        self.calls += 1
        return y


def _evaluate(denoise, seeds=(0, 1), model=noise.Gaussian(25), method="one", **options):  # noqa: B008
    pictures = [(name, np.full((16, 16, 1), shade, np.float32)) for name, shade in (("a", 0.5), ("b", 0.25))]
    return list(evaluation.evaluate("set", pictures, model, method, denoise, seeds, **options))


@pytest.mark.parametrize("model", [noise.Gaussian(25), noise.PoissonGaussian(0.02, 10)], ids=lambda model: model.name)
def test_recorded_rows_are_given_again_and_not_measured(weights, tmp_path, model):
    first, again = Counted(), Counted()
    rows = _evaluate(first, model=model, weights=weights)
    evaluation.write_rows(rows, tmp_path / "rows.csv")
    recorded = evaluation.read_rows([tmp_path / "rows.csv", tmp_path / "none.csv"])
    assert _evaluate(again, model=model, weights=weights, recorded=recorded) == rows
    assert (first.calls, again.calls) == (4, 0)
    altered = recorded.assign(psnr=1.0)
    assert {row["psnr"] for row in _evaluate(again, model=model, weights=weights, recorded=altered)} == {1.0}


def test_rows_of_anything_else_are_measured(weights, tmp_path):
    rows = _evaluate(Counted(), weights=weights)
    recorded = evaluation.write_rows(rows, tmp_path / "rows.csv")
    others = {
        "seed": {"seeds": (2, 3)},
        "method": {"method": "two"},
        "noise level": {"model": noise.Gaussian(26)},
        "no weights": {"weights": None},
        "estimated noise": {"recorded": recorded.assign(known=0)},
        "other weights of that name": {"recorded": recorded.assign(weights_sha256="0" * 64)},
        "other set": {"recorded": recorded.assign(dataset="sets")},
        "nothing recorded": {"recorded": recorded[:0]},
    }
    for what, options in others.items():
        denoise = Counted()
        measured = _evaluate(denoise, **{"weights": weights, "recorded": recorded} | options)
        assert denoise.calls == 4 and {row["known"] for row in measured} == {1}, what
    denoise = Counted()
    _evaluate(denoise, seeds=(0, 1, 2), weights=weights, recorded=recorded)
    assert denoise.calls == 2


def test_method_names_the_objective_and_fresh_noise(tmp_path):
    for objective in ("ar-dae", "antithetic", "supervised"):
        path = _save(tmp_path / f"{objective}.safetensors", noise.Gaussian(25.0), objective)
        assert evaluation.method_of(path) == objective
    fresh = _save(tmp_path / "fresh.safetensors", noise.Gaussian(25.0), "supervised", fresh_noise=True)
    assert evaluation.method_of(fresh) == "supervised-fresh"


def test_command_measures_a_folder_and_writes_pictures(weights, folder, tmp_path):
    done = command("--weights", weights, "--data", folder, "--sigma", 25, "--csv", tmp_path / "rows.csv", "--pictures", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert list(rows.image) == ["a", "deep"] and set(rows.weights_sha256) == {sha256(weights)} and set(rows.method) == {"ar-dae"}
    assert f"mean of 2: PSNR {rows.psnr.mean():.2f} dB" in done.stdout
    assert Image.open(tmp_path / "out" / "deep.png").size == (50, 40)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"--sigma": "0"}, ["sigma = 0.0"]),
        ({"--sigma": "-5"}, ["sigma = -5.0"]),
        ({"--sigma": "nan"}, ["sigma = nan"]),
        ({"--data": "nowhere"}, ["1 of 1 pictures", "nowhere"]),
        ({"--weights": "nothing.safetensors"}, ["nothing.safetensors"]),
        ({"--sigma": None, "--csv": None}, ["noise", "--sigma, --zeta, --k"]),
        ({"--k": "50"}, ["noise", "--sigma, --zeta, --k"]),
        ({"--zeta": "0.1"}, ["trained for gaussian noise", "poisson-gaussian"]),
        ({"--recorruptions": "0"}, ["recorruptions = 0"]),
    ],
)
def test_command_refuses_bad_input_with_one_line(weights, folder, tmp_path, monkeypatch, capsys, change, parts):
    options = {"--weights": weights, "--data": folder, "--sigma": "25", "--csv": tmp_path / "rows.csv"} | change
    given = {name: value for name, value in options.items() if value is not None}
    monkeypatch.setattr(sys, "argv", ["evaluation", *(str(part) for option in given.items() for part in option)])
    with pytest.raises(SystemExit) as caught:
        cli.run(evaluation.main)
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert error.count("\n") == 1 and error.startswith("error: ")
    for part in parts:
        assert part in error
    assert not (tmp_path / "rows.csv").exists()


def test_command_does_not_overwrite_its_input(weights, folder):
    before = (folder / "a.png").read_bytes()
    done = command("--weights", weights, "--data", folder, "--sigma", 25, "--pictures", folder)
    assert done.returncode == 2 and "would replace an input" in done.stderr
    assert (folder / "a.png").read_bytes() == before


def test_an_empty_path_is_not_the_folder_one_stands_in(weights, folder, tmp_path):
    done = command("--weights", weights, "--data", folder, "--sigma", 25, "--pictures", "")
    assert done.returncode == 2 and "--pictures: empty; give a path" in done.stderr


def test_a_bad_picture_does_not_cost_the_others(weights, folder, tmp_path):
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:200])
    done = command("--weights", weights, "--data", folder, "--sigma", 25, "--csv", tmp_path / "rows.csv")
    assert done.returncode == 2 and "1 of 3 pictures could not be measured" in done.stderr and "b.png" in done.stderr
    assert list(pd.read_csv(tmp_path / "rows.csv").image) == ["a", "deep"]


def test_rows_go_by_default_where_folder_weights_and_noise_tell_them_apart(weights, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "BUILD", tmp_path)
    for sigma in ("25", "50"):
        monkeypatch.setattr(sys, "argv", ["evaluation", "--weights", str(weights), "--data", str(folder), "--sigma", sigma])
        evaluation.main()
    names = sorted(path.name for path in (tmp_path / "evaluation").iterdir())
    assert names == ["in-grey-gaussian25-seed0.csv", "in-grey-gaussian50-seed0.csv"]


def test_the_same_command_measures_only_what_is_not_measured_yet(weights, folder, tmp_path, monkeypatch, capsys):
    def run(*options):
        arguments = ["evaluation", "--weights", weights, "--data", folder, "--sigma", 25, "--csv", tmp_path / "rows.csv", *options]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
        evaluation.main()
        return pd.read_csv(tmp_path / "rows.csv")

    calls, real = [], evaluation.result_row
    monkeypatch.setattr(evaluation, "result_row", lambda *arguments: calls.append(arguments) or real(*arguments))
    first = run()
    pd.testing.assert_frame_equal(run(), first)
    assert len(calls) == 2
    Image.fromarray(np.full((40, 50), 90, np.uint8)).save(folder / "a.png")  # another picture under the old name
    third = run()
    assert len(calls) == 3 and len(third) == 3 and set(third.image_sha256) > set(first.image_sha256)
    run("--seed", 1)
    assert len(calls) == 5 and len(pd.read_csv(tmp_path / "rows.csv")) == 5


def test_pictures_that_exist_are_replaced_only_by_force(weights, folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"the only copy")
    arguments = ("--weights", weights, "--data", folder, "--sigma", 25, "--csv", tmp_path / "rows.csv", "--pictures", tmp_path / "out")
    done = command(*arguments)
    assert done.returncode == 2 and "a.png: exists; give --force" in done.stderr
    assert (tmp_path / "out" / "a.png").read_bytes() == b"the only copy" and (tmp_path / "out" / "deep.png").exists()
    assert command(*arguments, "--force").returncode == 0 and Image.open(tmp_path / "out" / "a.png").size == (50, 40)
    assert command(*arguments).returncode == 0  # measured and written before: nothing to do


def test_a_colour_picture_for_grey_weights_is_said_to_become_grey(weights, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "a.bmp")
    arguments = ("--weights", weights, "--sigma", 25, "--csv", tmp_path / "rows.csv")
    done = command(*arguments, "--data", tmp_path / "a.png")
    assert done.returncode == 0 and "a.png: treated as grey, as the weights are" in done.stdout
    done = command(*arguments, "--data", tmp_path)
    assert done.returncode == 2 and "has the same name but for the suffix" in done.stderr


def test_weights_without_their_record_are_refused(weights, refused):
    record = weights.with_suffix(".json")
    content = record.read_text()
    record.unlink()
    with refused(record):
        evaluation.method_of(weights)
    record.write_text(content)
    assert json.loads(content)["sha256"] == sha256(weights)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (noise.Poisson(0.1), ("--zeta", 0.1)),
        (noise.Gamma(50.0), ("--k", 50)),
        (noise.PoissonGaussian(0.1, 10.0), ("--zeta", 0.1, "--sigma", 10)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_command_serves_every_noise_model(folder, tmp_path, monkeypatch, model, options):
    path = _save(tmp_path / "other.safetensors", model)
    arguments = ["evaluation", "--weights", path, "--data", folder, *options, "--csv", tmp_path / "rows.csv"]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    evaluation.main()
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert set(rows.noise) == {model.name} and set(rows.parameter) == {model.parameter} and rows.psnr.notna().all()
    clean = photo.read(folder / "a.png").picture
    output = denoiser.load(path, model)(noise.realization(clean, model, "in", "a", 0))
    assert rows.psnr[0] == pytest.approx(evaluation.psnr(clean, output), abs=1e-3)


MIXTURE = Mixture((5.0, 60.0), (0.003, 0.1), (20.0, 150.0))


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (("--sigma", 75), "warning: sigma 75 lies outside 5 to 60, which every.safetensors was trained for"),
        (("--sigma", 17), ""),
        (("--zeta", 0.01, "--sigma", 2), ""),
        (("--k", 70), ""),
    ],
)
def test_weights_for_every_noise_serve_each_and_warn_outside_their_range(folder, tmp_path, monkeypatch, capsys, options, warned):
    monkeypatch.chdir(tmp_path)
    path = _save(tmp_path / "every.safetensors", MIXTURE)
    arguments = ["evaluation", "--weights", path, "--data", folder, *options, "--csv", tmp_path / "rows.csv"]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    evaluation.main()
    said = capsys.readouterr().out
    assert "trained on" not in said
    assert warned in said if warned else "warning" not in said


def test_negative_intensities_are_refused_for_counts(tmp_path, refused):
    path = _save(tmp_path / "every.safetensors", MIXTURE)
    for model in (noise.Poisson(0.05), noise.Gamma(50.0)):
        with refused(model.name, "negative intensities", "-0.1"):
            denoiser.load(path, model)(np.full((8, 8, 1), -0.1, np.float32))


def test_weights_that_do_not_say_their_noise_are_refused(tmp_path, refused):
    path = _save(tmp_path / "every.safetensors", MIXTURE)
    record = json.loads(path.with_suffix(".json").read_text())
    for table in ({"model": "mixture", "sigma": 60}, None):
        path.with_suffix(".json").write_text(json.dumps(record | {"config": record["config"] | {"noise": table}}))
        with refused("every.json", "does not say which noise"):
            denoiser.load(path, noise.Gaussian(25.0))


def test_command_averages(weights, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(np.full((16, 20), 128, np.uint8)).save(folder / "a.png")
    for options, suffix in ((("--x8",), "-x8"), (("--recorruptions", "2"), "-recorrupted2-0.3")):
        arguments = ["evaluation", "--weights", weights, "--data", folder, "--sigma", 25, "--csv", tmp_path / f"rows{suffix}.csv", *options]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
        evaluation.main()
        assert set(pd.read_csv(tmp_path / f"rows{suffix}.csv").method) == {"ar-dae" + suffix}


def test_an_unknown_parameter_is_estimated_from_the_noisy_picture_alone():
    model, clean = noise.Gaussian(25.0), np.full((48, 48, 1), 0.5, np.float32)
    weights = ROOT / "data" / "weights" / "grey-antithetic.safetensors"
    told = []

    def denoiser_of(found):
        told.append(found)
        return lambda y: np.full_like(y, 0.5 + 1 / 255)

    [row] = evaluate_unknown("sample", [("flat", clean)], model, "m", denoiser_of, weights)
    expected = estimation.estimate(noise.realization(clean, model, "sample", "flat", 0), "gaussian")
    assert told == [expected] and row["known"] == 0 and row["estimate"] == f"{expected.sigma:.4g}"
    assert row["psnr"] == pytest.approx(20 * np.log10(255), abs=1e-3) and row["parameter"] == 25.0
    [again] = evaluate_unknown("sample", [("flat", clean)], model, "m", denoiser_of, weights, pd.DataFrame([row]))
    assert again["psnr"] == row["psnr"] and len(told) == 1  # found in the record
    other = noise.Gaussian(30.0)
    [fixed] = evaluate_unknown("sample", [("flat", clean)], model, "m", denoiser_of, weights, None, lambda y: other)
    assert told[-1] == other and fixed["estimate"] == "30"
