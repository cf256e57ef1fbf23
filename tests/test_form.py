"""The form of the report: what a program can see of whether it reads well."""

import re
import statistics
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest

from n2s_utils.files import ROOT
from n2s_utils.report import layout, pages, readme

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TEXTS = [ROOT / name for name in ("README.md", "USAGE.md", "CONTRIBUTING.md", "data/README.md")]
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
LONGEST = 35  # words in a sentence
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def shown(path: Path, kind: str) -> list[str]:
    """All output of a kind, "text" for what is printed."""
    outputs = [output for cell in cells(path, "code") for output in cell.outputs]
    return [output.text for output in outputs if kind == "text" and "text" in output] + [
        output.data[kind] for output in outputs if kind in output.get("data", {})
    ]


def markdown(path: Path) -> str:
    """The prose of a notebook, or of a Markdown file; code left out."""
    if path.suffix == ".md":
        return re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return "\n\n".join(cell.source for cell in cells(path, "markdown"))


def sentences(text: str) -> list[str]:
    """Its sentences, a formula or a piece of code counted as one word; tables, headings and pictures are none."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"\$\$.+?\$\$", " FORMULA. ", text, flags=re.DOTALL)
    text = re.sub(r"\$.+?\$|`[^`]+`", "WORD", text)
    text = LINK.sub(r"\1", text)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "#", "!["))]
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", "\n".join(lines))
    parts = [part for block in blocks for part in re.split(r"(?<=[.!?])[*_)”\"]*\s+", " ".join(block.split()))]
    return [part for part in parts if part.strip("-*_ ")]


def columns(text: str) -> list[int]:
    """The number of columns of each Markdown table."""
    return [line.count("|") - 1 for line in re.findall(r"^\|[-:| ]+\|$", text, re.MULTILINE)]


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "README.md"], ids=lambda path: path.stem)
def test_sentences_are_short(path):
    lengths = {sentence: len(sentence.split()) for sentence in sentences(markdown(path))}
    mean, longest = statistics.mean(lengths.values()), max(lengths.values())
    print(f"{path.stem}: {len(lengths)} sentences, {mean:.1f} words in the mean, at most {longest}")
    assert [sentence for sentence, length in lengths.items() if length > LONGEST] == []
    assert mean < 18


@each_notebook
def test_figures_have_alternative_text_and_a_caption(path):
    for cell in cells(path, "code"):
        for output, following in zip(cell.outputs, [*cell.outputs, {}][1:], strict=True):
            for kind in {"image/png", "image/jpeg"} & set(output.get("data", {})):
                alt = output.metadata[kind]["alt"]
                caption = unescape(following.get("data", {}).get("text/html", ""))
                assert len(alt) > 30 and caption.startswith(f"<figcaption>{alt}<br><small>Cell {cell.execution_count}")


@each_notebook
def test_tables_are_narrow_and_readable(path):
    assert [count for text in [markdown(path), *shown(path, "text/markdown")] for count in columns(text) if count > 7] == []
    assert [text for text in shown(path, "text/html") if "<table" in text] == []
    everything = "\n".join([*shown(path, "text"), *shown(path, "text/markdown"), *shown(path, "text/plain")])
    assert re.findall(r"<NA>|\bNaN\b|\{'|[0-9a-f]{8,}(?:\.\.\.|…)", everything) == []
    assert [line for line in everything.splitlines() if pages.PROGRESS.fullmatch(line.strip())] == []


@each_notebook
def test_cells_are_short_and_machinery_is_folded(path):
    code = cells(path, "code")
    lengths = [len(cell.source.splitlines()) for cell in code]
    assert max(lengths) <= 20 and statistics.median(lengths) <= (8 if path.stem.startswith("01") else 10), sorted(lengths)
    for cell, length in zip(code, lengths, strict=True):
        imports = all(line.startswith(("import ", "from ", "figures.parameters")) for line in cell.source.splitlines() if line)
        folded = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        machinery = "parameters" in cell.metadata.get("tags", []) or imports or "figures.save(" in cell.source
        assert folded or (not machinery and length <= 14), cell.source
    assert any("profile `paper`" in text for text in shown(path, "text/markdown")[:1])


@each_notebook
def test_a_chapter_is_numbered_and_says_what_it_does_not_show(path):
    number = int(path.stem[:2])
    headings = re.findall(r"^(#+) (.+)$", markdown(path), re.MULTILINE)
    assert headings[0][0] == "#" and headings[0][1].startswith(f"{number}. ")
    sections = [title for level, title in headings if level == "##"]
    assert [title.split()[0] for title in sections] == [f"{number}.{place}" for place in range(1, len(sections) + 1)]
    assert sections[-1].endswith("What this does not show")
    assert not [title for _, title in headings if set(title) & set("$`:")]


def anchors(path: Path) -> set[str]:
    """The ids of its headings, as JupyterLab and the pages have them."""
    return {title.strip().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", markdown(path), re.MULTILINE)}


@pytest.mark.parametrize("path", [*NOTEBOOKS, *TEXTS], ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    text = markdown(path) + ("" if path.suffix == ".md" else "\n".join(shown(path, "text/markdown") + shown(path, "text/html")))
    for target in [target for _, target in LINK.findall(text)] + re.findall(r'href="([^"]+)"', text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / unquote(file)).resolve() if file else path
        assert place.exists(), target
        if anchor and place.suffix == ".ipynb":
            assert unquote(anchor) in anchors(place), target


@each_notebook
def test_other_chapters_are_linked(path):
    text = LINK.sub("", markdown(path))
    assert re.findall(r"§\d+\.\d+|\bnotebooks? \d+", text) == []


@each_notebook
def test_every_formula_has_its_mathml(path):
    for found in layout.FORMULA.finditer(re.sub(r"`[^`]*`", "", markdown(path))):
        assert re.findall(r"\\[a-zA-Z]+", layout.mathml(found["block"] or found["inline"])) == []


def test_the_pictures_of_the_readme_are_all_that_figures_holds():
    linked = {target for _, target in LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")) if target.startswith("figures/")}
    assert {f"figures/{path.name}" for path in (ROOT / "figures").iterdir()} == linked


def test_the_tables_of_the_readme_are_narrow():
    assert max(columns((ROOT / "README.md").read_text(encoding="utf-8"))) <= 7


def test_every_number_of_the_readme_stands_in_a_table():
    text = re.sub(r"<!-- (\S+) -->.*?<!-- /\1 -->", "", markdown(ROOT / "README.md"), flags=re.DOTALL)
    text = re.sub(r"`[^`]*`|Python 3\.\d+ or 3\.\d+|\(http\S+\)|ζ = 0\.05|1\.6 GB", "", text)
    known = {f"{abs(value):.2f}" for value in readme.headline().value}
    numbers = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", text)
    assert numbers and [number for number in numbers if number not in known] == []


def test_the_readme_counts_the_cells_as_the_rows_do():
    counts = readme.headline().set_index("claim").value
    reached, compared = counts["cells at or above it"], counts["cells with a figure of the paper"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"Ours reaches {reached:.0f} of the other {compared:.0f}." in text
    assert f"in {counts['cells at or above the paper, parameter unknown']:.0f} of {compared:.0f}," in text


def test_the_headline_is_that_of_the_rows():
    recorded = pd.read_csv(readme.PLACE)
    pd.testing.assert_frame_equal(recorded, readme.headline(), check_dtype=False)
