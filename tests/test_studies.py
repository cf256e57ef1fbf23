"""Studies: runs trained and measured once, rows that are whole, current and named."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import uniform_filter

from n2s_utils import noise, training
from n2s_utils.report import studies
from n2s_utils.report.faults import Faults

STUDY = """
[common.data]
dataset = "tiny"
held_out = "tiny-held-out"
held_out_pixels = 4096

[common.noise]
model = "gaussian"
sigma = 25

[common.objective]
name = "antithetic"
s_max = 0.5
s_min = 0.1

[common.optimisation]
crop = 32
batch = 1
crops = 2

[common.machine]
precision = "fp32"
every = 2

[measure]
dataset = "tiny"
images = 1
held_out = 1
s_a = 0.3
draws = 2

[runs.first]
extra = ["recorrupted", "x8"]

[runs.second]
optimisation = { seed = 1 }
"""


@pytest.fixture
def study(tiny_sets, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "ROOT", tmp_path)  # so that the checkpoints go there too
    path = tmp_path / "demo.toml"
    path.write_text(STUDY)
    return path


def test_a_study_has_a_row_and_a_curve_of_every_run(study):
    studies.run_study(study)
    rows = studies.read_rows(study)
    assert list(rows.index) == ["first", "second"]
    assert (rows.crops == 2).all() and rows.seed.tolist() == [0, 1]
    assert rows[["psnr", "recorrupted", "x8"]].notna().values.tolist() == [[True, True, True], [True, False, False]]
    assert rows.psnr.between(10, 40).all() and rows.estimated_psnr.between(10, 40).all()
    assert pd.read_csv(study.with_name("demo-curves.csv")).run.tolist() == ["first", "second"]


def test_a_run_with_a_row_is_not_repeated_until_its_settings_change(study, monkeypatch):
    studies.run_study(study, ["first"])
    trained = []
    monkeypatch.setattr(studies, "train", lambda config, *rest: trained.append(config.name) or training.train(config, *rest))
    studies.run_study(study)
    assert trained == ["second"]
    study.write_text(STUDY.replace("seed = 1", "seed = 2"))
    with pytest.raises(studies.InputError, match="no row of second"):
        studies.read_rows(study)
    (study.parent / "build" / "runs" / "demo" / "second" / "checkpoint.pt").unlink()
    studies.run_study(study)
    assert trained == ["second", "second"] and studies.read_rows(study).seed.tolist() == [0, 2]


def test_a_run_with_another_start_is_another_run(study):
    studies.run_study(study, ["first"])
    study.write_text(STUDY.replace("[common.data]", 'common.start = "elsewhere"\n[common.data]'))
    with pytest.raises(studies.InputError, match="no row of first"):
        studies.read_rows(study)


def test_incomplete_rows_are_refused_by_name(study, refused):
    with refused("demo", "first, second", "n2s_utils.report.studies"):
        studies.read_rows(study)
    studies.run_study(study, ["second"])
    with refused("no row of first;"):
        studies.read_rows(study)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("seed = 1", "speed = 1", ("run second", "speed")),
        ("seed = 1", "seed = -1", ("run second", "seed = -1")),
        ("seed = 1", 'seed = "one"', ("run second", "[optimisation] seed = 'one'", "type int")),
        ("optimisation = { seed", "optimization = { seed", ("run second", "'optimization'", "optimisation")),
        ('"x8"', '"x9"', ("run first", "'x9'", "recorrupted, x8")),
        ("[measure]", "[measured]", ("[measure]", "missing")),
        ("[common.data]", "[common.data", ("not TOML",)),
    ],
)
def test_bad_study_is_refused(study, refused, old, new, parts):
    study.write_text(STUDY.replace(old, new))
    with refused(study, *parts):
        studies.read_study(study)


def test_unknown_run_and_missing_file_are_refused(study, refused):
    with refused("no run 'third'", "first, second"):
        studies.run_study(study, ["third"])
    with refused("none.toml", "no readable study file"):
        studies.read_study(study.with_name("none.toml"))


def test_a_run_on_a_mixture_is_measured_on_each_noise(study):
    mixture = 'model = "mixture"\nsigma = [5, 60]\nzeta = [0.003, 0.1]\nk = [20, 150]'
    changed = STUDY.replace('model = "gaussian"\nsigma = 25', mixture).replace('extra = ["recorrupted", "x8"]', "")
    study.write_text(changed.replace("draws = 2", "draws = 2\nnoises = { gaussian = [25], poisson = [0.05], gamma = [50] }"))
    studies.run_study(study, ["first"])
    row = pd.read_csv(study.with_suffix(".csv")).iloc[0]
    for label in ("gaussian25", "poisson0.05", "gamma50"):
        assert 5 < row[f"psnr-{label}"] < 40 and 5 < row[f"estimated_psnr-{label}"] < 40
    assert "psnr" not in row


@pytest.mark.parametrize("denoise", [lambda y: uniform_filter(y, (3, 3, 1)), lambda y: y / 2], ids=["blur", "halved"])
@pytest.mark.parametrize(
    ("model", "estimate"),
    [
        (noise.Poisson(0.02), studies.poisson_error),
        (noise.PoissonGaussian(0.02, 20.0), studies.poisson_error),
        (noise.Gamma(20.0), studies.gamma_error),
    ],
    ids=["counts", "camera", "gamma"],
)
def test_error_is_estimated_from_the_noisy_picture(denoise, model, estimate):
    ramp = np.linspace(0.1, 0.9, 400, dtype=np.float32)
    clean = np.stack([np.outer(ramp, ramp), np.outer(ramp[::-1], ramp)], -1)
    y = model.sample(clean, np.random.default_rng(0))
    assert estimate(denoise, y, model) == pytest.approx(((denoise(y) - clean) ** 2).mean(), rel=0.05)


FAULTS = (
    STUDY.partition("[runs")[0].replace("[measure]", "[measure]\nalso = { tiny-grey = 1 }")
    + """
[faults]
relu = { network = { name = "unet-relu-output" } }
unscaled = { network = { output_scale = 1 } }
scaled-by-two = { network = { output_scale = 2 } }
clipped = { pictures = { clip_noisy = true } }

[bases]
ours = []
theirs = ["scaled-by-two", "relu", "unscaled"]

[runs]
ours = { base = "ours", extra = ["earlier"] }
ours-relu = { base = "ours", toggle = "relu" }
theirs = { base = "theirs" }
theirs-scale = { base = "theirs", toggle = "scaled-by-two", optimisation = { seed = 3 } }
ours-clipped = { base = "ours", toggle = "clipped", pictures = { cut_once = 32 } }
"""
)


def test_a_fault_is_introduced_where_it_is_missing_and_mended_where_it_is_present(study):
    study.write_text(FAULTS)
    runs = studies.read_study(study)
    networks = {name: (run.config.network.name, run.config.network.output_scale) for name, run in runs.items()}
    assert {name: (*networks[name], run.config.optimisation.seed) for name, run in runs.items()} == {
        "ours": ("unet", 10, 0),
        "ours-relu": ("unet-relu-output", 10, 0),
        "theirs": ("unet-relu-output", 2, 0),  # the later fault of the file overrules
        "theirs-scale": ("unet-relu-output", 1, 3),
        "ours-clipped": ("unet", 10, 0),
    }
    assert [run.notes["direction"] for run in runs.values()] == ["", "introduced", "", "mended", "introduced"]
    assert [run.faults.clip_noisy for run in runs.values()] == [False, False, False, False, True]
    assert runs["ours-clipped"].faults == Faults(clip_noisy=True, cut_once=32)


def test_rows_of_faults_name_them_and_hold_every_set(study):
    study.write_text(FAULTS)
    studies.run_study(study, ["ours", "ours-relu"])
    rows = pd.read_csv(study.with_suffix(".csv"), keep_default_na=False).set_index("run")
    assert rows[["base", "fault", "direction"]].values.tolist() == [["ours", "", ""], ["ours", "relu", "introduced"]]
    assert rows["psnr-tiny-grey"].between(5, 40).all()  # read as three channels
    assert rows.loc["ours", "earlier-low"] <= rows.loc["ours", "earlier"] <= rows.loc["ours", "earlier-high"]


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('toggle = "relu"', 'toggle = "rely"', ("run ours-relu", "unknown fault 'rely'", "relu, unscaled, scaled-by-two, clipped")),
        ('["scaled-by-two", "relu"', '["scaled", "relu"', ("run theirs", "unknown fault 'scaled'", "relu, unscaled")),
        ('base = "theirs" }', 'base = "there" }', ("run theirs", "unknown base 'there'", "ours, theirs")),
        ('{ name = "unet-relu-output" }', "{ relu = true }", ("run ours-relu", "relu")),
        ("{ clip_noisy = true }", "{ clip = true }", ("run ours-clipped", "clip")),
    ],
)
def test_bad_fault_is_refused(study, refused, old, new, parts):
    assert old in FAULTS
    study.write_text(FAULTS.replace(old, new))
    with refused(study, *parts):
        studies.read_study(study)


def test_the_faults_of_a_run_are_those_of_its_pictures(study, monkeypatch):
    study.write_text(FAULTS)
    seen = []
    monkeypatch.setattr(studies, "train", lambda config, folder, feed: seen.append(feed.keywords) or training.train(config, folder, feed))
    studies.run_study(study, ["ours-clipped"])
    assert seen == [{"faults": Faults(clip_noisy=True, cut_once=32), "variant": ""}]
    curves = pd.read_csv(study.with_name("demo-curves.csv"))
    assert curves.run.tolist() == ["ours-clipped"] and curves.held_out_loss.notna().all()


def test_settings_follow_what_is_set_and_nothing_else(study):
    run = studies.read_study(study)["first"]
    changed = dataclasses.replace(run.config, optimisation=dataclasses.replace(run.config.optimisation, ema=0.5))
    changed = dataclasses.replace(run, config=changed)
    assert changed.settings != run.settings != dataclasses.replace(run, extra=()).settings
    assert run.settings != dataclasses.replace(run, faults=Faults(cut_once=32)).settings
    for other in (changed, dataclasses.replace(run, extra=()), dataclasses.replace(run, faults=Faults(cut_once=32))):
        assert run.made(run.settings) and not run.made(other.settings) and not other.made(run.settings)
    study.write_text(STUDY.replace("seed = 1", "seed = 1, ema = 0.999"))  # the default
    assert studies.read_study(study)["second"].settings != run.settings
    spelt_out = studies.read_study(study)["second"].settings
    study.write_text(STUDY)
    assert studies.read_study(study)["second"].settings == spelt_out


def test_the_machine_is_no_setting(study):
    run = studies.read_study(study)["first"]
    study.write_text(STUDY.replace('precision = "fp32"\nevery = 2', 'precision = "bf16"\nevery = 1'))
    other = studies.read_study(study)["first"]
    assert other.config != run.config and other.settings == run.settings and other.made(run.settings)


def _altered(settings: str, change) -> str:
    content = json.loads(settings)
    change(content)
    return json.dumps(content)


def test_a_default_that_changed_since_is_noticed_and_one_that_came_since_is_no_reason(study):
    """A row holds every field, so a run that leaves one at its default is not taken for one of the old default."""
    run = studies.read_study(study)["first"]
    before = {
        "ema": lambda content: content["config"]["optimisation"].update(ema=0.9),
        "kink": lambda content: content["config"]["network"].update(kink="leaky"),
        "fault": lambda content: content["faults"].update(cut_once=64),
        "sigma": lambda content: content["config"]["noise"].update(sigma=50.0),
        "measure": lambda content: content["measure"].update(s_a=0.4),
    }
    for what, change in before.items():
        assert not run.made(_altered(run.settings, change)), what
    unknown = {
        "field": lambda content: content["config"]["optimisation"].pop("clip"),
        "fault": lambda content: content["faults"].pop("slipped_flips"),
        "table": lambda content: content["config"].pop("network"),
    }
    for what, change in unknown.items():
        assert run.made(_altered(run.settings, change)), what
    study.write_text(STUDY.replace("seed = 1", "clip = 5"))
    second = studies.read_study(study)["second"]
    assert not second.made(_altered(second.settings, unknown["field"]))  # it had the default, and the run has not


def test_rows_of_an_old_default_are_measured_anew(study, monkeypatch, refused):
    studies.run_study(study, ["second"])
    rows = pd.read_csv(study.with_suffix(".csv"))
    rows["settings"] = [_altered(text, lambda content: content["config"]["optimisation"].update(ema=0.9)) for text in rows.settings]
    rows.to_csv(study.with_suffix(".csv"), index=False)
    with refused("no row of first, second"):
        studies.read_rows(study)
    trained = []
    monkeypatch.setattr(studies, "train", lambda config, *rest: trained.append(config.name) or training.train(config, *rest))
    studies.run_study(study, ["second"])
    settings = json.loads(pd.read_csv(study.with_suffix(".csv")).settings[0])
    assert trained == ["second"] and settings["config"]["optimisation"]["ema"] == 0.999
