from __future__ import annotations

from runtime.errors import did_you_mean, valid_names
from runtime.text import first_lines, listed, shortened


def test_listed() -> None:
    assert listed(["a", "b"], 2) == "a, b"
    assert listed([str(number) for number in range(2002)], 2) == "0, 1 and 2,000 more"


def test_first_lines() -> None:
    assert first_lines(["a", "b"], 2) == ["a", "b"]
    assert first_lines(["a", "b", "c"], 1) == ["a", "... and 2 more."]
    assert first_lines(["a", "b"], 1, "{} others") == ["a", "1 others"]


def test_shortened_names_keep_both_ends() -> None:
    assert shortened("abc", 3, 1) == "abc"
    assert shortened("abcdefghijkl", 10, 4) == "abc...ijkl"


def test_nearest_name_is_suggested_if_it_is_near() -> None:
    assert "'adaface'" in did_you_mean("adafcae", iter(["arcface", "adaface"]))
    assert did_you_mean("zzz", ["arcface", "adaface"]) == ""
    assert did_you_mean("ada", ["arcface", "adaface"], cutoff=0.9) == ""
    assert "'adaface'" in valid_names("adafcae", iter(["arcface", "adaface"]))
