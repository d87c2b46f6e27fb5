"""What of the sets was left out and why, and what was turned: the sentences of all commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from recognition.sets import DescribedSet, EmptySet, Rejected

_SETS_SHOWN = 20
_REASONS_SHOWN = 5
_NAMES_SHOWN = 3


def left_out_text(
    sets: Sequence[DescribedSet], empty: Sequence[EmptySet], *, all_in: str = "inference.py on the set"
) -> str:
    """Lines on what of each set was left out, turned upright, or found in subfolders.

    Args:
        sets: with a face.
        empty: without any.
        all_in: what lists all of it, where a line shows a part.

    Returns:
        Lines with their ends; '' for nothing.
    """
    everything: list[DescribedSet | EmptySet] = [*empty, *sets]
    told = [lines for each in everything if (lines := _lines(each, all_in))]
    text = "".join(f"{line}\n" for lines in told[:_SETS_SHOWN] for line in lines)
    if len(told) > _SETS_SHOWN:
        text += f"left out: files of {len(told) - _SETS_SHOWN:,} more sets; {all_in} lists them.\n"
    return text


def why_nothing(empty: Sequence[EmptySet]) -> str:
    """Why no set has a face: each reason once, with examples."""
    rejected = [each for one in empty for each in _files(one)]
    return _grouped(rejected) if rejected else "they are empty."


def _lines(each: DescribedSet | EmptySet, all_in: str) -> list[str]:
    used = {face.medium for face in each.faces} if isinstance(each, DescribedSet) else set()
    files = _files(each)
    lines = []
    if files:
        total = len(used) + len(files)
        count = f"{len(files):,} of {total:,} files" if used else f"all {total:,} files"
        if total == 1:
            count = "the only file"
        where = "" if each.path.is_file() else f"{count} of {each.name}: "
        lines.append(f"left out: {where}{_grouped(files, all_in)}")
    elif not used:
        lines.append(f"left out: {each.name}: there are no photos or videos in this folder.")
    if partly := [one for one in each.rejected if one.medium in used]:
        lines.append(f"left out: of {each.name}, {_grouped(partly, all_in)}")
    turned = [face for face in each.faces if face.turned] if isinstance(each, DescribedSet) else []
    if isinstance(each, DescribedSet) and turned:
        shown = [f"{face.name} by {face.turned} degrees" for face in turned]
        lines.append(
            f"{each.name}: {len(turned):,} of {len(each.faces):,} faces were upside down or sideways and are "
            f"turned: {_first(shown)}"
        )
    if below := [one for one in _names(each) if "/" in one]:
        folders = list(dict.fromkeys(str(PurePosixPath(one).parent) for one in below))
        total = len(_names(each))
        where = "is in a subfolder and belongs" if len(below) == 1 else "are in subfolders and belong"
        count = "its only file" if total == 1 else f"{len(below):,} of its {total:,} files"
        lines.append(f"{each.name}: {count} {where} to the set: {_first(folders)}")
    return lines


def _names(each: DescribedSet | EmptySet) -> list[str]:
    """All files of a set."""
    faces = {} if isinstance(each, EmptySet) else {face.medium: face.file for face in each.faces}
    return list(dict.fromkeys([*faces.values(), *(one.file or one.name for one in each.rejected)]))


def _files(each: DescribedSet | EmptySet) -> list[Rejected]:
    """One for each file of which nothing is used; of a video the first reason."""
    used = {face.medium for face in each.faces} if isinstance(each, DescribedSet) else set()
    files: dict[str, Rejected] = {}
    for one in each.rejected:
        if one.medium not in used:
            name = one.file or one.name
            files.setdefault(name, Rejected(name, one.reason, name, one.medium))
    return list(files.values())


def _grouped(rejected: Sequence[Rejected], all_in: str = "") -> str:
    """'a.jpg, b.jpg (the file is empty); c.txt (is not an image)'."""
    by_reason: dict[str, list[str]] = {}
    for one in rejected:
        by_reason.setdefault(one.reason.rstrip("."), []).append(one.name)
    most = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    text = "; ".join(f"{_first(names)} ({reason})" for reason, names in most[:_REASONS_SHOWN])
    if more := sum(len(names) for _, names in most[_REASONS_SHOWN:]):
        text += f"; and {more:,} more"
    is_short = more or any(len(names) > _NAMES_SHOWN for names in by_reason.values())
    return f"{text}. {all_in} lists them all." if is_short and all_in else f"{text}."


def _first(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
