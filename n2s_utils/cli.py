"""What every command shares: one-line errors and plain progress."""

import errno
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

from tqdm import tqdm


class InputError(ValueError):
    """Bad input from the user; the message is one line that names the culprit and the remedy."""


def run(main: Callable[[], None], leave: Callable[[int], NoReturn] = sys.exit) -> None:
    """Run a command's `main` and `leave` with its status: 0, or one line and 2 for bad input, a bad path or a full disk, 130 for Ctrl-C."""
    status = 0
    try:
        main()
    except InputError as error:
        status = _complain(error)
    except KeyboardInterrupt as interrupt:
        print(f"stopped: {interrupt}", file=sys.stderr)
        status = 130
    except OSError as error:
        if error.filename is None:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "disk full; nothing half-written is left, free space and run again"
        status = _complain(f"{error.filename}: " + (remedy if full else f"{error.strerror}; check the path and its permissions"))
    leave(status)


def _complain(message: object) -> int:
    print(f"error: {message}", file=sys.stderr)
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
