"""Damages the bytes of a file at random, as disks, transfers and attackers do."""

from __future__ import annotations

import re

import numpy as np

_EXTREME_INTEGERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
_EXTREME_TEXTS = (
    b"-1",
    b"0",
    b"1e400",
    b"nan",
    b"-inf",
    b"9" * 30,
    b"1" + b"0" * 400,
    b"null",
    b'"x"',
    b"[]",
)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_LONGEST_BLOCK = 64


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A copy of `content` with one to three kinds of damage, never equal to it.

    Headers are hit as often as the rest: half of the places lie in the first 512 bytes.
    """
    found = content
    while found == content:
        for _ in range(int(rng.integers(1, 4))):
            found = _damage(found, rng)
    return found


def _damage(content: bytes, rng: np.random.Generator) -> bytes:
    if not content:
        return rng.bytes(4)
    start = int(rng.integers(min(len(content), 512) if rng.random() < 0.5 else len(content)))
    length = int(rng.integers(1, _LONGEST_BLOCK))
    block = content[start : start + length]
    match int(rng.integers(9)):
        case 0 | 1:
            flipped = bytes([content[start] ^ 1 << int(rng.integers(8))])
            return content[:start] + flipped + content[start + 1 :]
        case 2:
            return content[:start]
        case 3:
            return content[:start] + content[start + length :]
        case 4:
            return content[:start] + rng.bytes(length) + content[start:]
        case 5:
            return content[:start] + block * 2 + content[start + length :]
        case 6:
            other = int(rng.integers(len(content)))
            return content[:start] + content[other : other + length] + content[start + length :]
        case 7:
            size = int(rng.choice([1, 2, 4, 8]))
            value = int(rng.choice(_EXTREME_INTEGERS)) & (1 << 8 * size) - 1
            order = "little" if rng.random() < 0.5 else "big"
            return content[:start] + value.to_bytes(size, order) + content[start + size :]
        case _:
            return _with_other_number(content, start, rng)


def _with_other_number(content: bytes, start: int, rng: np.random.Generator) -> bytes:
    """Replaces the first number, as text, from `start` on; a number that no format expects stands there."""
    number = _NUMBER.search(content, start)
    if number is None:
        return content
    text = _EXTREME_TEXTS[int(rng.integers(len(_EXTREME_TEXTS)))]
    return content[: number.start()] + text + content[number.end() :]
