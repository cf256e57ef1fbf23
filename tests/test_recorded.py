"""The recorded PSNR is what the shipped weights give: on the benchmarks where they are, else on the sample photos."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import BENCHMARKS_PRESENT

from n2s_utils import config, datasets, denoiser, noise, weights
from n2s_utils.evaluation import evaluate, method_of, read_rows
from n2s_utils.files import ROOT
from n2s_utils.mixture import Mixture
from n2s_utils.report import tables

SHIPPED = sorted((ROOT / "data" / "weights").glob("*.safetensors"))
# Of the larger sets the first pictures only, for time.
BENCHMARK = {"Set12": None, "CBSD68": 3, "Kodak": 3, "BSD68": 1}
# What the networks for every noise are checked on, one picture each.
EVERY_NOISE = [noise.Gaussian(25.0), noise.Poisson(0.01), noise.Gamma(100.0)]
CHECKED = BENCHMARK if BENCHMARKS_PRESENT else {"sample": None, "sample-grey": None}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_weights_have_record_log_and_configuration(path):
    record = weights.load_record(path)  # refuses the record of another file
    assert path.with_suffix(".csv").is_file() and path.with_suffix(".toml").is_file()
    assert record["crops"] > 0 and record["device"] and record["data_sha256"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_later_stage_went_on_from_the_recorded_one_before(path):
    record = weights.load_record(path)
    before = path.with_name(Path(record["config"]["start"]).name)
    stage = json.loads(before.with_suffix(".json").read_text())
    assert record["start_sha256"] == stage["sha256"] and record["before"][-1]["crops"] == stage["crops"]
    assert before.with_suffix(".csv").is_file()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_stage_is_the_one_of_the_configuration_file(path):
    stages = config.read_stages(path.with_suffix(".toml"))
    assert stages[-1].name == path.stem
    for stage in stages:
        record = json.loads(path.with_name(f"{stage.name}.json").read_text())
        assert config.differences(record["config"], stage) == []
        assert record["config"]["start"] == stage.start and record["crops"] == stage.optimisation.crops
        assert path.with_name(f"{stage.name}.csv").is_file()


@pytest.fixture
def all_threads(one_thread):
    torch.set_num_threads(os.cpu_count())


@pytest.mark.parametrize("dataset", CHECKED)
@pytest.mark.usefixtures("all_threads")
def test_recorded_psnr_is_repeated(dataset):
    channels = datasets.image_set(dataset).channels
    rows = tables.read_results()
    rows = rows[(rows.dataset == dataset) & (rows.seed == 0) & (rows.known == 1) & rows.weights.ne("")]
    rows = rows.set_index(["weights", "method", "noise", "parameter", "image"])
    names = [Path(file).stem for file in datasets.image_set(dataset).files][: CHECKED[dataset]]
    pictures = list(datasets.load(dataset, names))
    compared = 0
    for path in SHIPPED:
        if weights.load_record(path)["channels"] != channels:
            continue
        trained = denoiser.trained_noise(path)
        models, chosen = (EVERY_NOISE, pictures[:1]) if isinstance(trained, Mixture) else ([trained], pictures)
        for model in models:
            single = denoiser.load(path, model, channels)
            for row in evaluate(dataset, chosen, model, method_of(path), single, [0], path):
                recorded = rows.loc[tuple(row[key] for key in rows.index.names)]
                assert recorded.weights_sha256 == row["weights_sha256"]
                assert row["psnr"] == pytest.approx(recorded.psnr, abs=0.02), row["image"]
                compared += 1
    assert compared >= len(pictures)


@pytest.mark.parametrize("dataset", CHECKED)
@pytest.mark.usefixtures("all_threads")
def test_weights_serve_another_sigma_as_recorded(dataset):
    kind = "colour" if datasets.image_set(dataset).channels == 3 else "grey"
    path, model = ROOT / "data" / "weights" / f"{kind}-gaussian25-antithetic.safetensors", noise.Gaussian(50.0)
    rows = read_rows([ROOT / "data" / "results" / "studies" / "rescaled.csv"])
    pictures = list(datasets.load(dataset, [Path(datasets.image_set(dataset).files[0]).stem]))
    method = f"{method_of(path)}, rescaled"
    [row] = evaluate(dataset, pictures, model, method, denoiser.load(path, model), [0], path)
    [recorded] = rows[(rows.dataset == dataset) & (rows.method == method) & (rows.image == row["image"])].psnr
    assert row["psnr"] == pytest.approx(recorded, abs=0.02)


def test_recorded_studies_are_of_the_shipped_weights():
    """Notebooks 09 and 10 read these rows and do not measure them again."""
    shipped = {weights.load_record(path)["sha256"] for path in SHIPPED} | {""}
    files = [*(ROOT / "data" / "results").glob("*.csv"), *(ROOT / "data" / "results" / "studies").glob("*.csv")]
    tables_of = {file.name: pd.read_csv(file, keep_default_na=False, dtype=str) for file in files}
    stale = [name for name, table in tables_of.items() if "weights_sha256" in table and not set(table.weights_sha256) <= shipped]
    assert stale == ["first_stage.csv"]  # of the stage before those that ship
