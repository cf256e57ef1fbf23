"""Fetch and verify the image sets: python -m n2s_utils.report.download [SET ...]

SET is BSDS500, Kodak24, Set12 (these three by default, 54 MB) or DIV2K (4 GB, only on request). Files go
to data/downloads, each checked against data/registry.sha256; what is there already is not fetched again,
so run the command again after an interruption. If N2S_DATA_DIR names a folder, its files are
verified instead and nothing is downloaded.
"""

import argparse
import os
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pooch
import requests

from n2s_utils import cli, datasets
from n2s_utils.cli import InputError
from n2s_utils.datasets import FOLDER_VARIABLE
from n2s_utils.files import atomic_write, require_checkout, sha256

GITHUB = "https://raw.githubusercontent.com"
HOMES = {  # what replaces "SET/" in a file's path
    "BSDS500": f"{GITHUB}/BIDS/BSDS500/a04b7c6c3a9f0ace74bf205c72a43d32e1c72722/BSDS500/data/",
    "Kodak24": "http://r0k.us/graphics/kodak/kodak/",
    "Set12": f"{GITHUB}/cszn/FFDNet/e787f46df2f374ff3591186706229cb9a0591fea/testsets/Set12/",
    "DIV2K": "http://data.vision.ee.ethz.ch/cvl/DIV2K/",
}
DEFAULT = ("BSDS500", "Kodak24", "Set12")
ARCHIVES = {  # of DIV2K -> MD5 of the zip; its pictures have no published sums
    "DIV2K_train_HR": "bdc2d9338d4e574fe81bf7d158758658",
    "DIV2K_valid_HR": "9fcdda83005c5e5997799b69f955ff88",
}
MIB = 1 << 20

pooch.get_logger().setLevel("ERROR")  # it would name every file on stderr


def obtain(names: list[str]) -> None:
    """Download the sets `names`, or verify them in the folder N2S_DATA_DIR if that is set.

    Raises InputError that names the set that is unknown or the file that is missing, altered or
    out of reach.
    """
    unknown = sorted(set(names) - set(HOMES))
    if unknown:
        raise InputError(f"data set {unknown[0]!r}: choose among {', '.join(HOMES)}")
    if os.environ.get(FOLDER_VARIABLE):
        _verify_folder(names)
        return
    files = [name for name in names if name != "DIV2K"]
    if files:
        _download_files(files)
    if "DIV2K" in names:
        for archive, md5 in ARCHIVES.items():
            _download_archive(archive, md5)


def _digests(names: list[str]) -> dict[str, str]:
    """Relative path -> SHA-256 of the files of the sets `names`."""
    known = datasets.registry() | datasets.extracted_digests()
    return {file: digest for file, digest in known.items() if file.partition("/")[0] in names}


def _verify_folder(names: list[str]) -> None:
    remedy = f"complete the folder that {FOLDER_VARIABLE} names, or unset {FOLDER_VARIABLE} to download"
    digests = _digests(names)
    if "DIV2K" in names and not _digests(["DIV2K"]):
        raise InputError(f"{datasets.locate('DIV2K/SHA256SUMS')}: missing or empty; {remedy}")
    for file, digest in cli.progress(digests.items(), len(digests), "files verified"):
        path = datasets.locate(file)
        if not path.is_file():
            raise InputError(f"{path}: missing; {remedy}")
        if sha256(path) != digest:
            raise InputError(f"{path}: truncated or altered (wrong SHA-256); {remedy}")
    print(f"{FOLDER_VARIABLE} is set: nothing downloaded; {len(digests)} files of {', '.join(names)} verified there")


def _download_files(names: list[str]) -> None:
    digests = _digests(names)
    fetched: Counter[str] = Counter()
    for file, digest in cli.progress(digests.items(), len(digests), "files", every=5):
        path = datasets.locate(file)
        if _is_good(path, digest):
            continue
        path.unlink(missing_ok=True)  # altered: must not survive a failing download
        name, _, rest = file.partition("/")
        _retrieve(HOMES[name] + rest, f"sha256:{digest}", path, pooch.HTTPDownloader(chunk_size=MIB))
        fetched[name] += 1
    total = Counter(file.partition("/")[0] for file in digests)
    for name in names:
        print(f"{name}: {total[name]} files verified, {fetched[name]} of them downloaded now")


def _is_good(path: Path, digest: str) -> bool:
    return path.is_file() and sha256(path) == digest


def _retrieve(url: str, known_hash: str, path: Path, downloader) -> None:
    """Download to a temporary file that becomes `path` only if its hash is right."""
    try:
        pooch.retrieve(url, known_hash, path.name, path.parent, downloader=downloader)
        path.chmod(0o644)  # pooch leaves it to its owner alone
    except requests.RequestException as error:
        reason = type(error).__name__ if error.response is None else f"HTTP status {error.response.status_code}"
        raise InputError(
            f"{path.name}: no download from {url} ({reason}); check the network and run again to go on, "
            f"or set {FOLDER_VARIABLE} to a folder that holds the files"
        ) from None
    except ValueError:
        raise InputError(
            f"{path.name}: {url} gave a truncated or altered file (wrong {known_hash.split(':')[0].upper()}), "
            f"which was thrown away; run again, or set {FOLDER_VARIABLE} to a folder that holds the files"
        ) from None


def _download_archive(archive: str, md5: str) -> None:
    """Pictures of a DIV2K archive, and their sums in DIV2K/SHA256SUMS once all of them are there."""
    folder = datasets.locate("DIV2K")
    digests = {file: digest for file, digest in _digests(["DIV2K"]).items() if file.startswith(f"DIV2K/{archive}/")}
    checks = cli.progress(digests.items(), len(digests), f"{archive}: files verified")
    if digests and all(_is_good(datasets.locate(file), digest) for file, digest in checks):
        print(f"{archive}: {len(digests)} files verified, none downloaded now")
        return
    bundle = folder / f"{archive}.zip"
    _retrieve(HOMES["DIV2K"] + bundle.name, f"md5:{md5}", bundle, _continue_download)
    digests = _unpack(bundle, archive)
    lines = [f"{digest}  {file}\n" for file, digest in sorted((_digests(["DIV2K"]) | digests).items())]
    with atomic_write(folder / "SHA256SUMS") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    bundle.unlink()
    print(f"{archive}: {len(digests)} files downloaded and unpacked")


def _continue_download(url: str, output: str, _pooch: object) -> None:
    """A pooch downloader for large files: after an interruption it goes on where it was."""
    name = url.rpartition("/")[2]
    part = Path(output).with_name(f"{name}.part")
    done = part.stat().st_size if part.exists() else 0
    with requests.get(url, headers={"Range": f"bytes={done}-"}, stream=True, timeout=30) as response:
        if response.status_code != 416:  # nothing is left to fetch
            response.raise_for_status()
            # A server that ignores Range answers 200 and starts again.
            with open(part, "ab" if response.status_code == 206 else "wb") as file:
                done = file.tell()
                size = done + int(response.headers.get("Content-Length", 0))
                for chunk in cli.progress(response.iter_content(MIB), -(-size // MIB), f"{name}, MiB", done // MIB):
                    file.write(chunk)
    part.replace(output)


def _unpack(bundle: Path, archive: str) -> dict[str, str]:
    """Unpack the pictures beside `bundle`; relative path -> SHA-256 of each."""
    digests = {}
    with zipfile.ZipFile(bundle) as opened:
        members = opened.namelist()
        for member in members:
            if member.startswith("/") or "\\" in member or ":" in member or ".." in member.split("/"):
                raise InputError(f"{bundle}: refused, its member {member!r} points outside; delete the archive and run again")
        pictures = [m for m in members if m.startswith(f"{archive}/") and m.endswith(".png")]
        for member in cli.progress(pictures, len(pictures), f"{archive}: files unpacked"):
            target = bundle.parent / member
            with opened.open(member) as source, atomic_write(target) as temporary, open(temporary, "wb") as file:
                shutil.copyfileobj(source, file)
            digests[f"DIV2K/{member}"] = sha256(target)
    return digests


def main() -> None:
    require_checkout("the list of files")
    parser = argparse.ArgumentParser(description="Fetch and verify the image sets.")
    parser.add_argument("sets", nargs="*", metavar="SET", default=DEFAULT, help=f"{', '.join(HOMES)}; default {', '.join(DEFAULT)}")
    try:
        obtain(list(parser.parse_args().sets))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to go on") from None


if __name__ == "__main__":
    cli.run(main)
