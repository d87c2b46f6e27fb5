from __future__ import annotations

from pathlib import Path

import pytest

from recognition.sources import find_sets
from runtime.errors import InputError


def test_set_names_are_unique(tmp_path: Path) -> None:
    for name in ("a/x", "b/x", "c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").write_bytes(b"1")
    found = find_sets([tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "c", tmp_path / "c"])
    assert len({each.name for each in found}) == 4
    assert [each.name for each in found][:2] == ["a/x", "b/x"]
    assert found[2].name.endswith("c")


def test_all_paths_that_are_not_sets_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "people" / "anna").mkdir(parents=True)
    (tmp_path / "people" / "anna" / "a.jpg").write_bytes(b"")
    (tmp_path / "void").mkdir()
    (tmp_path / "deep" / "inner").mkdir(parents=True)
    with pytest.raises(InputError) as fault:
        find_sets([tmp_path / name for name in ("gone", "void", "deep", "people")], tmp_path / "void")
    text = str(fault.value)
    assert "gone: no such folder" in text
    assert "void: there are no photos" in text
    assert f"did you mean --images_root {tmp_path / 'people'}?" in text
    assert text.count("did you mean") == 1
    assert "--images_root" in text.splitlines()[-1]
    with pytest.raises(InputError, match="no set"):
        find_sets([])
