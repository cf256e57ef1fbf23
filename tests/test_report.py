"""The report runner, on notebooks of a few cells."""

import ast

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from n2s_utils.cli import InputError
from n2s_utils.report import pages

PARAMETERS = 'PROFILE: str = "sample"  # profile\nOUTPUT: str = "build"  # where\nSIGMA: float = 25.0  # 0-255 scale'


def write(folder, name, *code):
    """A notebook that was executed in another order, so that a rewrite shows."""
    cells = [
        new_markdown_cell(f"# About {name}\n\nThe claim that $x^2$\nholds.\n\nMore."),
        new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}, execution_count=9),
        *(new_code_cell(source, execution_count=7, outputs=[new_output("stream", text="old\n")]) for source in code),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), folder / f"{name}.ipynb")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "notebooks"
    (folder / "profiles").mkdir(parents=True)
    (folder / "profiles" / "sample.yaml").write_text("PROFILE: sample\nOUTPUT: build\n")
    (folder / "profiles" / "paper.yaml").write_text("PROFILE: paper\nOUTPUT: .\n")
    write(folder, "01_one", "print('profile:', PROFILE, SIGMA)\nSIGMA")
    write(folder, "02_two", "import pathlib\npathlib.Path('pyproject.toml').is_file()")
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("profile", "changes", "only", "message"),
    [
        ("papr", {}, [], "profile 'papr': choose one of paper, sample"),
        ("sample", {"SIGMAA": 50}, [], "-p: .*'SIGMAA'; known: OUTPUT, PROFILE, SIGMA"),
        ("sample", {}, ["01_on"], "notebook '01_on': choose one of 01_one, 02_two"),
    ],
)
def test_unknown_names_are_refused(folder, profile, changes, only, message):
    with pytest.raises(InputError, match=message):
        pages.plan(profile, changes, only, folder)


def test_a_profile_with_an_unknown_parameter_is_refused(folder):
    (folder / "profiles" / "typo.yaml").write_text("SIGNA: 50\n")
    with pytest.raises(InputError, match="typo.yaml: .*'SIGNA'"):
        pages.plan("typo", {}, [], folder)


@pytest.mark.parametrize(
    ("text", "value"),
    [("50", 50), ("1e-3", 0.001), ("cuda", "cuda"), ("['Kodak']", ["Kodak"]), ("a b", "a b"), ("false", False), ("~", None)],
)
def test_values_on_the_command_line(text, value):
    assert pages._value(text) == value and type(pages._value(text)) is type(value)


def test_a_value_that_is_no_yaml_is_refused(refused):
    with refused("-p", "'[1'"):
        pages._value("[1")


def test_prepare_writes_parameters_and_keeps_outputs(folder, tmp_path):
    pages.prepare(pages.plan("sample", {"SIGMA": 50}, [], folder), tmp_path / "prepared")
    prepared = nbformat.read(tmp_path / "prepared" / "01_one.ipynb", 4)
    injected = [cell for cell in prepared.cells if "injected-parameters" in cell.metadata.tags]
    assert [ast.unparse(line) for line in ast.parse(injected[0].source).body] == ["PROFILE = 'sample'", "OUTPUT = 'build'", "SIGMA = 50.0"]
    assert prepared.cells[-1].outputs[0].text == "old\n"


def test_sample_writes_pages_and_nothing_else(folder, tmp_path, capsys):
    before = contents(folder)
    pages.build(pages.plan("sample", {"SIGMA": 50}, [], folder), tmp_path / "pages")
    assert contents(folder) == before
    assert [line.split(" ... ")[0] for line in capsys.readouterr().out.splitlines()] == ["01_one", "02_two"]
    page = (tmp_path / "pages" / "01_one.html").read_text()
    assert "profile: sample 50.0" in page and 'href="02_two.html">About 02_two →' in page
    assert "<script src" not in page and "<math" in page and "$" not in page.split("<main>")[1]
    index = (tmp_path / "pages" / "index.html").read_text()
    assert 'href="01_one.html">About 01_one' in index and "The claim that <math" in index and "More." not in index


def test_paper_writes_the_executed_notebooks_back(folder, tmp_path):
    source = nbformat.read(folder / "01_one.ipynb", 4)
    pages.build(pages.plan("paper", {}, ["01_one"], folder), tmp_path / "pages")
    written = nbformat.read(folder / "01_one.ipynb", 4)
    assert written.metadata == source.metadata
    assert [(cell.id, cell.source, cell.metadata) for cell in written.cells] == [(c.id, c.source, c.metadata) for c in source.cells]
    assert [cell.execution_count for cell in written.cells[1:]] == [1, 2]
    stream, result = written.cells[-1].outputs
    assert stream.text == "profile: paper 25.0\n" and result.execution_count == 2
    assert str(tmp_path) not in (folder / "01_one.ipynb").read_text()


@pytest.mark.parametrize(
    ("line", "reason"),
    [("raise ValueError('too\\nlong')", "ValueError: too$"), ("import os; os._exit(9)", "its process died, perhaps for want of memory$")],
)
def test_a_failure_names_the_cell_and_changes_no_notebook(folder, tmp_path, line, reason):
    write(folder, "02_two", "1 + 1", line, "2 + 2")
    before = contents(folder)
    with pytest.raises(
        InputError, match=rf"^02_two.ipynb, code cell 3 \({line[:6]}.*\): {reason.rstrip('$')}; the pages so far: .*pages.part$"
    ):
        pages.build(pages.plan("paper", {}, [], folder), tmp_path / "pages")
    assert contents(folder) == before
    assert "profile: paper" in (tmp_path / "pages.part" / "01_one.html").read_text()
    assert '02_two.html">About 02_two</a> (failed)' in (tmp_path / "pages.part" / "index.html").read_text()
    assert not (tmp_path / "pages").exists()


def test_pages_take_their_place_at_the_end_and_a_failure_leaves_the_old_ones(folder, tmp_path):
    place = tmp_path / "pages"
    pages.build(pages.plan("sample", {}, [], folder), place)
    before = contents(place)
    write(folder, "02_two", "1 / 0")
    with pytest.raises(InputError, match="ZeroDivisionError"):
        pages.build(pages.plan("sample", {"SIGMA": 50}, [], folder), place)
    assert contents(place) == before


def test_one_notebook_alone_replaces_its_own_page(folder, tmp_path):
    place = tmp_path / "pages"
    pages.build(pages.plan("sample", {}, [], folder), place)
    other = (place / "02_two.html").read_bytes()
    pages.build(pages.plan("sample", {"SIGMA": 50}, ["01_one"], folder), place)
    page, index = (place / "01_one.html").read_text(), (place / "index.html").read_text()
    assert "profile: sample 50.0" in page and 'href="02_two.html">About 02_two →' in page and (place / "02_two.html").read_bytes() == other
    assert 'href="01_one.html">About 01_one' in index and 'href="02_two.html">About 02_two' in index
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pages.lock", "notebooks", "pages"]


def test_values_become_what_the_parameter_declares(folder, refused, tmp_path, monkeypatch):
    more = "SEEDS: list = [0]  # of noise\nRUNS: list = ['a.toml']  # configurations\nPHOTO: str = ''  # path of a photo"
    notebook = nbformat.read(folder / "01_one.ipynb", 4)
    notebook.cells[1].source += f"\n{more}"
    nbformat.write(notebook, folder / "01_one.ipynb")
    monkeypatch.chdir(tmp_path)
    given = {"SEEDS": 0, "SIGMA": 50, "PHOTO": "own.png"}
    values = pages.plan("sample", given, [], folder)[folder / "01_one.ipynb"]
    assert values["SEEDS"] == [0] and values["SIGMA"] == 50.0 and isinstance(values["SIGMA"], float)
    assert values["PHOTO"] == str(tmp_path / "own.png")
    (tmp_path / "own.toml").write_text("")
    runs = pages.plan("sample", {"RUNS": "own.toml"}, [], folder)[folder / "01_one.ipynb"]["RUNS"]
    assert runs == [str(tmp_path / "own.toml")]
    assert pages.plan("sample", {"RUNS": "demo.toml"}, [], folder)[folder / "01_one.ipynb"]["RUNS"] == ["demo.toml"]
    for name, value, kind in (
        ("SIGMA", "loud", "float"),
        ("SIGMA", [25.0], "float"),
        ("PROFILE", 5, "str"),
        ("SIGMA", None, "float"),
        ("SEEDS", ["x"], "list"),
    ):
        with refused(f"-p {name}", f"is no {kind}"):
            pages.plan("sample", {name: value}, [], folder)


def test_a_failure_leaves_no_new_figure_beside_old_notebooks(folder, tmp_path):
    figures = tmp_path / "figures"
    figures.mkdir()
    (figures / "a.png").write_text("old")
    draw = f"import pathlib; [pathlib.Path({str(figures)!r}, name).write_text('new') for name in ('a.png', 'b.png')]"
    write(folder, "01_one", draw)
    write(folder, "02_two", "1 / 0")
    with pytest.raises(InputError, match="ZeroDivisionError"):
        pages.build(pages.plan("paper", {}, [], folder), tmp_path / "pages", figures)
    assert {path.name: path.read_text() for path in figures.iterdir()} == {"a.png": "old"}
    write(folder, "02_two", "1 + 1")
    pages.build(pages.plan("paper", {}, [], folder), tmp_path / "pages", figures)
    assert {path.name: path.read_text() for path in figures.iterdir()} == {"a.png": "new", "b.png": "new"}


def test_lines_of_progress_are_not_kept_in_a_notebook(folder, tmp_path):
    line = "print('CBSD68, nlm: 163/204, 00:07 left'); print('mean: 3/4 of it left')"
    write(folder, "01_one", "print('demo: 1/2, 01:02:03 left')", line)
    pages.build(pages.plan("paper", {}, ["01_one"], folder), tmp_path / "pages")
    first, second = nbformat.read(folder / "01_one.ipynb", 4).cells[-2:]
    assert first.outputs == [] and second.outputs[0].text == "mean: 3/4 of it left\n"


def test_a_caption_names_its_cell_as_the_notebook_counts(folder, tmp_path):
    line = "from IPython.display import HTML; HTML(f'<figcaption>A dot.<br><small>Cell {len(In) - 1}</small></figcaption>')"
    write(folder, "01_one", line)
    pages.build(pages.plan("paper", {}, ["01_one"], folder), tmp_path / "pages")
    cell = nbformat.read(folder / "01_one.ipynb", 4).cells[-1]
    assert cell.execution_count == 2 and "<small>Cell 2</small>" in cell.outputs[0].data["text/html"]
    assert "<small>Cell 3</small>" in (tmp_path / "pages" / "01_one.html").read_text()  # that of the parameters counts there
