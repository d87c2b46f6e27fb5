"""JSON from anywhere: what is refused, that the message names the key, and that a flipped bit is told."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest

from runtime.errors import InputError
from runtime.json_files import check_type, json_text, parse_json, read_json


class Record(TypedDict):
    count: int
    names: list[str]
    rates: Mapping[str, float | None]


GOOD: Record = {"count": 3, "names": ["Ann", "Çağla\ud800"], "rates": {"a": 0.1, "b": None, "c": 2}}


def test_written_data_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json_text({**GOOD, "rates": {"a": 0.1, "b": None, "c": 2}}))
    assert read_json(path, Record, "a record") == (GOOD, True)
    path.write_text("\ufeff" + json.dumps(GOOD), encoding="utf-8")
    assert read_json(path, Record, "a record") == (GOOD, False)


def test_no_flipped_bit_is_read_as_something_else(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    whole = json_text(GOOD).encode()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.Random(place).randrange(8)
        path.write_bytes(damaged)
        try:
            found, has_checksum = read_json(path, Record, "a record")
        except InputError as fault:
            assert str(path) in str(fault)  # noqa: PT017 (some flips are told, others change nothing)
            continue
        # White space; or the name of the checksum, so that a format which has one refuses the file.
        assert found == GOOD or not has_checksum


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[1,]", "nul", "NaN", "[1e999]", "-Infinity", "[" * 100_000, '{"a":' * 5000),
        *("[" * 40 + "]" * 40, "1" + "0" * 400, "\x00", "\ud800".encode("utf-8", "surrogatepass") + b"\xff"),
        *("[" + "[],[" * 600_000 + "]", "[" + "1," * 4_100_000 + "1]"),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_invalid_or_too_large_json_is_one_sentence(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as fault:
        read_json(path, Any, "a record")
    assert str(path) in str(fault.value)
    assert len(str(fault.value)) < 400


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.json"):
        read_json(tmp_path / "gone.json", Any, "a record")
    with pytest.raises(InputError, match=str(tmp_path)):
        read_json(tmp_path, Any, "a record")


@pytest.mark.parametrize(
    ("value", "kind", "key"),
    [
        ({**GOOD, "count": True}, Record, "count"),
        ({**GOOD, "count": 3.0}, Record, "count"),
        ({**GOOD, "names": "Ann"}, Record, "names"),
        ({**GOOD, "names": ["Ann", 3]}, Record, "names[1]"),
        ({**GOOD, "rates": {"b": "x"}}, Record, "rates.b"),
        ({"count": 3, "names": []}, Record, "rates"),
        ([], Record, "an object"),
        ("c", Literal["a", "b"], "'a' or 'b'"),
        ([1, 2, 3], tuple[int, int], "a list"),
        ({"a": {"b": [1, None]}}, dict[str, dict[str, list[int]]], "a.b[1]"),
        ({1: 2}, dict[str, int], "an object"),
    ],
)
def test_wrong_type_is_reported_by_its_key(value: object, kind: Any, key: str) -> None:
    with pytest.raises(InputError) as fault:
        check_type(value, kind, "file.json")
    assert str(fault.value).startswith("file.json: ")
    assert key in str(fault.value)


def test_right_types_pass() -> None:
    check_type({**GOOD, "more": object()}, Record, "")
    check_type(((1, 2), [3, 4]), list[tuple[int, ...]], "")
    check_type(None, int | None, "")
    assert parse_json("[1, 2.5]", "") == [1, 2.5]


@pytest.mark.parametrize("key", ["é", '\\"', "\\u00e9"])
def test_the_lines_of_a_duplicate_key_are_named(key: str) -> None:
    with pytest.raises(InputError, match="lines 2, 3"):
        parse_json(f'{{\n"{key}": 1,\n"{key}": 2}}', "a.json: expected an object")
