"""Studies: runs trained and measured once, rows that are whole, current and named."""

import dataclasses

import pandas as pd
import pytest

from n2s_utils import studies, training

STUDY = """
[common]
objective = "antithetic"
s_max = 0.05
s_min = 0.01
dataset = "tiny"
held_out = "tiny-held-out"
crop = 32
batch = 1
crops = 2
every = 2

[measure]
dataset = "tiny"
images = 1
held_out = 1
s_a = 0.03
draws = 2

[runs.first]
extra = ["recorrupted", "x8"]

[runs.second]
seed = 1
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
    assert rows[["plain", "recorrupted", "x8"]].notna().values.tolist() == [[True, True, True], [True, False, False]]
    assert rows.plain.between(10, 40).all() and rows.estimated_psnr.between(10, 40).all()
    assert pd.read_csv(study.with_name("demo-curves.csv")).run.tolist() == ["first", "second"]


def test_a_run_with_a_row_is_not_repeated_until_its_settings_change(study, monkeypatch):
    studies.run_study(study, ["first"])
    trained = []
    monkeypatch.setattr(studies, "train", lambda config, folder: trained.append(config.name) or training.train(config, folder))
    studies.run_study(study)
    assert trained == ["second"]
    study.write_text(STUDY.replace("seed = 1", "seed = 2"))
    with pytest.raises(studies.InputError, match="no row of second"):
        studies.read_rows(study)
    (study.parent / "build" / "runs" / "demo" / "second" / "checkpoint.pt").unlink()
    studies.run_study(study)
    assert trained == ["second", "second"] and studies.read_rows(study).seed.tolist() == [0, 2]


def test_incomplete_rows_are_refused_by_name(study, refused):
    with refused("demo", "first, second", "n2s_utils.studies"):
        studies.read_rows(study)
    studies.run_study(study, ["second"])
    with refused("no row of first;"):
        studies.read_rows(study)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("seed = 1", "speed = 1", ("run second", "speed")),
        ("seed = 1", "seed = -1", ("run second", "seed = -1")),
        ('"x8"', '"x9"', ("run first", "'x9'", "recorrupted, x8")),
        ("[measure]", "[measured]", ("[measure]", "missing")),
        ("[common]", "[common", ("not TOML",)),
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


FAULTS = (
    STUDY.partition("[runs")[0].replace("[measure]", "[measure]\nsigma = 50\nalso = { tiny-grey = 1 }")
    + """
[faults]
relu = { relu_output = true }
unscaled = { output_scale = 1 }
scaled-by-two = { output_scale = 2 }

[bases]
ours = []
theirs = ["scaled-by-two", "relu", "unscaled"]

[runs]
ours = { base = "ours", extra = ["earlier"] }
ours-relu = { base = "ours", toggle = "relu" }
theirs = { base = "theirs" }
theirs-scale = { base = "theirs", toggle = "scaled-by-two", seed = 3 }
"""
)


def test_a_fault_is_introduced_where_it_is_missing_and_mended_where_it_is_present(study):
    study.write_text(FAULTS)
    runs = studies.read_study(study)
    assert {name: (run.config.relu_output, run.config.output_scale, run.config.seed) for name, run in runs.items()} == {
        "ours": (False, 10, 0),
        "ours-relu": (True, 10, 0),
        "theirs": (True, 2, 0),  # the later fault of the file overrules
        "theirs-scale": (True, 1, 3),
    }
    assert [run.notes["direction"] for run in runs.values()] == ["", "introduced", "", "mended"]


def test_rows_of_faults_name_them_and_hold_every_set(study):
    study.write_text(FAULTS)
    studies.run_study(study, ["ours", "ours-relu"])
    rows = pd.read_csv(study.with_suffix(".csv"), keep_default_na=False).set_index("run")
    assert rows[["base", "fault", "direction"]].values.tolist() == [["ours", "", ""], ["ours", "relu", "introduced"]]
    assert rows["plain-tiny-grey"].between(5, 40).all()  # read as three channels
    assert rows.loc["ours", "earlier-low"] <= rows.loc["ours", "earlier"] <= rows.loc["ours", "earlier-high"]


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('toggle = "relu"', 'toggle = "rely"', ("run ours-relu", "unknown fault 'rely'", "relu, unscaled, scaled-by-two")),
        ('["scaled-by-two", "relu"', '["scaled", "relu"', ("run theirs", "unknown fault 'scaled'", "relu, unscaled")),
        ('base = "theirs" }', 'base = "there" }', ("run theirs", "unknown base 'there'", "ours, theirs")),
        ("{ relu_output = true }", "{ relu = true }", ("run ours-relu", "relu")),
    ],
)
def test_bad_fault_is_refused(study, refused, old, new, parts):
    assert old in FAULTS
    study.write_text(FAULTS.replace(old, new))
    with refused(study, *parts):
        studies.read_study(study)


def test_settings_follow_what_is_set_and_nothing_else(study):
    run = studies.read_study(study)["first"]
    changed = dataclasses.replace(run, config=dataclasses.replace(run.config, ema=0.5))
    assert changed.settings != run.settings != dataclasses.replace(run, extra=()).settings
    study.write_text(STUDY.replace("seed = 1", "seed = 1\nema = 0.999"))  # the default
    assert studies.read_study(study)["second"].settings != run.settings
    spelt_out = studies.read_study(study)["second"].settings
    study.write_text(STUDY)
    assert studies.read_study(study)["second"].settings == spelt_out
