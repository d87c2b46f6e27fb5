"""Files are written whole or not at all, for their owner alone, and probed before the work."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.sources.pair_files import read_pair_set
from evaluation.protocols.matlab_files import read_matlab
from runtime import files
from runtime.array_files import read_npz
from runtime.disk_faults import fault_text
from runtime.errors import InputError
from runtime.files import atomic_path, atomic_write, private_files, private_folder, temporary_folder
from runtime.json_files import read_json
from runtime.output_checks import require_free_space, require_output_file, require_output_folder


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file can be larger than so many bytes, as on a full disk."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE), 20_000
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    yield most
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_files_and_folders_are_private(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    with atomic_path(path) as temporary:
        assert mode_of(temporary) == 0o600
    assert mode_of(path) == 0o600
    assert mode_of(path.parent) == mode_of(path.parent.parent) == 0o700


def test_umask_is_respected(tmp_path: Path) -> None:
    before = os.umask(0o277)
    try:
        with atomic_path(tmp_path / "a.txt"):
            pass
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "a.txt") == 0o400


@pytest.mark.parametrize(("before", "after"), [(0o600, 0o600), (0o400, 0o400), (0o644, 0o600)])
def test_file_that_is_replaced_keeps_a_narrower_mode(tmp_path: Path, before: int, after: int) -> None:
    path = tmp_path / "gallery.npz"
    path.write_bytes(b"old")
    path.chmod(before)
    atomic_write(path, b"new")
    assert (path.read_bytes(), mode_of(path)) == (b"new", after)


def test_all_files_of_a_command_are_private(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with private_files():
            (tmp_path / "other").mkdir()
            (tmp_path / "other" / "metrics.csv").touch()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert (mode_of(tmp_path / "other"), mode_of(tmp_path / "other" / "metrics.csv")) == (0o700, 0o600)


def test_file_and_folder_are_synced_about_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def replaced(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    atomic_write(tmp_path / "a.txt", "text")
    assert done == ["file", "rename", "folder"]


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    leftover, others = tmp_path / ".last.a1b2c3d4.ckpt", [".last.ckpt", ".best.a1b2c3d4.ckpt", "last.x.ckpt"]
    for name in (leftover.name, *others):
        (tmp_path / name).touch()
    with atomic_path(tmp_path / "last.ckpt") as temporary:
        assert not leftover.exists()
        # That of a process at work stays, though another one writes the same file.
        atomic_write(tmp_path / "last.ckpt", b"another")
        assert temporary.exists()
        temporary.write_bytes(b"whole")
    assert (tmp_path / "last.ckpt").read_bytes() == b"whole"
    assert sorted(os.listdir(tmp_path)) == sorted(["last.ckpt", *others])


def test_locked_file_of_another_process_is_kept(tmp_path: Path) -> None:
    path = tmp_path / ".a.a1b2c3d4.json"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        handle = os.open(path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.write(write, b"locked")
        signal.pause()
    os.read(read, 6)
    atomic_write(tmp_path / "a.json", "{}")
    assert path.exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    atomic_write(tmp_path / "a.json", "{}")
    assert not path.exists()
    for end in (read, write):
        os.close(end)


def test_temporary_folder_and_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".made.a1b2c3d4").mkdir()
    with pytest.raises(FileNotFoundError), temporary_folder(tmp_path / "made") as temporary:
        (temporary / "missing" / "a").touch()
    assert os.listdir(tmp_path) == []
    with temporary_folder(tmp_path / "made") as temporary:
        assert os.listdir(tmp_path) == [temporary.name]
        assert mode_of(temporary) == 0o700


def test_long_names_are_shortened_for_the_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / f"{'a' * 250}.npz"
    atomic_write(path, b"")
    assert path.exists()


def test_text_is_utf8_for_any_name(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a.json", '"a\udcff é"')
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '"a\\udcff é"'


_WRITERS: dict[str, Callable[[Any, int], object]] = {
    "bytes": lambda stream, count: stream.write(bytes(2 * count)),
    "npz": lambda stream, count: np.savez(stream, a=np.zeros(count)),
    "torch": lambda stream, count: torch.save({"a": torch.zeros(count)}, stream),
}


@pytest.mark.parametrize("kind", _WRITERS)
def test_full_disk_is_reported_for_the_target(tmp_path: Path, small_files: int, kind: str) -> None:
    path = tmp_path / "a.bin"
    atomic_write(path, b"old")
    with (
        pytest.raises(OSError, match="large") as caught,
        atomic_path(path) as made,
        made.open("wb") as stream,
    ):
        _WRITERS[kind](stream, small_files)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert str(path) in (fault_text(caught.value) or "")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


def test_errors_of_other_files_keep_their_names(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_path(tmp_path / "a.bin"):
        (tmp_path / "missing").read_bytes()
    assert "missing" in (fault_text(caught.value) or "")


def test_program_errors_have_no_sentence() -> None:
    assert fault_text(OSError(errno.ECONNRESET, "")) is None
    assert fault_text(FileNotFoundError(errno.ENOENT, "")) is None
    assert fault_text(OSError("other")) is None


@pytest.mark.parametrize(
    "name", ["file/x", "file/x/y", "folder", "pipe", f"{'n' * 300}", "circle/x"], ids=lambda name: name[:8]
)
def test_file_that_cannot_be_written_is_refused_in_advance(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(InputError, match="--out"):
        require_output_file(tmp_path / name, "--out")
    if name != "folder":
        with pytest.raises(InputError, match="--out"):
            require_output_folder(tmp_path / name / "x", "--out")


def test_writable_file_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("old")
    require_output_file(tmp_path / "there.json", "--out")
    require_output_file(tmp_path / "new" / "folder" / "a.json", "--out")
    require_output_folder(tmp_path / "new", "--out", files=("a.json",))
    assert os.listdir(tmp_path) == ["there.json"]
    assert (tmp_path / "there.json").read_text() == "old"


def test_input_as_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "b.safetensors").symlink_to("a.safetensors")
    for name in ("a.safetensors", "b.safetensors"):
        with pytest.raises(InputError, match="--weights"):
            require_output_file(tmp_path / name, "--weights", inputs=[tmp_path / "a.safetensors"])


def test_folder_in_place_of_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(InputError, match=r"report\.html"):
        require_output_folder(tmp_path, "--out", files=("report.html",))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_full_disk_is_reported_in_advance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", full)
    with pytest.raises(InputError, match="--out"):
        require_output_file(tmp_path / "a" / "b.json", "--out")
    assert os.listdir(tmp_path) == []


def test_missing_space_is_reported_in_suitable_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("usage", (), {"free": 12 * 1024}))
    with pytest.raises(InputError, match=r"48\.83 KiB.* 12 KiB"):
        require_free_space(tmp_path / "a" / "b", 50_000)


def test_folders_that_exist_keep_their_mode(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    private_folder(tmp_path / "open" / "new")
    assert (mode_of(tmp_path / "open"), mode_of(tmp_path / "open" / "new")) == (0o755, 0o700)


@pytest.mark.parametrize("name", ["json", "npz", "mat", "bin"])
def test_fifo_is_not_opened(name: str, tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    path = tmp_path / f"a.{name}"
    os.mkfifo(path)
    readers: dict[str, Callable[[], object]] = {
        "json": lambda: read_json(path, dict, "a record"),
        "npz": lambda: read_npz(path, "an archive"),
        "mat": lambda: read_matlab(path),
        "bin": lambda: read_pair_set(path),
    }
    with pytest.raises(InputError, match=path.name):
        readers[name]()
