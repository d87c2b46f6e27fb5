"""Read untrusted JSON within limits, checked against types; write JSON with a checksum.

The checksum is the key 'sha256' of an object: SHA-256 over its other keys, sorted and without white space.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints, is_typeddict

from runtime.errors import InputError
from runtime.input_files import check_regular

CHECKSUM = "sha256"
# Our largest file is a list of two million subjects (20 MiB). At these limits parsing takes less than 1 GB.
_MAX_BYTES = 128 << 20
_MAX_CONTAINERS, _MAX_VALUES = 1_000_000, 4_000_000
_MAX_DEPTH = 32
_MAX_DIGITS = 19
_SHOWN = 40


def read_json(path: Path, kind: Any, what: str) -> tuple[Any, bool]:
    """Read the content of a file without its checksum, and whether it has one (which is verified).

    Args:
        path: the file.
        kind: type of the content: builtin types, their unions, list, tuple, dict, TypedDict, Literal.
        what: description of the expected file, for messages.

    Raises:
        InputError: the file cannot be read, is not JSON, too large, nested too deep, of another type, or
            differs from its checksum. The message names the file and the key.
    """
    try:
        check_regular(path, what)
        with path.open("rb") as stream:
            encoded = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file. Expected {what}.") from None
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault.strerror}). Expected {what}.") from None
    content = parse_json(encoded, f"{path}: expected {what}")
    checksum = content.pop(CHECKSUM, None) if isinstance(content, dict) else None
    if checksum is not None and checksum != _checksum(content):
        raise InputError(
            f"{path}: is damaged or was edited: its content differs from its checksum ('{CHECKSUM}'). "
            f"Expected an unchanged {what}. Restore it from a backup or create it again."
        )
    check_type(content, kind, str(path))
    return content, checksum is not None


class DuplicateKeyError(ValueError):
    """A key of an object occurs twice."""

    def __init__(self, key: object) -> None:
        super().__init__(f"{str(key)[:_SHOWN]!r} is given twice")
        self.key = key


def unique_keys(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """As `dict`, which keeps the last of equal keys; raises DuplicateKeyError for them."""
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise DuplicateKeyError(key)
        found[key] = value
    return found


def parse_json(text: str | bytes, where: str, *, num_lists: int = 0) -> Any:
    """Parse a JSON text; raises InputError beginning with `where` if it is invalid or beyond limits.

    Non-finite numbers, integers of more than 19 digits and duplicate keys are rejected. `num_lists`: the
    expected number of lists, for texts from a file whose size was checked and whose nesting the caller
    checks.
    """
    try:
        _check_size(text, num_lists)
        value = json.loads(
            text,
            parse_float=_finite,
            parse_int=_short,
            parse_constant=_no_number,
            object_pairs_hook=unique_keys,
        )
        if not num_lists and _openings(text) > _MAX_DEPTH:
            _check_depth(value)
    except RecursionError:
        raise InputError(f"{where} (JSON); it is nested deeper than {_MAX_DEPTH} levels.") from None
    except ValueError as fault:
        lines = _lines_with(text, fault.key) if isinstance(fault, DuplicateKeyError) else ""
        raise InputError(f"{where} (JSON); {fault}{lines}.") from None
    return value


def _lines_with(text: str | bytes, key: object) -> str:
    decoded = text if isinstance(text, str) else text.decode(json.detect_encoding(text), "replace")
    forms = [json.dumps(key, ensure_ascii=ascii_only) for ascii_only in (True, False)]
    lines = enumerate(decoded.splitlines(), 1)
    numbers = [str(number) for number, line in lines if any(form in line for form in forms)]
    return f" (lines {', '.join(numbers)})" if numbers else ""


def json_text(content: Mapping[str, Any]) -> str:
    """An object as JSON text with its checksum, for `read_json`."""
    # As it will be read: keys become strings, tuples lists.
    plain = json.loads(json.dumps(dict(content), allow_nan=False))
    return json.dumps(plain | {CHECKSUM: _checksum(plain)}, indent=1) + "\n"


def check_type(value: object, kind: Any, where: str) -> None:
    """Raise InputError, beginning with `where` and the key, unless a value has a type as in `read_json`.

    An integer is accepted as a float, a list as a tuple.
    """
    if (fault := _type_fault(value, kind, "")) is not None:
        key, expected, found = fault
        place = f"{where}: {key.removeprefix('.')}" if key else where
        shown = repr(found)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        raise InputError(f"{place}: expected {expected}, found {shown} ({type(found).__name__}).")


_Fault = tuple[str, str, object]


def _type_fault(value: object, kind: Any, key: str) -> _Fault | None:
    """Key, expected type and found value; None if the value has the type."""
    origin, args = get_origin(kind), get_args(kind)
    wrong: _Fault = (key, _name(kind), value)
    if kind in (Any, object):
        return None
    if origin in (Union, UnionType):
        faults = [_type_fault(value, each, key) for each in args]
        inner = [fault for fault in faults if fault is not None and fault[0] != key]
        return None if None in faults else next(iter(inner), wrong)
    if origin is Literal:
        return None if value in args else wrong
    if is_typeddict(kind):
        if not isinstance(value, dict):
            return (key, "an object", value)
        for name in sorted(kind.__required_keys__ - value.keys()):
            return (f"{key}.{name}", "a value", None)
        hints = get_type_hints(kind)
        entries = [(f"{key}.{name}", value[name], hint) for name, hint in hints.items() if name in value]
    elif origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return wrong
        each = args[:1] * len(value) if origin is list or args[1:] == (...,) else args
        if len(each) != len(value):
            return wrong
        entries = [
            (f"{key}[{n}]", entry, hint) for n, (entry, hint) in enumerate(zip(value, each, strict=True))
        ]
    elif origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            return wrong
        entries = [(f"{key}.{name}", entry, args[1]) for name, entry in value.items()]
    else:
        return None if is_plain(value, kind) else wrong
    return next((fault for entry in entries if (fault := _type_fault(entry[1], entry[2], entry[0]))), None)


def is_plain(value: object, kind: Any) -> bool:
    """Whether a value has a builtin type; an integer may stand for a float, a bool for neither."""
    if kind is None or kind is type(None):
        return value is None
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _name(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_name, get_args(kind)))
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    names = {
        int: "an integer",
        float: "a number",
        str: "a string",
        bool: "true or false",
        type(None): "null",
    }
    plain = {list: "a list", tuple: "a list", dict: "an object", Mapping: "an object"}
    return names.get(kind) or plain.get(get_origin(kind) or kind) or str(getattr(kind, "__name__", kind))


def _checksum(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _count(text: str | bytes, mark: str) -> int:
    return text.count(mark.encode()) if isinstance(text, bytes) else text.count(mark)


def _openings(text: str | bytes) -> int:
    return _count(text, "[") + _count(text, "{")


def _check_size(text: str | bytes, num_lists: int) -> None:
    # Upper bounds: brackets and commas may occur in strings.
    if _openings(text) > max(_MAX_CONTAINERS, 2 * num_lists):
        raise ValueError(f"it has more than {_MAX_CONTAINERS:,} lists and objects")
    if num_lists:
        return
    if len(text) > _MAX_BYTES or _count(text, ",") > _MAX_VALUES:
        raise ValueError(f"it has more than {_MAX_BYTES >> 20} MiB, or more than {_MAX_VALUES:,} values")


def _check_depth(value: object) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH + 1):
        level = [
            child
            for each in level
            if isinstance(each, (dict, list))
            for child in (each.values() if isinstance(each, dict) else each)
        ]
    if level:
        raise RecursionError


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:_SHOWN]} is too large")
    return value


def _short(text: str) -> int:
    if len(text.lstrip("-")) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits is too large")
    return int(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")
