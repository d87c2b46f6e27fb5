from __future__ import annotations

import io
import re
import sys

import pytest
from tqdm import tqdm

from runtime import progress
from runtime.progress import progress_bar
from tests.test_architecture import MODULES


class Clock:
    """Seconds that pass as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_log_gets_one_line_per_minute_and_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    for _ in progress_bar(range(1000), desc="embedding", mininterval=0):
        clock.now += 0.15
    lines = capsys.readouterr().err
    assert "\r" not in lines
    assert [line.partition(":")[0] for line in lines.splitlines()] == ["embedding"] * 3
    assert lines.splitlines()[-1].startswith("embedding: 100%")
    assert "1000/1000" in lines


def test_log_stays_empty_for_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(total=3, desc="looking", leave=False) as bar:
        bar.update(3)
    for _ in progress_bar(range(3), disable=True):
        pass
    assert capsys.readouterr().err == ""


def test_terminal_gets_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    bar = progress_bar(total=2, desc="packing")
    bar.update(2)
    bar.close()
    assert type(bar) is tqdm
    assert "\r" in screen.getvalue()


def test_bars_have_one_owner() -> None:
    made = re.compile(r"(?<!_)tqdm\(")
    assert [name for name, path in MODULES.items() if made.search(path.read_text(encoding="utf-8"))] == []
    assert "runtime.progress" in MODULES
