"""Read a MATLAB file from standard input with `scipy.io.loadmat`, as the program of a process with limits.

`evaluation.protocols.matlab_files` starts it. Imports nothing of this project.
"""

from __future__ import annotations

import io
import json
import sys
from typing import Any

import numpy as np
from scipy.io import loadmat

# Of address space. A list of 160,000 file names takes 2.4 s and 171 MiB.
MEMORY_BYTES = 2 << 30
MAX_VALUES = 1_000_000


def variables(content: bytes) -> list[tuple[str, str, list[Any]]]:
    """(name, 'numbers' or 'texts', values in column-major order) of each array of numbers, text or strings.

    Raises:
        ValueError: an array of more than `MAX_VALUES` values.
    """
    found: list[tuple[str, str, list[Any]]] = []
    for name, value in loadmat(io.BytesIO(content)).items():
        if name.startswith("__") or not isinstance(value, np.ndarray):
            continue
        if value.size > MAX_VALUES:
            raise ValueError(f"'{name}' has {value.size:,} values")
        if value.dtype.kind in "buif":
            found.append((name, "numbers", value.ravel(order="F").astype(np.float64).tolist()))
        elif value.dtype.kind == "U":
            found.append((name, "texts", [text.rstrip() for text in value.ravel(order="F").tolist()]))
        elif value.dtype == object and all(_is_text(cell) for cell in value.flat):
            found.append((name, "texts", [cell.item().rstrip() for cell in value.ravel(order="F")]))
    return found


def _is_text(cell: Any) -> bool:
    return isinstance(cell, np.ndarray) and cell.dtype.kind == "U" and cell.size == 1


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:
        # Windows: the time limit alone holds.
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _limit_memory()
    # What a damaged file raises ends in a traceback; its last line goes into the message of the parent
    # process.
    sys.stdout.write(json.dumps(variables(sys.stdin.buffer.read())))
