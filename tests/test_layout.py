"""A notebook as a page: formulas, links, contents, folded code."""

import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from n2s_utils.files import ROOT
from n2s_utils.report import layout


@pytest.mark.parametrize(
    ("tex", "pieces"),
    [
        (r"\mathbb E[x]", ["<mi>&#x1D53C;</mi>"]),
        (r"\ell'(y)", ["<mi>&#x02113;</mi><mi>′</mi>"]),
        (r"\log p", ["<mi>log</mi><mspace"]),
        (r"\arg\min_x", ["arg", "min"]),
    ],
)
def test_habits_of_tex(tex, pieces):
    assert all(piece in layout.mathml(tex) for piece in pieces) and "\\" not in layout.mathml(tex)
    assert 'display="block"' in layout.mathml(tex, block=True)


@pytest.fixture
def page(tmp_path):
    links = "See [6](06_six.ipynb#6.1-A) and [rows](../data/README.md)."
    prose = f"# 7. Why\n\nIt is $x^2$, or\n\n$$y = x$$\n\nand `a $b$ c`.\n\n## 7.1 How much\n\n{links}"
    image = new_output("display_data", {"image/png": "AAAA"}, metadata={"image/png": {"alt": "A dot."}})
    table = new_output("display_data", {"text/markdown": "| a |\n|---|\n| $z$ |"})
    hidden = new_code_cell("secret = 1", execution_count=1, metadata={"jupyter": {"source_hidden": True}}, outputs=[image])
    shown = new_code_cell("plain = 2", execution_count=2, outputs=[table])
    notebook = new_notebook(cells=[new_markdown_cell(prose), hidden, shown])
    layout.write_page(notebook, tmp_path / "07_why.html", {"06_six": "6. Six", "07_why": "7. Why", "08_eight": "8. Eight"})
    return BeautifulSoup((tmp_path / "07_why.html").read_text(encoding="utf-8"), "html.parser")


def test_formulas_are_mathml_and_code_stays(page):
    assert len(page.select("main math")) == 3 and page.select_one(".formula math")["display"] == "block"
    assert "a $b$ c" in page.select_one("main p code, main div code").text and "$" not in page.select_one("main table").text


def test_links_lead_to_pages_and_to_files(page, tmp_path):
    hrefs = [link["href"] for link in page.select("main .jp-RenderedMarkdown a[href]")]
    assert "06_six.html#6.1-A" in hrefs
    [file] = [href for href in hrefs if href.endswith("README.md")]
    assert (tmp_path / file).resolve() == (ROOT / "data" / "README.md").resolve()


def test_a_page_knows_its_sections_and_its_neighbours(page):
    assert [item.text for item in page.select("nav.contents li a")] == ["7.1 How much"]
    assert page.select_one("nav.contents li a")["href"] == "#7.1-How-much" and page.find(id="7.1-How-much")
    assert [link.text for link in page.select("nav.neighbours")[0].select("a")] == ["← 6. Six", "All chapters", "8. Eight →"]


def test_hidden_code_is_folded_and_pictures_are_described(page):
    [folded] = page.select("details.code")
    assert "secret" in folded.text and "cell 1" in folded.summary.text and "plain" not in folded.text
    assert page.select_one("main img")["alt"] == "A dot." and page.select_one("div.table > table")
