"""Escaping of names that contain control characters or spreadsheet formulas."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable

# Control characters (C0, DEL, C1), line and paragraph separators, bidirectional controls, other invisible
# characters, and surrogates (bytes of file names that are not UTF-8). Joiners are kept: they are part of
# words.
_ESCAPED = (
    "\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_IN_NAMES = re.compile(f"[{_ESCAPED}]")
_IN_TEXT = re.compile(f"(?![\n\t])[{_ESCAPED}]")
# As in OWASP's page on CSV injection; tabs and line breaks are escaped before.
_FORMULA = re.compile("'*[=+@\uff1d\uff0b\uff0d\uff20-]")


def escaped(name: str) -> str:
    """A name on one line, unprintable characters and line breaks as Python escapes."""
    return _IN_NAMES.sub(_escape, name)


def escaped_text(text: str) -> str:
    """As `escaped`, but line breaks and tabs are kept."""
    return _IN_TEXT.sub(_escape, text)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Rows as CSV. Text that a spreadsheet would read as a formula is prefixed by a single quote.

    Numbers are unchanged, also as text. `from_csv_cell` removes the quote.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [csv_cell(value) if isinstance(value, str) else value for value in row] for row in rows
    )
    return text.getvalue()


def csv_cell(text: str) -> str:
    """The escaped text of a cell, before CSV quoting; see `csv_text`."""
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
