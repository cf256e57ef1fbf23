"""One-line errors, progress lines, and files that are whole or absent."""

import argparse
import errno
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from n2s_utils import cli
from n2s_utils.cli import InputError
from n2s_utils.files import atomic_write, sha256


def _run(main, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.run(main)
    return caught.value.code, capsys.readouterr()


def _raiser(error):
    def main():
        raise error

    return main


def test_success_is_status_0_in_silence(capsys):
    code, output = _run(lambda: None, capsys)
    assert not code and output.out == output.err == ""


def test_ctrl_c_is_one_line_and_status_130(capsys):
    code, output = _run(_raiser(KeyboardInterrupt("saved at step 3; the same command goes on")), capsys)
    assert code == 130 and output.err == "stopped: saved at step 3; the same command goes on\n"


def test_bad_input_is_one_line_and_status_2(capsys):
    code, output = _run(_raiser(InputError("sigma = 0: give a finite number above 0")), capsys)
    assert code == 2 and output.out == ""
    assert output.err == "error: sigma = 0: give a finite number above 0\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_one_line_and_status_2(number, capsys):
    code, output = _run(_raiser(OSError(number, "full", "results.csv")), capsys)
    assert code == 2 and output.err.startswith("error: results.csv: disk full") and output.err.count("\n") == 1


def test_a_path_that_cannot_be_used_is_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, output = _run((tmp_path / "file" / "rows.csv").read_text, capsys)
    assert code == 2 and output.err == f"error: {tmp_path}/file/rows.csv: Not a directory; check the path and its permissions\n"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), ValueError("a bug"), ZeroDivisionError()])
def test_other_errors_keep_their_traceback(error):
    with pytest.raises(type(error)) as caught:
        cli.run(_raiser(error))
    assert caught.value is error


def test_progress_prints_what_is_done_and_the_time_left(monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr(cli, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for item in cli.progress(iter("abc"), total=5, label="run", done=2, every=20):
        assert item in "abc"
        clock[0] += 15  # seconds an item
    assert capsys.readouterr().out == "run: 4/5, 00:15 left\n"


def test_progress_is_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert list(cli.progress(iter("abc"), total=5, label="run", done=2)) == ["a", "b", "c"]
    assert "5/5" in capsys.readouterr().out


def test_atomic_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "rows.csv"
    for text in ("old", "new"):
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == ".csv" and temporary != path
            temporary.write_text(text)
        assert path.read_text() == text and [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_atomic_write_keeps_the_old_file_when_writing_fails(tmp_path, error):
    path = tmp_path / "rows.csv"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


def test_atomic_write_keeps_the_old_file_when_the_disk_is_full(tmp_path, full_disk, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("old")

    def main():
        with atomic_write(path) as temporary:
            temporary.write_text("new")

    with full_disk():
        code, output = _run(main, capsys)
    assert code == 2 and "disk full" in output.err and output.err.count("\n") == 1
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


def test_atomic_write_keeps_the_old_file_when_it_cannot_be_synced(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "full")

    path = tmp_path / "rows.csv"
    path.write_text("old")
    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(OSError, match="full"), atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


def test_sha256_of_a_known_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_two_processes_that_write_one_file_leave_one_of_theirs_whole(tmp_path):
    path, size = tmp_path / "rows.csv", 20_000
    writer = "\n".join(
        [
            "import sys",
            "from n2s_utils.files import atomic_write",
            "for number in range(400):",
            f"    with atomic_write({str(path)!r}) as temporary:",
            f"        temporary.write_text(sys.argv[1] * {size}, encoding='utf-8')",
        ]
    )
    processes = [subprocess.Popen([sys.executable, "-c", writer, letter]) for letter in "ab"]
    seen = set()
    while any(process.poll() is None for process in processes):
        if path.exists():
            seen.add(path.read_text(encoding="utf-8"))
    assert not any(process.wait() for process in processes)
    assert seen <= {"a" * size, "b" * size} and [*tmp_path.iterdir()] == [path]


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    path = tmp_path / ("n" * 251 + ".csv")
    with atomic_write(path) as temporary:
        temporary.write_text("whole", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "whole"


def test_a_reader_that_goes_away_is_silence():
    command = "from n2s_utils import cli; cli.run(lambda: [print('line ' * 100) for _ in range(10_000)])"
    process = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_what_the_terminal_cannot_show_is_escaped():
    command = "from n2s_utils import cli; cli.run(lambda: print('caf\\u00e9 \\udcff'))"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout == b"caf\\xe9 \\udcff\n"


def test_output_that_is_closed_or_full_is_no_traceback():
    command = [sys.executable, "-c", "from n2s_utils import cli; cli.run(lambda: print('line'))"]
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, text=True)
    assert closed.returncode == 0 and closed.stderr == ""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode in (2, 120) and "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf"])
def test_a_number_that_must_be_positive(text):
    with pytest.raises(argparse.ArgumentTypeError, match="above 0"):
        cli.positive(text)
    assert cli.positive("2.5") == 2.5


def test_an_error_is_one_line_whatever_it_names(capsys):
    code, output = _run(_raiser(InputError("a\nb.png: no such file")), capsys)
    assert code == 2 and output.err == "error: a\\nb.png: no such file\n"
