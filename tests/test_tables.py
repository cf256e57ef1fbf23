"""Tables from rows: the summary's arithmetic, and README and rows in step."""

import numpy as np
import pandas as pd
import pytest

from n2s_utils import tables
from n2s_utils.files import ROOT


def rows(values: dict[tuple[str, int], float]) -> pd.DataFrame:
    keys = {"dataset": "CBSD68", "method": "noisy", "noise": "gaussian", "parameter": 25.0}
    return pd.DataFrame([keys | {"image": image, "seed": seed, "psnr": psnr} for (image, seed), psnr in values.items()])


def test_seeds_of_an_image_are_averaged_before_the_interval():
    summary = tables.summarise(rows({("a", 0): 29.0, ("a", 1): 31.0, ("b", 0): 32.0, ("b", 1): 32.0})).iloc[0]
    assert summary["mean"] == pytest.approx(31) and summary["images"] == 2
    # Two images, 30 and 32: standard deviation sqrt(2), t(0.975, 1) = 12.7062.
    assert summary["interval"] == pytest.approx(12.7062 * np.sqrt(2) / np.sqrt(2), abs=1e-3)


def test_missing_rows_are_named(refused):
    with refused("no rows of nlm on CBSD68", "make report PROFILE=paper"):
        tables.psnr_table(rows({("a", 0): 29.0}), tables.read_published())


def test_no_results_is_one_line(refused, tmp_path):
    with refused(tmp_path):
        tables.read_results(tmp_path)


def test_readme_without_marks_is_refused(refused):
    with refused("README.md", tables.MARKS[0]):
        tables.readme_with("| table |", "# no marks")


def test_readme_holds_the_table_of_the_recorded_rows():
    readme = (ROOT / "README.md").read_text()
    table = tables.to_markdown(tables.psnr_table(tables.read_results(), tables.read_published()))
    assert tables.readme_with(table, readme) == readme, "run 'make results'"


def test_notebook_holds_the_same_table():
    table = tables.to_markdown(tables.psnr_table(tables.read_results(), tables.read_published()))
    notebook = (ROOT / "notebooks" / "05_psnr_table.ipynb").read_text()
    lines = [line for line in table.splitlines() if "**" in line]
    assert lines and all(line in notebook.encode().decode("unicode_escape") or line in notebook for line in lines)
