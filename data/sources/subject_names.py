"""Compare and hash subject names and read lists of them.

Names are equal if their Unicode normal forms NFC are; case matters. (macOS stores accents decomposed, NFD.)
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError
from runtime.text import listed


def normal(name: str) -> str:
    """The NFC form in which names are compared."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def name_hash(text: str) -> int:
    """A 64-bit hash of a name, equal on all machines, for draws that do not depend on other names."""
    return int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), "big")


def read_names(path: Path) -> frozenset[str]:
    """Read subject names, one per line, in NFC.

    Raises:
        InputError: the file cannot be read or is empty.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(
            f"{path}: cannot be read ({fault}). Expected names of subjects, one per line."
        ) from None
    names = frozenset(normal(line.strip()) for line in lines) - {""}
    if not names:
        raise InputError(f"{path}: is empty. Expected names of subjects, one per line.")
    return names


@dataclass(frozen=True)
class Matches:
    """`subjects`: listed subjects, as spelt in the data; `unknown`: sorted names that match no subject."""

    subjects: frozenset[str]
    unknown: tuple[str, ...]


def match_names(names: Collection[str], subjects: Iterable[str], where: str, data: str) -> Matches:
    """Find listed subjects in the data.

    Args:
        names: from `read_names`.
        subjects: names in the data.
        where: the list in messages, such as '--exclude_subjects FILE'.
        data: the data in messages.

    Raises:
        InputError: no listed name matches.
    """
    there = list(subjects)
    found = frozenset(subject for subject in there if normal(subject) in names)
    unknown = tuple(sorted(set(names) - {normal(subject) for subject in found}))
    if not found:
        raise InputError(
            f"{where}: none of its {len(names):,} names ({listed(unknown)}) is among the {len(there):,} "
            f"subjects of {data} ({listed(there)}).{_other_case(unknown, there)} Names are case-sensitive."
        )
    return Matches(found, unknown)


def unknown_names(matches: Matches, subjects: Iterable[str]) -> str:
    """Text on names that match no subject, to append to a sentence; '' if there are none."""
    if not matches.unknown:
        return ""
    text = f"; {len(matches.unknown):,} names match no subject ({listed(matches.unknown)})"
    return (text + "." + _other_case(matches.unknown, subjects)).rstrip(".")


def same_names(one: Iterable[str], other: Iterable[str]) -> list[str]:
    """Sorted names of `one` that are also in `other`."""
    there = {normal(name) for name in other}
    return sorted(name for name in one if normal(name) in there)


def check_distinct(names: Iterable[str], where: str) -> None:
    """Raise InputError if two names differ only in their Unicode normal form."""
    seen: dict[str, str] = {}
    for name in names:
        if not name.isascii() and seen.setdefault(normal(name), name) != name:
            raise InputError(
                f"{where}: {normal(name)!r} occurs twice, with accents in the normal forms NFC and NFD. "
                "Merge the two folders."
            )


def check_one_line(names: Iterable[str], where: str) -> None:
    """Raise InputError for names with line breaks, which a list of names cannot contain."""
    broken = [name for name in names if name.splitlines() != [name]]
    if broken:
        raise InputError(
            f"{where}: the name {broken[0]!r} contains a line break ({len(broken):,} such names), but lists "
            "have one name per line. Rename the folder."
        )


def _other_case(unknown: Iterable[str], subjects: Iterable[str]) -> str:
    folded = {normal(subject).casefold(): subject for subject in subjects}
    alike = [f"{name} and {folded[name.casefold()]}" for name in unknown if name.casefold() in folded]
    return f" {len(alike):,} differ only in case: {listed(alike)}." if alike else ""
