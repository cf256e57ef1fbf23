"""A notebook as a web page, to be read offline: contents, neighbours, captions, folded code."""

import html
import os
import re
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from n2s_utils.files import ROOT, atomic_write

TEMPLATE = Path(__file__).with_name("page.html.j2")
FORMULA = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>.+?)\$", re.DOTALL)
SCHEMES = ("http://", "https://", "mailto:", "data:", "#")


def write_page(notebook: NotebookNode, page: Path, chapters: dict[str, str]) -> None:
    """Write the notebook to PAGE.html. `chapters` are the pages of the report, name -> title, in order."""
    exporter = HTMLExporter(raw_template=TEMPLATE.read_text(encoding="utf-8"))
    text, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": page.stem}, "neighbours": _neighbours(page.stem, chapters)})
    soup = BeautifulSoup(text, "html.parser")
    for part in soup.select("main .jp-RenderedMarkdown"):
        _render_formulas(part)
    for link in soup.select("main a[href]"):
        link["href"] = _on_page(str(link["href"]), page.parent)
    for table in soup.select("main table"):
        table.wrap(soup.new_tag("div", attrs={"class": "table", "tabindex": "0"}))
    contents = soup.select_one("nav.contents")
    assert contents
    contents.append(BeautifulSoup(_contents(soup.select("main h2[id]")), "html.parser"))
    with atomic_write(page) as temporary:
        temporary.write_text(str(soup), encoding="utf-8")


def _render_formulas(part: Tag) -> None:
    """TeX between dollars becomes MathML, which browsers render by themselves."""
    for text in part.find_all(string=FORMULA):
        if text.find_parent(["code", "pre"]):
            continue
        pieces, end = [], 0
        for found in FORMULA.finditer(text):
            block = found["block"] is not None
            math = mathml(found["block"] or found["inline"], block)
            pieces += [html.escape(text[end : found.start()]), f'<div class="formula" tabindex="0">{math}</div>' if block else math]
            end = found.end()
        new = BeautifulSoup("".join(pieces) + html.escape(text[end:]), "html.parser")
        parent = text.parent
        text.replace_with(*new.contents)
        if parent and parent.name == "p" and parent.select_one("div.formula"):
            parent.name = "div"  # a paragraph holds no block
            parent["class"] = "paragraph"


def mathml(tex: str, block: bool = False) -> str:
    """TeX as MathML, on a line of its own or not; a command that is not known stays as it is, to be seen.

    What the converter does not know is spelled out first: an argument without braces, a function set off from its argument, a prime,
    a double bar.
    """
    tex = re.sub(r"\\(mathbb|mathcal|mathbf)\s+(\w)", r"\\\1{\2}", tex)
    tex = re.sub(r"\\(log|exp|max|min|div)\s+(?=[\w\\])", r"\\\1\\, ", tex)
    tex = re.sub(r"(\\[a-zA-Z]+|\w)'", r"{\1′}", tex).replace("'", "′").replace(r"\|", "‖")
    return convert(tex.replace(r"\arg", r"\operatorname{arg}"), display="block" if block else "inline")


def _on_page(href: str, folder: Path) -> str:
    """A link as a notebook has it, from a page in `folder`: to another page, or to a file of the repository."""
    if href.startswith(SCHEMES):
        return href
    target, mark, anchor = href.partition("#")
    if target.startswith("../"):
        target = os.path.relpath(ROOT / target.removeprefix("../"), folder).replace(os.sep, "/")
    elif target.endswith(".ipynb"):
        target = target.removesuffix("ipynb") + "html"
    return target + mark + anchor


def _neighbours(name: str, chapters: dict[str, str]) -> str:
    """Links to the page before, the index and the page after."""
    names = list(chapters)
    place = names.index(name) if name in names else None  # the index has no neighbours
    before, after = ([], []) if place is None else (names[:place][-1:], names[place + 1 :][:1])
    labels = {page: f"← {chapters[page]}" for page in before} | {"index": "All chapters"} | {page: f"{chapters[page]} →" for page in after}
    links = [f'<a href="{html.escape(page)}.html">{html.escape(label)}</a>' for page, label in labels.items()]
    return f'<nav class="neighbours">{"".join(links)}</nav>'


def _contents(headings: list[Tag]) -> str:
    items = [f'<li><a href="#{html.escape(str(h["id"]))}">{_inner(h)}</a></li>' for h in headings]
    return f"<details><summary>On this page</summary><ol>{''.join(items)}</ol></details>" if items else ""


def _inner(heading: Tag) -> str:
    return "".join(str(part) for part in heading.contents if not (isinstance(part, Tag) and part.name == "a"))
