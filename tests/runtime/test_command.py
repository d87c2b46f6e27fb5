"""The frame of all commands: faults of the machine as sentences, output that no name can break."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from runtime.command import build_parser, run_command
from runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EISDIR, errno.ENAMETOOLONG]
)
def test_system_error_is_a_sentence(capsys: pytest.CaptureFixture[str], number: int) -> None:
    def work() -> None:
        raise OSError(number, os.strerror(number), "/data/out.npz")

    assert run_command(work) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: /data/out.npz: ")
    assert "Traceback" not in said
    assert "Errno" not in said


def test_program_error_keeps_its_traceback() -> None:
    def work() -> None:
        raise ConnectionResetError(errno.ECONNRESET, "")

    with pytest.raises(ConnectionResetError):
        run_command(work)


def test_standard_output_on_a_full_disk_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run_command(lambda: print("done")) == 2
    assert "no space" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_names_outside_of_the_code_page_are_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    out, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding))
    name = "王小明 a\udcff"

    def work() -> None:
        print(name)
        raise InputError(name)

    assert run_command(work) == 2
    expected = name.replace("\udcff", "\\udcff").encode(encoding, "backslashreplace")
    assert (out.getvalue(), err.getvalue()) == (expected + b"\n", b"error: " + expected + b"\n")


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        print("a\x1b[2J\rb\n\tc\u202e", file=sys.stderr)
        print("a\x1b[2J\rb")
        raise InputError("d\x9b1m")

    run_command(work)
    said = capsys.readouterr()
    assert said.out == "a\\x1b[2J\\rb\n"
    assert said.err == "a\\x1b[2J\\rb\n\tc\\u202e\nerror: d\\x9b1m\n"


def test_progress_bars_still_move(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        with tqdm(total=2, desc="outer", file=sys.stderr) as bar, tqdm(total=1, desc="in\x1bner", position=1):
            bar.update(2)

    run_command(work)
    said = capsys.readouterr().err
    assert "\router: 100%" in said
    assert "\x1b[A" in said
    assert "\rin\\x1bner" in said


def test_streams_are_restored(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    run_command(lambda: print("inside"))
    assert (sys.stdout, sys.stderr) == before
    print("outside")
    assert capsys.readouterr().out == "inside\noutside\n"


def test_arguments_are_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser("").parse_args(["--\x1b[2J"])
    assert "\x1b" not in capsys.readouterr().err


def test_closed_pipe_ends_the_command_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `inference.py list | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert run_command(lambda: print("a line\n" * 10_000)) == 141


def test_importing_the_frame_of_commands_loads_neither_torch_nor_lightning() -> None:
    modules = "runtime.command, runtime.files, runtime.output_checks, runtime.input_files, runtime.json_files"
    code = (
        f"import sys, {modules}; print(sorted({{'torch', 'pytorch_lightning', 'numpy'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_shows_only_defaults_that_are_values() -> None:
    parser = build_parser("A command.")
    parser.add_argument("sets", nargs="*", default=[], help="sets")
    parser.add_argument("--file", help="file")
    parser.add_argument("--on", action="store_true", help="switch")
    parser.add_argument("--rate", type=int, default=0, help="rate")
    text = parser.format_help()
    assert text.count("(default:") == 1
    assert "rate (default: 0)" in text
