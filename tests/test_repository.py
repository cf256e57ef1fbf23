"""What holds for the checkout as a whole: pins in step, notebooks clean, nothing foreign or large."""

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from n2s_utils.config import read_stages
from n2s_utils.files import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib"}  # where conda-forge's differ
# Pieced together, or this file would name them.
REGISTRIES = [name + end for name, end in (("pypi", ".org"), ("pythonhosted", ".org"), ("download.pytorch", ".org"), ("anaconda", ".org"))]
ABSOLUTE_PATH = re.compile(r"""(?:^|[\s'"(=\[])(?:file://)?/[\w.-]+/[\w.-]+|[A-Z]:\\\w""", re.MULTILINE)


def tracked():
    """The files that git tracks or would add."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def project_pins():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return dict(dependency.split("==") for dependency in dependencies)


def test_conda_has_the_pins_of_the_project():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, *packages, by_pip = environment["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    pins = dict(pin.split("==") for pin in by_pip["pip"])
    for package in packages:
        name, version, *build = package.split("=")
        pins[CONDA_NAMES.get(name, name.replace("_", "-"))] = version
        assert build == (["cpu*"] if name == "pytorch" else [])
    assert pins == project_pins()


def test_constraints_have_the_pins_of_the_project():
    lines = [line for line in (ROOT / ".ci" / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    constraints = {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in lines)}
    assert project_pins().items() <= constraints.items()
    assert not [name for name in constraints if re.match("nvidia|cuda|triton", name)]


def test_profiles_agree_and_only_sample_leaves_the_checkout_alone():
    profiles = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "notebooks" / "profiles").glob("*.yaml")}
    assert {name: values["OUTPUT"] for name, values in profiles.items()} == {"sample": "build", "paper": ".", "train": "."}
    for name, values in profiles.items():
        assert values["PROFILE"] == name and values.keys() == profiles["sample"].keys()
        for run in values["RUNS"]:
            read_stages(ROOT / run)


def test_train_profile_repeats_every_stage_of_the_weights_in_order():
    runs = yaml.safe_load((ROOT / "notebooks" / "profiles" / "train.yaml").read_text())["RUNS"]
    assert set(runs) == {f"data/weights/{path.name}" for path in (ROOT / "data" / "weights").glob("*.toml")}
    names = []
    for config in (config for run in runs for config in read_stages(ROOT / run)):
        assert not config.start or Path(config.start).stem in names, config.name
        names.append(config.name)


def test_help_lists_every_verb():
    verbs = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    if not shutil.which("make"):
        pytest.skip("no make")
    listed = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    assert [line.split()[1] for line in listed.splitlines()] == verbs
    assert {"report", "test", "lab", "data", "results", "bench", "lint"} <= set(verbs)


def rooms():
    """The modules in the order in which the package's text lists them, the method's before the report's."""
    text = (ROOT / "n2s_utils" / "__init__.py").read_text()
    listed = re.findall(r"^    ([a-z_, ]+?)  +\S", text, re.MULTILINE)
    found = {path.stem: path for path in (ROOT / "n2s_utils").rglob("*.py")}
    return [found[name] for line in listed for name in line.split(", ")]


def test_every_room_is_listed_and_imports_only_from_those_above_it():
    listed = rooms()
    assert set(listed) == {path for path in (ROOT / "n2s_utils").rglob("*.py") if not path.name.startswith("__")}
    for place, room in enumerate(listed):
        for node in ast.walk(ast.parse(room.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module or not node.module.startswith("n2s_utils"):
                continue
            imported = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            below = [other.stem for other in listed[place:] if ".".join(other.relative_to(ROOT).with_suffix("").parts) in imported]
            assert not below, f"{room.name} imports {below}"


def test_rooms_and_functions_are_small():
    for room in rooms():
        text = room.read_text()
        assert len(text.splitlines()) <= 300, room
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        assert not [node.name for node in functions if node.end_lineno - node.lineno >= 50], room


def test_no_file_names_a_registry():
    for path in tracked():
        content = path.read_bytes().lower()
        assert not [name for name in REGISTRIES if name.encode() in content], path


def test_the_checkout_is_small():
    assert sum(path.stat().st_size for path in tracked()) < 40e6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_is_executed_in_order_without_errors(self, path):
        code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
        outputs = [output for cell in code for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
        for output in outputs:
            for text in [output.get("text", "")] + [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]:
                assert not ABSOLUTE_PATH.search(text), text

    def test_is_laid_out_by_the_conventions(self, path):
        notebook = nbformat.read(path, 4)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3" and notebook.metadata.kernelspec.language == "python"
        assert "papermill" not in notebook.metadata and not [cell for cell in notebook.cells if "papermill" in cell.metadata]
        opening = notebook.cells[0]
        assert opening.cell_type == "markdown" and opening.source.startswith("# ")
        [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
        for statement in ast.parse(parameters.source).body:
            assert isinstance(statement, ast.AnnAssign), ast.unparse(statement)
            ast.literal_eval(statement.value)
        assert not [cell.source for cell in notebook.cells if cell.cell_type == "code" and len(cell.source.splitlines()) > 20]
