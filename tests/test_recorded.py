"""The recorded PSNR is what the shipped weights give: on the benchmarks where they are, else on the sample photos."""

import json
from pathlib import Path

import pytest
from conftest import BENCHMARKS_PRESENT

from n2s_utils import datasets, tables, weights
from n2s_utils.evaluation import denoise, evaluate, method_of
from n2s_utils.files import ROOT
from n2s_utils.noise import Gaussian

SHIPPED = sorted((ROOT / "data" / "weights").glob("*.safetensors"))
# Of the colour sets the first pictures only, for time.
BENCHMARK = {"Set12": None, "CBSD68": 3, "Kodak": 3}
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
    assert before.with_suffix(".csv").is_file() and before.with_suffix(".toml").is_file()


@pytest.mark.parametrize("dataset", CHECKED)
def test_recorded_psnr_is_repeated(dataset):
    channels = datasets.image_set(dataset).channels
    rows = tables.read_results()
    rows = rows[(rows.dataset == dataset) & (rows.seed == 0) & rows.weights.ne("")].set_index(["weights", "image"])
    names = [Path(file).stem for file in datasets.image_set(dataset).files][: CHECKED[dataset]]
    pictures = list(datasets.load(dataset, names))
    compared = 0
    for path in SHIPPED:
        model = weights.load_weights(path)
        if model.channels != channels:
            continue
        noise = Gaussian(weights.load_record(path)["config"]["parameter"])
        for row in evaluate(dataset, pictures, noise, method_of(path), lambda y, m=model, n=noise: denoise(m, y, n), [0], path):
            recorded = rows.loc[(path.name, row["image"])]
            assert recorded.weights_sha256 == row["weights_sha256"]
            assert row["psnr"] == pytest.approx(recorded.psnr, abs=0.02), row["image"]
            compared += 1
    assert compared >= len(pictures)
