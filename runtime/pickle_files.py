"""Read untrusted pickles of plain values and NumPy arrays without executing code.

Accepted are numbers, strings, bytes, lists, tuples, dictionaries and arrays of numbers; memory is bounded by
the size of the file.
"""

from __future__ import annotations

import math
import mmap
import pickle
import pickletools
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from runtime.errors import InputError
from runtime.input_files import check_regular

_REFUSED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)
_KINDS = "biuf"


class StoredArray:
    """An array of numbers in the result of `read_plain_pickle`, in place of numpy.ndarray."""

    def __init__(self) -> None:
        self.values: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise ValueError("an array with an invalid state")
        _version, shape, data_type, fortran, content = state
        self.values = _array(content, data_type, shape, "F" if fortran else "C")


def read_plain_pickle(path: Path, what: str) -> object:
    """Read a pickle of plain data; strings of Python 2 become bytes, arrays `StoredArray`.

    Raises:
        InputError: the file cannot be read, is truncated or not a pickle, or contains anything but plain
            data. `what` describes the expected file.
    """
    check_regular(path, what)
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_memo(content)
            content.seek(0)
            return _PlainUnpickler(content, encoding="bytes").load()
    except InputError as fault:
        raise InputError(f"{path}: {fault}") from None
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault.strerror}). Expected {what}.") from None
    except _REFUSED as fault:
        raise InputError(
            f"{path}: cannot be read as {what} ({fault}). The file may be truncated or of another type; "
            "compare its size with the original."
        ) from None


def _check_memo(content: mmap.mmap) -> None:
    """Reject memo indices beyond the position: the unpickler allocates memory up to the index."""
    for opcode, argument, place in pickletools.genops(cast("IO[bytes]", content)):
        if "PUT" in opcode.name and isinstance(argument, int) and argument > (place or 0):
            raise ValueError(f"{opcode.name} {argument} at byte {place}")


class _PlainUnpickler(pickle.Unpickler):
    """Replaces the few globals that real files name, so that not even NumPy's own code is run."""

    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STAND_INS.get((module.replace("numpy._core", "numpy.core"), name))
        if stand_in is None:
            raise InputError(
                f"this pickle refers to {module}.{name}. Only plain data is read, because a pickle that "
                "refers to code can run it."
            )
        return stand_in


class _StandIn:
    """Base class of replacements: setting a state has no effect."""

    def __setstate__(self, _state: object) -> None:
        """Ignore the state."""


class _DataType(_StandIn):
    """numpy.dtype of numbers."""

    def __init__(self, code: str | bytes, *_flags: object) -> None:
        text = code.decode() if isinstance(code, bytes) else code
        if text.lstrip("|<>=")[:1] not in [*_KINDS]:
            raise ValueError(f"an array of type {text}, expected numbers")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, tuple) and len(state) >= 2):
            raise ValueError("a data type with an invalid state")
        order: Any = state[1].decode() if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _Reconstruct(_StandIn):
    """numpy.core.multiarray._reconstruct; the array's state follows."""

    def __new__(cls, *_arguments: object) -> Any:
        return StoredArray()


class _FromBuffer(_StandIn):
    """numpy.core.numeric._frombuffer, as protocol 5 writes an array."""

    def __new__(cls, content: object, data_type: object, shape: object, order: object) -> Any:
        found = StoredArray()
        found.values = _array(content, data_type, shape, "F" if order == "F" else "C")
        return found


class _Scalar(_StandIn):
    """numpy.core.multiarray.scalar, as numpy.bool_ and numpy.float32 are written."""

    def __new__(cls, data_type: object, content: object) -> Any:
        return _array(content, data_type, (), "C").item()


class _Encode(_StandIn):
    """_codecs.encode, as Python 3 writes bytes at protocol 2."""

    def __new__(cls, text: str, _encoding: str) -> Any:
        return text.encode("latin-1")


def _array(content: object, data_type: object, shape: object, order: Any) -> NDArray[Any]:
    """The array, if the content has the size of type and shape."""
    if not (isinstance(data_type, _DataType) and isinstance(content, (bytes, bytearray))):
        raise ValueError("an array of other values than numbers")
    if not (isinstance(shape, tuple) and all(isinstance(side, int) and side >= 0 for side in shape)):
        raise ValueError("an array without a valid shape")
    if math.prod(shape) * data_type.dtype.itemsize != len(content):
        raise ValueError(f"an array {shape} {data_type.dtype} of {len(content):,} bytes")
    return np.frombuffer(content, data_type.dtype).reshape(shape, order=order)


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy", "ndarray"): StoredArray,
    ("numpy", "dtype"): _DataType,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy.core.multiarray", "scalar"): _Scalar,
    ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
    ("_codecs", "encode"): _Encode,
}
