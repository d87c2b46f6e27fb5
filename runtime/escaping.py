"""Escapes of what in names of files and people would command a terminal or a spreadsheet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

# Control characters (C0, DEL, C1), line and paragraph separators, controls of the writing direction and other
# invisible ones, and the bytes of file names that are not UTF-8 (surrogates). Joiners are part of words.
_ESCAPED = (
    "\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_IN_NAMES = re.compile(f"[{_ESCAPED}]")
_IN_TEXT = re.compile(f"(?![\n\t])[{_ESCAPED}]")
# As OWASP's page on CSV injection has it; tabs and line breaks are escaped before.
_FORMULA = re.compile("'*[=+@\uff1d\uff0b\uff0d\uff20-]")


def escaped(name: str) -> str:
    """A name on one line: what is not printable as Python writes it, a line break as a backslash and an n."""
    return _IN_NAMES.sub(_escape, name)


def escaped_text(text: str) -> str:
    """Text whose line breaks and tabs are our own: all else that `escaped` replaces."""
    return _IN_TEXT.sub(_escape, text)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV. Text that a spreadsheet would take for a formula gets a single quote in front.

    Numbers stay numbers, also as text. `from_csv_cell` takes the quote away.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [csv_cell(value) if isinstance(value, str) else value for value in row] for row in rows
    )
    return text.getvalue()


def csv_cell(text: str) -> str:
    """Text of a cell, not yet quoted: see `csv_text`."""
    shown = escaped(text)
    return f"'{shown}" if _FORMULA.match(shown) and not _is_number(shown) else shown


def from_csv_cell(text: str) -> str:
    """The text of a cell that `csv_text` wrote."""
    return text[1:] if _FORMULA.match(text) and text.startswith("'") else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
