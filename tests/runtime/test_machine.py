"""What exists on Linux alone has a fallback: other systems, and other ways to install OpenCV."""

from __future__ import annotations

import ast
import os
import stat
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.sources.unpacking import _require_free_files
from evaluation.metrics.template_pairs import verify
from evaluation.reporting.report import versions
from runtime import machine
from runtime.files import atomic_write
from tests.test_architecture import MODULES

# Not on Windows; the last two not on macOS either.
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"}
POSIX_NAMES = {
    "os": {"fork", "statvfs", "register_at_fork", "getuid", "geteuid", "getgid", "fchmod", "fchown", "chown"}
    | {"mkfifo", "killpg", "setsid", "sysconf", "nice", "getloadavg", "O_NONBLOCK", "O_DIRECTORY"}
    | {"O_NOFOLLOW", "O_CLOEXEC", "posix_fadvise", "sched_getaffinity"},
    "signal": {"SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGPIPE", "alarm", "pause"},
}


@pytest.mark.parametrize("name", MODULES)
def test_platform_specific_functions_are_guarded(name: str) -> None:
    path = MODULES[name]
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    at_the_top = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not at_the_top & POSIX_MODULES
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = node.value.id
            if node.attr in POSIX_NAMES.get(module, ()):
                assert f'attr({module}, "{node.attr}"' in text, f"{path}:{node.lineno}"


def test_cores_are_those_of_the_machine_without_affinity_information(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.usable_cores() == os.cpu_count()
    mated = np.array([True, False])
    found = verify(np.eye(3, dtype=np.float32), np.array([0, 1]), np.array([0, 2]), mated, [0.5])
    assert found.scores.tolist() == [1, 0]


def test_peak_memory_is_unknown_without_the_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    kib = machine.peak_resident_mib()
    assert kib is not None
    assert 50 < kib < 100_000
    monkeypatch.setitem(sys.modules, "resource", None)
    assert machine.peak_resident_mib() is None


def test_system_without_inodes_has_enough_of_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "statvfs")
    _require_free_files(tmp_path, 10**15)


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"opencv-python": "4.12.0.88"}, ("opencv-python", "4.12.0.88")),
        ({"opencv-contrib-python-headless": "4.9"}, ("opencv-contrib-python-headless", "4.9")),
        ({}, ("opencv", cv2.__version__)),
    ],
)
def test_versions_name_the_opencv_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], expected: tuple[str, str]
) -> None:
    def of(name: str) -> str:
        if "opencv" in name and name not in installed:
            raise PackageNotFoundError(name)
        return installed.get(name) or version(name)

    monkeypatch.setattr(machine, "version", of)
    found = versions()
    assert expected in found.items()
    assert [name for name in found if "opencv" in name] == [expected[0]]
    assert found["numpy"] == np.__version__


def test_synced_files_are_open_for_writing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Windows refuses to sync other files."""
    synced: list[int] = []

    def fsync(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            os.write(handle, b"")
            synced.append(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    atomic_write(tmp_path / "a.txt", "text")
    assert synced
