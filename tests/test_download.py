"""The downloader against a server on loopback: real, truncated, wrong and missing files, interruptions."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from n2s_utils import cli, datasets
from n2s_utils.cli import InputError
from n2s_utils.files import ROOT
from n2s_utils.report import download


class Site:
    """What the server holds (path -> bytes), how many bytes of a body it sends before it hangs up, and what was asked."""

    def __init__(self):
        self.files, self.cut, self.asked = {}, {}, []


@pytest.fixture
def site():
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            site.asked.append(self.path)
            body = site.files.get(self.path)
            if body is None:
                return self.send_error(404)
            start = int(self.headers.get("Range", "bytes=0-")[6:-1])
            if start and start >= len(body):
                return self.send_error(416)
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start : start + site.cut.get(self.path, len(body))])

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield site
    server.shutdown()
    server.server_close()


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(shade).integers(256, size=(24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def folder(site, tmp_path, monkeypatch):
    """An empty download folder; a registry of two sets of three files, all of which the site serves."""
    contents = {f"{name}/{i}.png": png(i) for name in ("Kodak24", "Set12") for i in range(3)}
    site.files = {f"/{file}": content for file, content in contents.items()}
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    monkeypatch.setattr(datasets, "registry", lambda: digests)
    monkeypatch.setattr(datasets, "DOWNLOADS", tmp_path / "downloads")
    monkeypatch.delenv(datasets.FOLDER_VARIABLE, raising=False)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    for name in download.HOMES:
        monkeypatch.setitem(download.HOMES, name, f"{site.url}{name}/")
    return tmp_path / "downloads"


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def command(monkeypatch, *arguments: str) -> int:
    """Exit status of `python -m n2s_utils.report.download ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["download", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.run(download.main)
    return stop.value.code or 0


def one_error_line(capsys) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def test_downloads_and_verifies_every_file(site, folder, monkeypatch, capsys):
    assert command(monkeypatch, "Kodak24", "Set12") == 0
    assert files(folder) == {path[1:] for path in site.files}
    assert all((folder / path[1:]).read_bytes() == content for path, content in site.files.items())
    assert "Set12: 3 files verified, 3 of them downloaded now" in capsys.readouterr().out


def test_only_missing_and_altered_files_are_fetched_again(site, folder, capsys):
    download.obtain(["Set12"])
    (folder / "Set12/1.png").unlink()
    (folder / "Set12/2.png").write_bytes(b"altered")
    site.asked.clear()
    download.obtain(["Set12"])
    assert sorted(site.asked) == ["/Set12/1.png", "/Set12/2.png"]
    assert (folder / "Set12/2.png").read_bytes() == site.files["/Set12/2.png"]
    assert "2 of them downloaded now" in capsys.readouterr().out


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda site: site.files.pop("/Set12/1.png"), "HTTP status 404"),
        (lambda site: site.files.update({"/Set12/1.png": png(9)}), "wrong SHA256"),
        (lambda site: site.files.update({"/Set12/1.png": site.files["/Set12/1.png"][:-7]}), "wrong SHA256"),
        (lambda site: site.files.update({"/Set12/1.png": b"<html>moved</html>"}), "wrong SHA256"),
        (lambda site: site.cut.update({"/Set12/1.png": 100}), "ChunkedEncodingError"),
    ],
    ids=["404", "wrong picture", "truncated", "no picture", "hung up"],
)
def test_a_bad_download_leaves_no_file_and_the_next_run_goes_on(site, folder, monkeypatch, capsys, spoil, said):
    good = dict(site.files)
    spoil(site)
    assert command(monkeypatch, "Set12") == 2
    error = one_error_line(capsys)
    assert "1.png" in error and said in error and "run again" in error
    assert files(folder) == {"Set12/0.png"}

    site.files, site.cut = good, {}
    site.asked.clear()
    assert command(monkeypatch, "Set12") == 0
    assert site.asked == ["/Set12/1.png", "/Set12/2.png"]


def test_an_altered_file_does_not_survive_a_failed_repair(site, folder):
    download.obtain(["Set12"])
    (folder / "Set12/0.png").write_bytes(b"altered")
    del site.files["/Set12/0.png"]
    with pytest.raises(InputError, match="404"):
        download.obtain(["Set12"])
    assert "Set12/0.png" not in files(folder)


def test_no_network_is_one_line(folder, monkeypatch, capsys):
    monkeypatch.setitem(download.HOMES, "Set12", "http://127.0.0.1:9/")
    assert command(monkeypatch, "Set12") == 2
    assert "ConnectionError" in one_error_line(capsys)
    assert not files(folder)


def test_ctrl_c_leaves_only_whole_files(site, folder, monkeypatch, capsys):
    def interrupted(self, url, output, *_):
        open(output, "wb").write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(download.pooch.HTTPDownloader, "__call__", interrupted)
    assert command(monkeypatch, "Set12") == 130
    assert capsys.readouterr().err == "stopped: run the same command again to go on\n"
    assert not files(folder)


def test_a_killed_download_leaves_nothing_under_a_picture_s_name(site, folder, tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from n2s_utils import datasets; from n2s_utils.report import download\n"
        f"datasets.DOWNLOADS = Path({str(folder)!r}); datasets.registry = lambda: {{'Set12/0.png': '0' * 64}}\n"
        "def stuck(self, url, output, *_):\n"
        "    open(output, 'wb').write(b'half'); print('writing', flush=True); time.sleep(60)\n"
        "download.pooch.HTTPDownloader.__call__ = stuck; download.obtain(['Set12'])"
    )
    environment = {key: value for key, value in os.environ.items() if key != datasets.FOLDER_VARIABLE}
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(folder.rglob("*.png"))


def test_unknown_set_lists_the_known_ones(folder, monkeypatch, capsys):
    assert command(monkeypatch, "Kodak25") == 2
    assert "'Kodak25': choose among BSDS500, Kodak24, Set12, DIV2K" in one_error_line(capsys)


@pytest.fixture
def local(site, folder, tmp_path, monkeypatch):
    """A complete folder of the user's own, named by N2S_DATA_DIR."""
    own = tmp_path / "own"
    for path, content in site.files.items():
        (own / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (own / path[1:]).write_bytes(content)
    monkeypatch.setenv(datasets.FOLDER_VARIABLE, str(own))
    return own


def test_a_local_folder_is_verified_instead(site, folder, local, monkeypatch, capsys):
    assert command(monkeypatch, "Kodak24", "Set12") == 0
    assert "N2S_DATA_DIR is set: nothing downloaded; 6 files of Kodak24, Set12 verified there" in capsys.readouterr().out
    assert not site.asked and not folder.exists()


def test_a_bad_file_of_a_local_folder_is_named_and_kept(site, local, monkeypatch, capsys):
    (local / "Set12/1.png").write_bytes(b"altered")
    assert command(monkeypatch, "Set12") == 2
    error = one_error_line(capsys)
    assert str(local / "Set12/1.png") in error and "altered" in error and "unset N2S_DATA_DIR" in error
    assert (local / "Set12/1.png").read_bytes() == b"altered"

    (local / "Set12/1.png").unlink()
    assert command(monkeypatch, "Set12") == 2
    assert f"{local / 'Set12/1.png'}: missing" in one_error_line(capsys)
    assert not site.asked


def test_div2k_of_a_local_folder_needs_its_sums(local, monkeypatch, capsys):
    assert command(monkeypatch, "DIV2K") == 2
    assert "SHA256SUMS: missing" in one_error_line(capsys)


@pytest.fixture
def div2k(site, folder, monkeypatch):
    """The site serves one DIV2K archive of two pictures."""

    def serve(members: dict[str, bytes]) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as bundle:
            for name, content in members.items():
                bundle.writestr(name, content)
        site.files["/DIV2K/DIV2K_train_HR.zip"] = buffer.getvalue()
        monkeypatch.setattr(download, "ARCHIVES", {"DIV2K_train_HR": hashlib.md5(buffer.getvalue()).hexdigest()})

    serve({"DIV2K_train_HR/": b"", "DIV2K_train_HR/0001.png": png(1), "DIV2K_train_HR/0002.png": png(2)})
    return serve


PICTURES = {"DIV2K/DIV2K_train_HR/0001.png", "DIV2K/DIV2K_train_HR/0002.png"}


def test_div2k_is_unpacked_and_readable_by_datasets(site, folder, div2k, monkeypatch, capsys):
    download.obtain(["DIV2K"])
    assert files(folder) == PICTURES | {"DIV2K/SHA256SUMS"}
    monkeypatch.setitem(datasets.SETS, "DIV2K", datasets.ImageSet(tuple(sorted(PICTURES)), 3))
    assert [name for name, _ in datasets.load("DIV2K")] == ["0001", "0002"]

    site.asked.clear()
    download.obtain(["DIV2K"])
    assert not site.asked and "2 files verified, none downloaded now" in capsys.readouterr().out

    (folder / "DIV2K/DIV2K_train_HR/0002.png").write_bytes(b"altered")
    download.obtain(["DIV2K"])
    assert (folder / "DIV2K/DIV2K_train_HR/0002.png").read_bytes() == png(2)


def test_an_interrupted_archive_goes_on_where_it_was(site, folder, div2k, monkeypatch):
    archive = "/DIV2K/DIV2K_train_HR.zip"
    monkeypatch.setattr(download, "MIB", 100)
    site.cut[archive] = 1000
    with pytest.raises(InputError, match="run again to go on"):
        download.obtain(["DIV2K"])
    assert files(folder) == {"DIV2K/DIV2K_train_HR.zip.part"}
    part = (folder / "DIV2K/DIV2K_train_HR.zip.part").read_bytes()
    assert len(part) >= 900 and site.files[archive].startswith(part)

    site.cut[archive] = len(site.files[archive]) - len(part)  # enough for the rest only
    download.obtain(["DIV2K"])
    assert files(folder) == PICTURES | {"DIV2K/SHA256SUMS"}


def test_a_whole_part_is_not_fetched_again(site, folder, div2k):
    part = folder / "DIV2K/DIV2K_train_HR.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(site.files["/DIV2K/DIV2K_train_HR.zip"])
    download.obtain(["DIV2K"])
    assert files(folder) == PICTURES | {"DIV2K/SHA256SUMS"}


def test_an_altered_archive_leaves_nothing(site, folder, div2k):
    site.files["/DIV2K/DIV2K_train_HR.zip"] += b"more"
    with pytest.raises(InputError, match="wrong MD5"):
        download.obtain(["DIV2K"])
    assert not files(folder)


@pytest.mark.parametrize("member", ["../0001.png", "/0001.png", "DIV2K_train_HR/../../0001.png"])
def test_an_archive_that_reaches_outside_is_refused(folder, div2k, member):
    div2k({"DIV2K_train_HR/0001.png": png(1), member: png(2)})
    with pytest.raises(InputError, match="points outside"):
        download.obtain(["DIV2K"])
    assert files(folder) == {"DIV2K/DIV2K_train_HR.zip"}
    assert not list(folder.parent.rglob("0001.png"))


def test_sums_are_written_last(folder, div2k, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.shutil, "copyfileobj", full_disk)
    with pytest.raises(OSError):
        download.obtain(["DIV2K"])
    assert files(folder) == {"DIV2K/DIV2K_train_HR.zip"}


def test_every_registered_folder_has_a_home():
    folders = {file.partition("/")[0] for file in datasets.registry()}
    assert folders - {"skimage"} == set(download.DEFAULT) <= set(download.HOMES)
