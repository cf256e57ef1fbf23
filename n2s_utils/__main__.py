"""n2s COMMAND ...: everything that the project does, under one roof; python -m n2s_utils COMMAND is the same.

    n2s denoise    denoise pictures of your own
    n2s train      train a score network, also on noisy pictures of your own
    n2s evaluate   add noise to clean pictures, denoise and measure them
    n2s download   fetch and verify the image sets
    n2s report     execute the notebooks into web pages

'n2s COMMAND --help' tells more.
"""

import importlib
import sys

from n2s_utils import cli
from n2s_utils.cli import InputError

COMMANDS = {
    "denoise": "denoising",
    "train": "own_training",
    "evaluate": "evaluation",
    "download": "report.download",
    "report": "report.pages",
}


def run() -> None:
    """Run the command that the first argument names; each is a module with a `main`."""
    name, *_ = *sys.argv[1:2], "--help"
    if name in ("--help", "-h"):
        print(__doc__)
        return
    if name not in COMMANDS:
        raise InputError(f"command {name!r}: choose one of {', '.join(COMMANDS)}")
    module = importlib.import_module(f"n2s_utils.{COMMANDS[name]}")
    sys.argv = [f"n2s {name}", *sys.argv[2:]]
    module.main()


def main() -> None:
    cli.run(run)


if __name__ == "__main__":
    main()
