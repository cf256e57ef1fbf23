"""Files that are whole or absent."""

import hashlib
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from n2s_utils.cli import InputError

ROOT = Path(__file__).resolve().parent.parent  # of the repository
CHECKOUT = (ROOT / "data" / "registry.sha256").is_file()  # or the package alone is installed
BUILD = (ROOT if CHECKOUT else Path.cwd()) / "build"

_numbers = itertools.count()


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; renamed to it on success, removed on any failure.

    A reader, a crash or a full disk never meets a half-written `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own for each process and write; short, so that a long `path` leaves room for it.
    temporary = path.with_name(f".{os.getpid()}-{next(_numbers)}.part{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep `folder` to this process; raises InputError where another one has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0):  # beside: `folder` need not exist
            yield
    except Timeout:
        raise InputError(f"{folder}: another process is at work here; wait for its end, or choose another name or --out") from None


def require_checkout(what: str) -> None:
    """Raises InputError where the package alone is installed, without the repository that `what` is in."""
    if not CHECKOUT:
        raise InputError(f"{what}: is in a checkout of the repository alone; clone it and run the command there")


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
