"""Execute the notebooks into web pages: python -m n2s_utils.report [--profile NAME] [-p NAME VALUE ...] [NOTEBOOK ...]

A profile is notebooks/profiles/NAME.yaml, a flat mapping of parameters; -p replaces one of them or adds
one. Each notebook is given those that it declares. The pages go to build/report/, and load
nothing from elsewhere, so that they can be read offline. Where the parameter OUTPUT is "." (profiles paper and train)
the executed notebooks also replace those in notebooks/, once all have succeeded. With --recorded nothing is executed: the pages
show the notebooks as they are.
"""

import argparse
import ast
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from n2s_utils import cli
from n2s_utils.cli import InputError
from n2s_utils.files import ROOT, atomic_write, locked, require_checkout
from n2s_utils.report.layout import write_page

NOTEBOOKS = ROOT / "notebooks"
PAGES = ROOT / "build" / "report"
PROGRESS = re.compile(r".+: (\d+/\d+, [\d:?]+ left|[\d.]+ minutes allow [\d,]+ crops)")
ABOUT = "A network learns the score of noisy pictures from noisy pictures alone; Tweedie's formula turns it into denoised ones."
CAPTION = re.compile(r"(<figcaption>.*<small>Cell )\d+")


def plan(profile: str, changes: dict, only: list[str], folder: Path = NOTEBOOKS) -> dict[Path, dict]:
    """The notebooks of `folder` to run, in order, each with the parameters that it declares.

    `changes` replaces values of the profile; `only` names the notebooks (stems; empty: all).
    Raises InputError for a profile, parameter or notebook that does not exist.
    """
    notebooks = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    profiles = {path.stem: path for path in sorted(folder.glob("profiles/*.yaml"))}
    if profile not in profiles:
        raise InputError(f"profile {profile!r}: choose one of {', '.join(profiles)}")
    for name in only:
        if name not in notebooks:
            raise InputError(f"notebook {name!r}: choose one of {', '.join(notebooks)}")
    chosen = only or list(notebooks)
    declared = {name: papermill.inspect_notebook(path) for name, path in notebooks.items()}
    everywhere = {parameter: about for parameters in declared.values() for parameter, about in parameters.items()}
    values = yaml.safe_load(profiles[profile].read_text(encoding="utf-8"))
    for source, given, readers in ((profiles[profile].name, values, notebooks), ("-p", changes, chosen)):
        known = sorted(set().union(*(declared[name] for name in readers)))
        for parameter in given:
            if parameter not in known:
                raise InputError(f"{source}: no notebook to run has a parameter {parameter!r}; known: {', '.join(known)}")
    values |= {name: _typed(name, value, everywhere[name]) for name, value in changes.items()}
    return {
        notebooks[name]: {parameter: values[parameter] for parameter in declared[name] if parameter in values} for name in sorted(chosen)
    }


def _typed(name: str, value: Any, about: dict[str, str]) -> Any:
    """A value of -p as the parameter declares it: one is a list of one, a whole number a float, a path where the user stands.

    Raises InputError for a value of another type.
    """
    kind = about["inferred_type_name"]
    if kind == "list" and not isinstance(value, list):
        value = [value]
    if kind == "float" and type(value) is int:
        value = float(value)
    parts = {type(part) for part in ast.literal_eval(about["default"])} if kind == "list" else set()
    if type(value).__name__ != kind or (parts and not {type(part) for part in value} <= parts):
        raise InputError(f"-p {name}: {value!r} is no {kind}; give one, such as {about['default']}")
    if about["help"].startswith("path of") and value:
        return str(Path(value).absolute())
    configurations = [_placed(part) for part in value] if kind == "list" else _placed(value)
    return configurations if Path.cwd() != ROOT else value


def _placed(part: Any) -> Any:
    """A configuration file of the user's, where the user stands."""
    return str(Path(part).absolute()) if isinstance(part, str) and part.endswith(".toml") and Path(part).is_file() else part


def prepare(runs: dict[Path, dict], folder: str | Path) -> None:
    """Write the notebooks with their parameters into `folder`, without running them."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, parameters in runs.items():
        papermill.execute_notebook(path, Path(folder) / path.name, parameters, prepare_only=True, progress_bar=False)


def build(runs: dict[Path, dict], pages: Path = PAGES, figures: Path = ROOT / "figures", recorded: bool = False) -> None:
    """Execute the notebooks, unless their outputs are to be taken as `recorded`, and write `pages`: each as .ipynb and HTML, and
    index.html.

    The pages are built beside, and take their place once all have succeeded; those of notebooks that were not to run stay. Raises
    InputError naming notebook and cell at the first failure; the pages so far then stand beside, the last shows the error, and
    `pages`, notebooks and `figures` are as they were.
    """
    with locked(pages):
        _build(runs, pages, figures, recorded)


def _build(runs: dict[Path, dict], pages: Path, figures: Path, recorded: bool) -> None:
    beside, before = (pages.with_name(f"{pages.name}.{end}") for end in ("part", "before"))
    shutil.rmtree(beside, ignore_errors=True)
    notebooks = sorted(next(iter(runs)).parent.glob("*.ipynb"))
    if len(runs) < len(notebooks) and pages.is_dir():
        shutil.copytree(pages, beside)
    beside.mkdir(parents=True, exist_ok=True)
    shown = [path for path in notebooks if path in runs or (beside / f"{path.stem}.html").exists()]
    published = [path for path, parameters in runs.items() if parameters.get("OUTPUT") == "." and not recorded]
    with _unchanged_on_failure(figures) if published else nullcontext():
        done = _pages_of(runs, shown, beside, recorded)
    shutil.rmtree(before, ignore_errors=True)
    if pages.exists():
        pages.rename(before)
    beside.rename(pages)
    shutil.rmtree(before, ignore_errors=True)
    for path in published:
        _write_back(path, done[path])


def _pages_of(runs: dict[Path, dict], shown: list[Path], pages: Path, recorded: bool) -> dict[Path, NotebookNode]:
    """Execute the notebooks `runs` into `pages`, or take them as they are; `shown` are all that have or will have a page."""
    done: dict[Path, NotebookNode] = {}
    taken: dict[Path, str] = {}
    chapters = {path.stem: _title(path) for path in shown}
    for path, parameters in runs.items():
        print(f"{path.stem} ... ", end="", flush=True)
        begin, error = time.monotonic(), None
        try:
            shutil.copy(path, pages / path.name) if recorded else _execute(path, pages / path.name, parameters)
        except InputError as failure:
            error = failure
        taken[path] = " (failed)" if error else "" if recorded else f" ({tqdm.format_interval(time.monotonic() - begin)})"
        print(taken[path].strip(" ()") or "as recorded", flush=True)
        done[path] = nbformat.read(pages / path.name, 4)
        write_page(done[path], pages / f"{path.stem}.html", chapters)
        there = [path for path in shown if (pages / f"{path.stem}.html").exists()]
        _write_index([f"- [{_title(path)}]({path.stem}.html){taken.get(path, '')}. {_claim(path)}" for path in there], pages, chapters)
        if error:
            raise InputError(f"{error}; the pages so far: {pages}")
    return done


def _write_index(lines: list[str], pages: Path, chapters: dict[str, str]) -> None:
    contents = nbformat.v4.new_markdown_cell(f"# Noise2Score, reproduced\n\n{ABOUT}\n\n" + "\n".join(lines))
    notebook = nbformat.v4.new_notebook(cells=[contents], metadata={"title": "Noise2Score, reproduced"})
    write_page(notebook, pages / "index.html", chapters)


def _execute(path: Path, output: Path, parameters: dict) -> None:
    try:
        papermill.execute_notebook(
            path,
            output,
            parameters,
            kernel_name="python3",
            cwd=ROOT,
            progress_bar=False,
            start_timeout=300,
            coalesce_streams=True,
            extra_arguments=["--log-level=CRITICAL"],  # else each kernel warns that its local sockets are not encrypted
        )
    except PapermillExecutionError as failure:
        reason = f"{failure.ename}: {failure.evalue}".splitlines()[0]
    except DeadKernelError:
        reason = "its process died, perhaps for want of memory"
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"in {path.name}; a training run goes on from its checkpoint at the same command") from None
    else:
        return
    cells = [cell for cell in nbformat.read(output, 4).cells if cell.cell_type == "code"]
    started = [cell for cell in cells if cell.metadata.papermill.start_time]
    number = sum("injected-parameters" not in cell.metadata.tags for cell in started)  # as in the notebook itself
    line = next(iter(started[-1].source.splitlines()), "")
    raise InputError(f"{path.name}, code cell {number} ({line.strip()}): {reason}")


def _title(path: Path) -> str:
    return _opening(path)[0].lstrip("# ")


def _claim(path: Path) -> str:
    return " ".join(_opening(path)[2].strip().split("\n\n")[0].split())


def _opening(path: Path) -> tuple[str, str, str]:
    return nbformat.read(path, 4).cells[0].source.partition("\n")


@contextmanager
def _unchanged_on_failure(folder: Path) -> Iterator[None]:
    """Put `folder` back as it was where the block fails: new figures are no match for notebooks that stayed as they were."""
    with tempfile.TemporaryDirectory() as kept:
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        try:
            yield
        except BaseException:
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
            raise


def _without_progress(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs without the lines of cli.progress, which tell of one execution only."""
    for output in outputs:
        if output.output_type == "stream":
            output.text = "".join(line for line in output.text.splitlines(keepends=True) if not PROGRESS.fullmatch(line.strip()))
    return [output for output in outputs if output.output_type != "stream" or output.text]


def _write_back(path: Path, executed: NotebookNode) -> None:
    """Put the outputs of an execution into the notebook, and nothing else that papermill added."""
    notebook = nbformat.read(path, 4)
    outputs = {cell.id: cell.outputs for cell in executed.cells if cell.cell_type == "code"}
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, 1):
        cell.execution_count, cell.outputs = count, _without_progress(outputs[cell.id])
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = count
            if "text/html" in output.get("data", {}):  # a caption names its cell
                output.data["text/html"] = CAPTION.sub(rf"\g<1>{count}", output.data["text/html"])
    with atomic_write(path) as temporary:
        nbformat.write(notebook, temporary)


def _value(text: str) -> object:
    """As a profile would have it: YAML."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"-p: {text!r} is no YAML value") from None
    try:
        return float(value) if isinstance(value, str) else value  # YAML 1.1 takes 1e-3 for a word
    except ValueError:
        return value


def main() -> None:
    require_checkout("the report")
    parser = argparse.ArgumentParser(description="Execute the notebooks and write them as web pages into build/report.")
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="such as 01_score_theory (default all)")
    parser.add_argument("--profile", default="sample", help="of notebooks/profiles (default sample)")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="set a parameter, e.g. -p DEVICE cuda")
    parser.add_argument("--prepare", metavar="FOLDER", help="only write the notebooks with their parameters to FOLDER")
    parser.add_argument("--recorded", action="store_true", help="execute nothing: pages of the notebooks as they are")
    arguments = parser.parse_args()
    changes = {name: _value(value) for name, value in arguments.p}
    runs = plan(arguments.profile, changes, arguments.notebooks)
    if arguments.prepare:
        prepare(runs, arguments.prepare)
    else:
        os.environ.pop("MPLBACKEND", None)  # the kernels' own puts figures into the notebook
        build(runs, recorded=arguments.recorded)
        print(f"pages: {(PAGES / 'index.html').relative_to(ROOT)}")


if __name__ == "__main__":
    cli.run(main)
