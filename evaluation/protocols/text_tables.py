"""Text tables of protocols, read with pandas; errors name file and line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from runtime.errors import InputError


def read_table(path: Path, columns: Mapping[str, type[Any]], *, csv: bool = False) -> pd.DataFrame:
    """Read a table of whitespace-separated columns, or of a csv file the columns of these names.

    Args:
        path: an ASCII or UTF-8 text file; empty lines are passed over.
        columns: name -> type, all of a text file's in their order; a text file has no header.
        csv: the file is comma-separated with a header line, and may hold other columns too.

    Raises:
        InputError: no such file, no line, or a broken one: file, line, expected and found.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file. It belongs to the meta files of the data set, whose names begin "
            f"with '{path.name.split('_')[0]}_'."
        )
    try:
        table = _read_csv(path, columns) if csv else _read_text(path, columns)
    except (ValueError, OverflowError) as fault:
        # pandas' own errors are ValueErrors too, and do not say the line, or count it in another way.
        raise InputError(_sentence(path, columns, csv, fault)) from None
    floating = [name for name, kind in columns.items() if issubclass(kind, np.floating)]
    if table is None or not np.isfinite(table[floating].to_numpy()).all():
        raise InputError(_sentence(path, columns, csv, None))
    if not len(table):
        raise InputError(f"{path}: the file has no line of data. Compare its size with the original.")
    return table


def line_of_row(path: Path, row: int) -> int:
    """The line, from 1, of the row-th non-empty line of a file; a csv file's header is row 0."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                if row == 0:
                    return number
                row -= 1
    return 0


def _read_text(path: Path, columns: Mapping[str, type[Any]]) -> pd.DataFrame | None:
    types = dict(enumerate(columns.values()))
    # One blank between fields is read at twice the speed of any blanks; the published files have one. Mapped,
    # IJB-C's pairs take 0.43 s in place of 0.57.
    for separator in (" ", r"\s+"):
        try:
            table: pd.DataFrame = pd.read_csv(
                path,
                sep=separator,
                header=None,
                dtype=types,
                na_filter=False,
                quoting=3,
                memory_map=True,
            )
        except (ValueError, OverflowError):
            if separator != " ":
                raise
            continue
        if table.shape[1] == len(columns):
            table.columns = pd.Index(columns)
            return table
    return None


def _read_csv(path: Path, columns: Mapping[str, type[Any]]) -> pd.DataFrame | None:
    header = pd.read_csv(path, nrows=0)
    named = {str(name).strip().upper(): name for name in header.columns}
    if not set(columns) <= set(named):
        return None
    types = {named[name]: kind for name, kind in columns.items()}
    table: pd.DataFrame = pd.read_csv(path, usecols=list(types), dtype=types, na_filter=False)
    selected: pd.DataFrame = pd.DataFrame({name: table[named[name]] for name in columns})
    return selected


def _sentence(path: Path, columns: Mapping[str, type[Any]], csv: bool, fault: Exception | None) -> str:
    """What is wrong with the first broken line; the file is read once more, slowly."""
    advice = "The file may be cut short; compare its size with the original."
    expected = (",...," if csv else " ").join(columns)
    places, width, header_due = list(range(len(columns))), len(columns), csv
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            line = raw.decode("utf-8", errors="replace").strip()
            if not line:
                continue
            fields = line.split(",") if csv else line.split()
            if header_due:
                header_due, names = False, [field.strip().upper() for field in fields]
                if not set(columns) <= set(names):
                    wanted = f"a header with {', '.join(columns)}"
                    return f"{path}, line {number}: expected {wanted}, found '{line[:80]}'."
                places, width = [names.index(name) for name in columns], len(names)
                continue
            right = len(fields) == width and all(
                _is(fields[place], kind) for place, kind in zip(places, columns.values(), strict=True)
            )
            if not right:
                return f"{path}, line {number}: expected '{expected}', found '{line[:120]}'. {advice}"
    return f"{path}: cannot be read as '{expected}' ({fault or 'no line of data'}). {advice}"


def _is(text: str, kind: type[Any]) -> bool:
    if kind is str:
        return bool(text)
    try:
        value = float(text)
    except ValueError:
        return False
    if not np.isfinite(value):
        return False
    if issubclass(kind, np.integer):
        limits = np.iinfo(kind)
        return value.is_integer() and text.lstrip("+-").isdigit() and limits.min <= value <= limits.max
    return True
