"""Variables of MATLAB 5 files (as `save` writes them up to -v7): numbers, strings and cells of strings.

`scipy.io.loadmat` reads them in a process of its own: on a damaged file it can crash (SciPy 1.17:
segmentation fault after one changed byte) or ask for any amount of memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.input_files import check_regular

# Numbers, or strings: the rows of a character array, the cells of a cell array. In column-major order.
Value = NDArray[np.float64] | list[str]

_WORKER = Path(__file__).with_name("matlab_worker.py")
_MAX_BYTES = 64 << 20
_MAX_SECONDS = 120
_HEADER_BYTES = 128


def read_matlab(path: Path) -> dict[str, Value]:
    """The variables of a file by name; structs, sparse arrays and mixed cells are skipped.

    Raises:
        InputError: no such file, it is not a MATLAB 5 file, it is damaged or too large.
    """
    try:
        check_regular(path, "a MATLAB file")
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Expected a MATLAB file.") from None
    fault: str | None = _fault_of_header(content)
    if fault is None:
        # Every thread of OpenBLAS reserves address space, which is limited.
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                [sys.executable, str(_WORKER)],
                input=content,
                capture_output=True,
                timeout=_MAX_SECONDS,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            fault = f"scipy.io.loadmat took more than {_MAX_SECONDS} s"
        else:
            if done.returncode == 0:
                found = json.loads(done.stdout)
                return {n: np.array(v, np.float64) if kind == "numbers" else v for n, kind, v in found}
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            fault = f"scipy.io.loadmat: {lines[-1][:200] if lines else f'ended with {done.returncode}'}"
    raise InputError(
        f"{path}: cannot be read as a MATLAB file ({fault}). Compare its size with the original."
    )


def _fault_of_header(content: bytes) -> str | None:
    if content.startswith(b"MATLAB 7.3"):
        return "it is of version 7.3; save it again with -v7"
    if len(content) > _MAX_BYTES:
        return f"it is larger than {_MAX_BYTES >> 20} MiB"
    if len(content) < _HEADER_BYTES or content[126:128] not in (b"IM", b"MI"):
        return "its first 128 bytes are not the header of MATLAB 5"
    return None
