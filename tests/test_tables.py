"""Tables from rows: the summary's arithmetic, and README and rows in step."""

import nbformat
import numpy as np
import pandas as pd
import pytest

from n2s_utils import noise
from n2s_utils.files import ROOT
from n2s_utils.report import readme, tables


def rows(values: dict[tuple[str, int], float]) -> pd.DataFrame:
    keys = {"dataset": "CBSD68", "method": "noisy", "noise": "gaussian", "parameter": 25.0, "known": 1, "weights": ""}
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
    with refused("README.md", "<!-- psnr-table -->"):
        readme.readme_with({"psnr-table": "| table |"}, "# no marks")


def _all_methods(sigma, **psnr):
    keys = {"noise": "gaussian", "parameter": sigma, "seed": 0, "known": 1, "weights": ""}
    methods = {"noisy": 20.0, "nlm": 28.0, tables.OURS: 30.5} | psnr
    return pd.DataFrame(
        keys | {"dataset": dataset, "method": method, "image": image, "psnr": value}
        for dataset in tables.DATASETS
        for method, value in methods.items()
        for image in ("a", "b")
    )


def test_the_twin_has_its_columns_once_it_is_measured():
    published = tables.read_published()
    assert "twin" not in tables.psnr_table(_all_methods(25.0), published)
    table = tables.psnr_table(_all_methods(25.0, supervised=30.75), published)
    assert (table.twin == 30.75).all() and (table["to the twin"] == -0.25).all() and (table.paired == 0).all()


def test_a_misprint_is_no_target():
    table = tables.psnr_table(_all_methods(50.0), tables.read_published(), noise.Gaussian(50.0))
    assert np.isnan(table.paper["Kodak"]) and table.paper["CBSD68"] == 27.75


def test_readme_holds_the_tables_of_the_recorded_rows():
    text = (ROOT / "README.md").read_text()
    assert readme.readme_with(readme.readme_parts(), text) == text, "run 'make results'"


def test_notebook_holds_the_same_tables():
    cells = nbformat.read(ROOT / "notebooks" / "05_psnr_table.ipynb", 4).cells
    shown = "\n".join(output.data.get("text/markdown", "") for cell in cells for output in cell.get("outputs", []) if "data" in output)
    lines = [line for line in readme.readme_parts()["psnr-table"].splitlines() if line.startswith("| ") and "**" in line]
    assert len(lines) == 24 and [line for line in lines if line not in shown] == []


def test_rows_of_an_estimated_parameter_and_of_another_network_are_never_averaged_in():
    results = _all_methods(25.0, supervised=30.75)
    results.loc[results.method.isin([tables.OURS, tables.TWIN]), "weights"] = "colour-gaussian25-antithetic.safetensors"
    expected = tables.psnr_table(results, tables.read_published())
    worse = results.assign(psnr=results.psnr - 1)
    ours = worse[worse.method == tables.OURS]
    everything = pd.concat([results, worse.assign(known=0), ours.assign(weights="colour-gr2r.safetensors", method="gr2r")])
    table = tables.psnr_table(everything, tables.read_published())
    pd.testing.assert_frame_equal(table[expected.columns], expected)
    assert (table.estimated == 29.5).all() and table["paper, unknown"]["CBSD68"] == 30.78
    assert set(table) - set(expected) == {"estimated", "paper, unknown"}
    general = tables.pick(everything, network="general")
    assert (general[general.method == tables.OURS].psnr == 29.5).all() and tables.TWIN not in set(general.method)
    estimated = tables.pick(everything, known=0)
    assert (estimated[estimated.method == tables.OURS].psnr == 29.5).all()


def test_paired_differences_have_the_interval_of_their_own_mean():
    above = {tables.OURS: (0, 0, 0), tables.TWIN: (0.1, 0.2, -0.3)}
    parts = [rows({(str(image), 0): 30 + image + above[method][image] for image in range(3)}).assign(method=method) for method in above]
    [(mean, interval)] = tables.paired(pd.concat(parts)).to_numpy()
    # Differences -0.1, -0.2, 0.3: mean 0, standard deviation 0.2646, and t = 4.303 for two degrees of freedom.
    assert (mean, interval) == pytest.approx((0, 4.3027 * 0.26458 / 3**0.5), abs=1e-4)


def test_two_networks_of_one_kind_are_refused_by_name(refused):
    results = _all_methods(25.0)
    ours = results[results.method == tables.OURS]
    files = ["colour-gaussian25-antithetic.safetensors", "colour-gaussian25-antithetic-long.safetensors"]
    both = pd.concat([results[results.method != tables.OURS], *(ours.assign(weights=file) for file in files)])
    with refused(*files, tables.OURS, "BSD68"):
        tables.psnr_table(both, tables.read_published())


def test_a_model_of_noise_has_one_table_of_the_network_for_every_noise():
    parts = []
    for name, parameters in tables.TABLE_2.items():
        for value in parameters:
            methods = {tables.OURS: 30.5, tables.TWIN: 30.75} | ({tables.PUBLISHED: 25.0} if name == "poisson" else {})
            rows = _all_methods(value, **methods).assign(noise=name)
            own = rows[rows.method.isin([tables.OURS, tables.TWIN])]
            own = own.assign(psnr=own.psnr + 0.5, weights=f"colour-{name}{value:g}-" + own.method + ".safetensors")
            alone = rows[rows.method == tables.OURS].assign(psnr=30.0)
            rows["method"] = rows.method.replace({ours: last for last, ours in tables.ROLES.items()})
            rows = pd.concat([rows, alone])
            files = {"noisy": "", "nlm": "", tables.PUBLISHED: f"colour-{tables.OURS}.safetensors"}
            rows["weights"] = [files.get(method, f"colour-{method}.safetensors") for method in rows.method]
            own = own[own.dataset.isin(["BSD68", "Set12"] if value == 50 else tables.DATASETS)]  # at sigma 50 in grey alone
            parts += [rows, *([own] if name == "gaussian" else [])]
            parts.append(rows[rows.method == "gr2r"].assign(known=0, psnr=30.4))
    results, published = pd.concat(parts), tables.read_published()
    gaussian, poisson = (tables.main_table(results, published, name) for name in ("gaussian", "poisson"))
    assert gaussian.index.name == "set, σ" and poisson.index.name == "set, ζ"
    assert gaussian.loc["CBSD68, 25"].tolist() == [30.85, "**30.50** (-0.35)", 30.75, "-0.25 ± 0.00", 31.0, "30.40 (30.78)"]
    assert gaussian.loc["Kodak, 50"].tolist()[1::4] == ["**30.50**", "30.40"]  # misprints of the paper
    assert gaussian.loc["Set12, 50"].tolist()[4] == 31.0
    counts = tables.model_table(results, published, "poisson")
    assert (counts["published formula"] == 25).all() and (counts["score matching"] == 30).all() and (counts.ours == 30.5).all()
    assert gaussian["one σ alone"].notna().tolist() == [True] * 4 + [False, False, True, True]
    assert "one σ alone" not in poisson
    text = tables.main_tables(results, published)
    assert [text.count(f"**{name.capitalize()} noise**") for name in tables.TABLE_2] == [1, 1, 1]
    assert "| CBSD68, 0.01 | 32.61 | **30.50** (-2.11) | 30.75 | -0.25 ± 0.00 | 30.40 (32.23) |" in text


def test_a_kept_table_is_measured_once_where_results_are_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    calls = []

    def measure():
        calls.append(1)
        yield {"image": "007", "psnr": 30.0 + len(calls)}

    for output, expected in ((".", 31.0), (".", 31.0), ("build", 32.0), ("build", 33.0)):
        [row] = tables.kept("studies/some.csv", measure, output).to_dict("records")
        assert row == {"image": "007", "psnr": expected}
    assert (tmp_path / "data" / "results" / "studies" / "some.csv").exists()
