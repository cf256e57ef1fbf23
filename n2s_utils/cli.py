"""What every command shares: one-line errors and plain progress."""

import argparse
import errno
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm


class InputError(ValueError):
    """Bad input from the user; the message is one line that names the culprit and the remedy."""


def run(main: Callable[[], None], leave: Callable[[int], NoReturn] = sys.exit) -> None:
    """Run a command's `main` and `leave` with its status: 0, or one line and 2 for bad input, a bad path or a full disk, 130 for Ctrl-C.

    A reader that went away (`| head`) is no error of ours: silence and 141, as of a command that SIGPIPE ended. Characters that
    the terminal or log cannot show are escaped.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")
    status = 0
    try:
        main()
        if sys.stdout:
            sys.stdout.flush()
    except InputError as error:
        status = _complain(error)
    except KeyboardInterrupt as interrupt:
        print(f"stopped: {interrupt}", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would try again, and complain, at its end
        status = 141
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if error.filename is None and not full:
            raise
        remedy = "disk full; nothing half-written is left, free space and run again"
        status = _complain(
            f"{error.filename or 'output'}: " + (remedy if full else f"{error.strerror}; check the path and its permissions")
        )
    leave(status)


def _complain(message: object) -> int:
    print("error:", str(message).replace("\n", "\\n"), file=sys.stderr)
    return 2


def progress(items: Iterable, total: int, label: str, done: int = 0, every: float = 30.0) -> Iterator:
    """Yield `items`, showing how many of `total` are done and the time left.

    A bar on a terminal; elsewhere (notebook, log file) one plain line every `every` seconds.
    `done` counts items finished before this call, such as the steps before a resume.
    """
    if sys.stdout.isatty():
        yield from tqdm(items, label, total, initial=done, file=sys.stdout)
        return
    start = said = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= every:
            said = now
            left = (now - start) / count * (total - done - count)
            print(f"{label}: {done + count}/{total}, {tqdm.format_interval(left)} left", flush=True)


@contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and SIGTERM into a flag, to be read between steps, so that what is saved is never of half a step.

    Only the main thread is told of signals; in another the flag stays down.
    """
    hits: list[int] = []
    listened = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {which: signal.signal(which, lambda *_: hits.append(1)) for which in listened}
    try:
        yield lambda: bool(hits)
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def positive(text: str) -> float:
    """An argument that is a finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0")
    return value


def path(text: str) -> Path:
    """An argument that is a path."""
    if not text:
        raise argparse.ArgumentTypeError("empty; give a path")
    return Path(text)
