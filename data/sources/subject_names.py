"""Names of people: when two are the same, and lists of them, one a line.

Names are the same when they are equal letter by letter, in upper and lower case, after Unicode's normal form
NFC: macOS writes an accent as a letter of its own (NFD), Linux and Windows keep what they are given.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import InputError

_SHOWN = 3


def normal(name: str) -> str:
    """The form in which names are compared."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def read_names(path: Path) -> frozenset[str]:
    """Names of subjects, one a line, in the form in which they are compared.

    Raises:
        InputError: the file cannot be read, or names nobody.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(
            f"{path}: cannot be read ({fault}). Expected names of subjects, one a line."
        ) from None
    names = frozenset(normal(line.strip()) for line in lines) - {""}
    if not names:
        raise InputError(f"{path}: is empty. Expected names of subjects, one a line.")
    return names


@dataclass(frozen=True)
class Matches:
    """`subjects`: those that a list names, as the data spell them; `unknown`: names of the list that are no
    subject's, sorted.
    """

    subjects: frozenset[str]
    unknown: tuple[str, ...]


def match_names(listed: Collection[str], subjects: Iterable[str], where: str, data: str) -> Matches:
    """Finds the people of a list in the data.

    Args:
        listed: from `read_names`.
        subjects: names in the data.
        where: what messages call the list, such as '--exclude_subjects FILE'.
        data: what messages call the data.

    Raises:
        InputError: the list names none of the subjects.
    """
    there = list(subjects)
    found = frozenset(subject for subject in there if normal(subject) in listed)
    unknown = tuple(sorted(set(listed) - {normal(subject) for subject in found}))
    if not found:
        raise InputError(
            f"{where}: none of its {len(listed):,} names ({_first(unknown)}) is among the {len(there):,} "
            f"subjects of {data} ({_first(there)}).{_other_case(unknown, there)} Names have to be equal, in "
            "upper and lower case."
        )
    return Matches(found, unknown)


def unknown_names(matches: Matches, subjects: Iterable[str]) -> str:
    """What is said of names that are no subject's: '', or text to add to a sentence."""
    if not matches.unknown:
        return ""
    text = f"; {len(matches.unknown):,} names are no subjects ({_first(matches.unknown)})"
    return (text + "." + _other_case(matches.unknown, subjects)).rstrip(".")


def same_names(one: Iterable[str], other: Iterable[str]) -> list[str]:
    """The names of `one` that are in `other` too, sorted."""
    there = {normal(name) for name in other}
    return sorted(name for name in one if normal(name) in there)


def check_distinct(names: Iterable[str], where: str) -> None:
    """Raises InputError where two names of `where` are the same though their bytes differ."""
    seen: dict[str, str] = {}
    for name in names:
        if not name.isascii() and seen.setdefault(normal(name), name) != name:
            raise InputError(
                f"{where}: {normal(name)!r} stands there twice, with its accents written as NFC and as NFD. "
                "It is one person: join the two folders."
            )


def check_one_line(names: Iterable[str], where: str) -> None:
    """Raises InputError for names of `where` that a list of names, one a line, cannot hold."""
    broken = [name for name in names if name.splitlines() != [name]]
    if broken:
        raise InputError(
            f"{where}: the name {broken[0]!r} holds a line break ({len(broken):,} such), and lists of names "
            "have one a line. Rename the folder."
        )


def _other_case(unknown: Iterable[str], subjects: Iterable[str]) -> str:
    folded = {normal(subject).casefold(): subject for subject in subjects}
    alike = [f"{name} and {folded[name.casefold()]}" for name in unknown if name.casefold() in folded]
    return f" In other case {len(alike):,} would be: {_first(alike)}." if alike else ""


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
