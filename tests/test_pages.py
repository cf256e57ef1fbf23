"""The pages of the report as recorded, in a browser: headless Chromium, the network off, a wide and a narrow screen."""

import asyncio
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import chromium, look_at

from n2s_utils.files import ROOT
from n2s_utils.report import pages

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (1200, 400)
NAMES = ["index", *sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages") / "report"
    pages.build(pages.plan("sample", {}, []), folder, recorded=True)
    return folder


@pytest.fixture(scope="module")
def seen(folder, tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("no Chromium on this machine: the pages were not looked at in a browser")
    with chromium(CHROMIUM, tmp_path_factory.mktemp("profile")) as port:
        found = asyncio.run(look_at(port, [(folder / f"{name}.html").as_uri() for name in NAMES], WIDTHS))
    return {(Path(unquote(urlsplit(url).path)).stem, width): look for (url, width), look in found.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_loads_without_an_error_and_without_a_network(seen, name, width):
    look = seen[name, width]
    assert look["errors"] == [] and look["width"] == width
    assert [url for url in look["requests"] if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_body_does_not_scroll_sideways(seen, name, width):
    assert seen[name, width]["wide"] <= width


@pytest.mark.parametrize("name", NAMES)
def test_tables_fit_a_narrow_screen(seen, name):
    assert [text for over, text in seen[name, 400]["tables"] if over > 0] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_formula_is_rendered(seen, name):
    look = seen[name, 1200]
    assert [formula for width, formula in look["formulas"] if width == 0] == []
    assert re.findall(r"\$[^$\n]{1,80}\$|\\[a-zA-Z]+", look["text"]) == []


@pytest.mark.parametrize("name", NAMES)
def test_every_image_is_there_and_described(seen, name):
    images = seen[name, 400]["images"]
    assert all(width > 0 for _, width in images)
    assert [alt for alt, _ in images if len(alt) < 20 or "No description" in alt] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(seen, folder, name):
    ids = {page: set(seen[page, 1200]["ids"]) for page in NAMES}
    for href in seen[name, 1200]["links"]:
        if href.startswith(("http://", "https://", "mailto:")):
            continue
        target, _, anchor = href.partition("#")
        page = (folder / unquote(target)).resolve() if target else folder / f"{name}.html"
        assert page.exists(), href
        assert not anchor or {anchor, unquote(anchor)} & ids[page.stem], href
