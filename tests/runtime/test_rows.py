"""Slices of rows, rows of unit length and joined rows."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.rows import joined_rows, row_slices, unit_rows


@pytest.mark.parametrize(("rows", "columns", "most"), [(7, 3, 6), (7, 0, 2), (5, 10, 1), (0, 4, 8)])
def test_slices_cover_the_rows_within_the_bound(rows: int, columns: int, most: int) -> None:
    parts = [range(part.start, part.stop) for part in row_slices(rows, columns, most)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert all(len(part) == 1 or len(part) * columns <= most for part in parts)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unit_rows_keep_dtype_and_accept_zeros(dtype: type) -> None:
    rows = np.array([[3, 4], [0, 0], [0, 1e-7]], dtype)
    unit = unit_rows(rows, 1e-6)
    assert unit.dtype == dtype
    np.testing.assert_allclose(unit, [[0.6, 0.8], [0, 0], [0, 0.1]], rtol=1e-6)


def test_joined_rows_are_numbered_by_the_first_row() -> None:
    groups = joined_rows(6, np.array([4, 1, 5]), np.array([0, 3, 1]))
    assert groups.tolist() == [0, 1, 2, 1, 0, 1]
    assert joined_rows(0, np.zeros(0, int), np.zeros(0, int)).shape == (0,)
