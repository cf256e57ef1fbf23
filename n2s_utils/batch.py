"""Many pictures, each by itself: which files to take, where each result goes, and the record of what was done."""

import csv
import io
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from n2s_utils.cli import InputError
from n2s_utils.files import sha256
from n2s_utils.photo import SUFFIXES, suffix_of

RECORD = "denoised.csv"  # in each folder of results
OF_ONE_RESULT = ["input", "input_sha256", "weights_sha256", "noise_given", "clipped"]  # what a result follows from
COLUMNS = ["output", "output_sha256", *OF_ONE_RESULT, "noise", "seconds", "warnings"]


@dataclass(frozen=True)
class Job:
    """One picture to do: its file, and where the result goes."""

    input: Path
    output: Path


def pictures_of(paths: Iterable[Path]) -> tuple[list[Path], dict[str, int]]:
    """The picture files among `paths`, where a folder stands for its pictures in order of name; and what is left out: why -> how many.

    A file that is named itself is never left out. Raises InputError where nothing is left.
    """
    paths = list(paths)
    files: dict[Path, Path] = {}  # by where they really are, so that none is taken twice
    left_out: Counter[str] = Counter()
    for path in paths:
        if not path.is_dir():
            files.setdefault(path.resolve(), path)
            continue
        results = {row["output"] for row in Record(path).rows_if_ours}
        for entry in sorted(path.iterdir()):
            reason = "results of an earlier run" if shown(entry) in results else _no_picture(entry)
            if not reason:
                files.setdefault(entry.absolute() if entry.is_symlink() else entry.resolve(), entry)
            elif entry.name != RECORD:
                left_out[reason] += 1
    if not files:
        why = f" ({'; '.join(f'{count} {reason}' for reason, count in left_out.items())})" if left_out else ""
        raise InputError(f"{', '.join(map(str, paths))}: no picture there{why}; give files or folders with {' '.join(SUFFIXES)}")
    return list(files.values()), dict(left_out)


def _no_picture(entry: Path) -> str:
    """Why an entry of a folder is no picture; "" where it looks like one."""
    if entry.name.startswith("."):
        return "names that begin with a dot"
    if entry.is_dir():
        return "folders"
    if not entry.exists():
        return "dead links"
    if entry.suffix.lower() not in SUFFIXES:
        return "files of another kind"
    return "" if entry.is_file() else "no files"


def plan(files: list[Path], out: Path | None, suffix: str = "") -> list[Job]:
    """Where each result goes: into `out` under the name of the input, or beside the input, as NAME-denoised; with a `suffix` of
    its own where one is given.

    Raises InputError where two would go to one place, or one would replace an input.
    """
    jobs: list[Job] = []
    places: dict[tuple[Path, str], Path] = {}
    inputs = {(status.st_dev, status.st_ino) for file in files if os.path.exists(file) for status in [file.stat()]}
    for file in files:
        end = suffix or suffix_of(file)
        output = out / f"{file.stem}{end}" if out else file.with_name(f"{file.stem}-denoised{end}")
        place = (output.parent.resolve(), output.name.casefold())  # some file systems do not tell capitals apart
        if place in places:
            raise InputError(f"{places[place]} and {file} would both become {output}; rename one, or give them different folders")
        places[place] = file
        if os.path.exists(output) and ((status := output.stat()).st_dev, status.st_ino) in inputs:
            raise InputError(f"{output}: the result for {file} would replace an input; give another folder to --out")
        jobs.append(Job(file, output))
    for folder in {job.output.parent for job in jobs}:
        there = next(place for place in (folder, *folder.absolute().parents) if os.path.exists(place))
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise InputError(f"{folder}: no folder that can be written to; give another one")
    return jobs


class Record:
    """What was done in a folder of results, a row (COLUMNS) each, kept in RECORD there as it comes."""

    def __init__(self, folder: Path):
        self.path = folder / RECORD

    @property
    def rows(self) -> list[dict[str, str]]:
        """The rows so far; raises InputError where the file is not ours."""
        if not self.path.exists():
            return []
        try:
            with open(self.path, encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                rows, columns = list(reader), reader.fieldnames
        except (UnicodeDecodeError, csv.Error):
            rows, columns = [], None
        if columns != COLUMNS:
            raise InputError(f"{self.path}: not a record of ours; move it away, or give another folder to --out")
        return [row for row in rows if row["output"] != "output" and None not in row.values()]

    @property
    def rows_if_ours(self) -> list[dict[str, str]]:
        """The rows so far; none where the file is not ours."""
        try:
            return self.rows
        except InputError:
            return []

    def add(self, row: dict[str, str]) -> None:
        """Keep one row more, appended at once: processes that share a folder lose none of each other's."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        with open(self.path, "ab") as file:
            if file.tell() == 0:
                writer.writeheader()
            elif not self.path.read_bytes().endswith(b"\n"):
                text.write("\n")  # a row that a full disk cut off ends here
            writer.writerow(row)
            file.write(text.getvalue().encode())

    def of(self, output: Path) -> list[dict[str, str]]:
        """The rows that made what is at `output` now; none where there is nothing, or something that is not ours."""
        if not output.is_file():
            return []
        digest, name = sha256(output), shown(output)
        return [row for row in self.rows if row["output"] == name and row["output_sha256"] == digest]


def shown(path: Path) -> str:
    """The name of a file as UTF-8 can hold it, whatever bytes it is made of."""
    return os.fsencode(path.name).decode("utf-8", "backslashreplace")
