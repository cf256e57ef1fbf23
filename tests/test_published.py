"""data/published.csv: every published figure the report quotes, once, with its source."""

import csv

import pytest

from n2s_utils import datasets, noise
from n2s_utils.files import ROOT

PAPER = "Kim & Ye 2021, Table 2"


@pytest.fixture(scope="module")
def rows():
    with open(ROOT / "data" / "published.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_unique_and_well_formed(rows):
    assert list(rows[0]) == ["dataset", "noise", "parameter", "known", "method", "psnr", "source", "note"]
    keys = [(r["dataset"], r["noise"], r["parameter"], r["known"], r["method"]) for r in rows]
    assert len(keys) == len(set(keys))
    for row in rows:
        assert row["dataset"] in datasets.SETS and row["known"] in ("0", "1")
        rest = [0.051] if row["noise"] == "poisson-gaussian" else []  # its row gives zeta, the note the rest
        noise.make(row["noise"], float(row["parameter"]), *rest)
        assert 20 < float(row["psnr"]) < 40
        assert row["method"] and row["source"] and None not in row


def test_the_paper_s_table_is_complete(rows):
    table = [r for r in rows if r["source"] == PAPER]
    ours = {(r["dataset"], r["noise"], r["parameter"], r["known"]): r["psnr"] for r in table if r["method"] == "noise2score"}
    assert len(ours) == 48  # 24 rows, the parameter known and unknown
    assert ours["CBSD68", "gaussian", "25", "1"] == "30.85" and ours["Kodak", "gamma", "50", "0"] == "31.32"


def test_the_table_s_misprints_are_marked(rows):
    marked = {(r["dataset"], r["noise"], r["parameter"]) for r in rows if r["note"].startswith("misprint")}
    assert marked == {("Kodak", "gaussian", "50"), ("Set12", "gamma", "100")}
