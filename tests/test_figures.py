"""Figures and tables as a notebook shows them."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from n2s_utils.report import figures


@pytest.fixture
def displayed(tmp_path, monkeypatch):
    """What is displayed, as (object, metadata); the repository's root is an empty folder."""
    shown = []
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "display", lambda item, metadata=None: shown.append((item, metadata)))
    (tmp_path / "README.md").write_text("![A plot](figures/linked.png)")
    return shown


def draw(picture=False):
    figure, axis = plt.subplots()
    axis.imshow(np.zeros((4, 4))) if picture else axis.plot([1, 2])
    return figure


@pytest.mark.parametrize(("picture", "kind", "suffix"), [(False, "image/png", "png"), (True, "image/jpeg", "jpg")])
def test_a_figure_has_its_caption_as_alternative_text_and_below(displayed, tmp_path, picture, kind, suffix):
    figures.save(draw(picture), "some", "build", "One < two.", "studies/x.csv")
    (image, metadata), (caption, _) = displayed
    assert metadata == {kind: {"alt": "One < two."}}
    assert caption.data.startswith("<figcaption>One &lt; two.<br><small>Cell -; rows: <a href=")
    assert '"../data/results/studies/x.csv">x.csv</a>' in caption.data
    assert (tmp_path / "build" / "figures" / f"some.{suffix}").read_bytes() == image.data


def test_the_repository_keeps_the_figures_that_the_readme_links(displayed, tmp_path):
    for name in ("linked", "other"):
        figures.save(draw(), name, ".", "A caption.")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["linked.png"]
    assert len(displayed) == 4 and "rows" not in displayed[1][0].data


def test_a_table_in_markdown():
    index = pd.MultiIndex.from_tuples([("Set|12", 25.0), ("Kodak", 0.01)], names=["set", "level"])
    columns = {("PSNR", "ours"): [1.234, np.nan], ("crops", "n"): [3000, 4], ("PSNR", "gain"): [0.2, -0.1], ("", "said"): ["yes", "no"]}
    table = figures.table(pd.DataFrame(columns, index), "What it is", digits=1).data
    assert table.splitlines() == [
        "**What it is**",
        "",
        "| set | level | PSNR ours | crops n | PSNR gain |  said |",
        "|---|---|---:|---:|---:|---|",
        r"| Set\|12 | 25 | 1.2 | 3,000 | +0.2 | yes |",
        "| Kodak | 0.01 | - | 4 | -0.1 | no |",
    ]


def test_a_table_without_an_index_has_none_and_a_wide_one_is_refused():
    assert figures.to_markdown(pd.DataFrame({"to the paper": [0.1]})).splitlines()[-1] == "| +0.10 |"
    figures.to_markdown(pd.DataFrame(np.zeros((1, 7))))
    with pytest.raises(ValueError, match="8 columns"):
        figures.to_markdown(pd.DataFrame(np.zeros((1, 7))).rename_axis("run"))


def test_parameters_say_whose_numbers_the_text_has():
    paper, sample = (figures.parameters(PROFILE=profile, SETS=["a", ["b", 2.0]], PHOTO="").data for profile in ("paper", "sample"))
    assert paper == "*This run:* profile `paper`, `SETS` a, b 2, `PHOTO` empty. The numbers in the text are those of the profile `paper`."
    assert sample.endswith("those of the profile `paper`; below are those of this run.")
