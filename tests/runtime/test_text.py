from __future__ import annotations

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
