"""Rows of a matrix: slices within a memory bound, unit length, and groups that pairs of rows join."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_Floating = TypeVar("_Floating", bound=np.floating[Any])


def row_slices(rows: int, columns: int, most_cells: int) -> Iterator[slice]:
    """Consecutive slices of the rows with at most `most_cells` cells each, but at least one row."""
    step = max(1, most_cells // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def unit_rows(rows: NDArray[_Floating], smallest: float = 1e-12) -> NDArray[_Floating]:
    """Rows (N, D) divided by their length, in their dtype; lengths below `smallest` count as it."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / lengths.clip(smallest), rows.dtype)


def joined_rows(
    count: int, first: NDArray[np.integer[Any]], second: NDArray[np.integer[Any]]
) -> NDArray[np.int64]:
    """Number the connected components of a graph of rows.

    Args:
        count: number of rows.
        first: (P,) rows.
        second: (P,) rows that they are joined to.

    Returns:
        (count,) component of each row, numbered by first row.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(count, count))
    return np.asarray(connected_components(edges, directed=False)[1], np.int64)
