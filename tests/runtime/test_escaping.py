"""Names from files are shown on one line, command no terminal and are no formulas of a spreadsheet."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.escaping import csv_cell, csv_text, escaped, escaped_text, from_csv_cell


@pytest.mark.parametrize(
    "character", ["\n", "\r", "\x1b", "\x9b", "\x7f", "\u202e", "\u2066", "\u2028", "\udcff"]
)
def test_control_characters_of_names_are_escaped(character: str) -> None:
    shown = escaped(f"a{character}b")
    assert character not in shown
    assert shown.isprintable()
    assert shown.startswith("a\\")


@pytest.mark.parametrize("name", ["anna", "Bjørn", "王小明", "می‌خواهم", "C:\\photos\\a.jpg", "👩‍👧"])
def test_ordinary_names_are_unchanged(name: str) -> None:
    assert escaped(name) == escaped_text(name) == name


def test_line_breaks_of_text_are_kept() -> None:
    assert escaped_text("a\n\tb\x1b[2J") == "a\n\tb\\x1b[2J"


@pytest.mark.parametrize("name", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1+1"])
def test_formula_in_a_name_is_quoted(name: str) -> None:
    cell = next(csv.reader([csv_text([[name]])]))[0]
    assert cell[0] not in "=+-@\t\r\uff1d"


def test_numbers_are_not_quoted() -> None:
    assert csv_text([["-0.5", -1, "1e-05", "<1e-05"]]) == "-0.5,-1,1e-05,<1e-05\n"


@given(st.text(st.characters(codec="utf-8")))
def test_cells_are_read_back(name: str) -> None:
    whole = escaped(name)
    row = next(csv.reader(io.StringIO(csv_text([[name, 1]]), newline="")))
    assert [from_csv_cell(row[0]), row[1]] == [whole, "1"]
    assert from_csv_cell(csv_cell(name)) == whole
