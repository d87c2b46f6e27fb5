"""Summary of the files of each set: rejected, rotated, or found in subfolders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from recognition.records import AggregatedSet, EmptySet, FaceRecord, Rejection
from runtime.text import first_lines, listed

_SETS_SHOWN = 20
_REASONS_SHOWN = 5
_NAMES_SHOWN = 3


def rejection_text(
    sets: Sequence[AggregatedSet], empty: Sequence[EmptySet], *, all_in: str = "inference.py on the set"
) -> str:
    """Lines about rejected, rotated and nested files of each set.

    Args:
        sets: with a usable face.
        empty: without any.
        all_in: what lists every file where a line is shortened.

    Returns:
        Lines with line ends; empty if there is nothing to report.
    """
    every: list[AggregatedSet | EmptySet] = [*empty, *sets]
    reports = ["\n".join(lines) for each in every if (lines := _lines(each, all_in))]
    others = "rejected: files of {} more sets; " + f"{all_in} lists them."
    return "".join(f"{report}\n" for report in first_lines(reports, _SETS_SHOWN, others))


def rejection_reasons(empty: Sequence[EmptySet]) -> str:
    """Why no set has a usable face: each reason once, with examples."""
    rejected = [each for one in empty for each in _rejected_files(one)]
    return _grouped(rejected) if rejected else "they are empty."


def _lines(each: AggregatedSet | EmptySet, all_in: str) -> list[str]:
    faces = _faces(each)
    used = {face.medium for face in faces}
    files = _rejected_files(each)
    lines = []
    if files:
        total = len(used) + len(files)
        count = f"{len(files):,} of {total:,} files" if used else f"all {total:,} files"
        if total == 1:
            count = "the only file"
        where = "" if each.path.is_file() else f"{count} of {each.name}: "
        lines.append(f"rejected: {where}{_grouped(files, all_in)}")
    elif not used:
        lines.append(f"rejected: {each.name}: there are no photos or videos in this folder.")
    if partly := [one for one in each.rejected if one.medium in used]:
        lines.append(f"rejected: of {each.name}, {_grouped(partly, all_in)}")
    if rotated := [f"{face.name} by {face.rotation} degrees" for face in faces if face.rotation]:
        lines.append(
            f"{each.name}: {len(rotated):,} of {len(faces):,} faces were upside down or sideways and were "
            f"rotated: {listed(rotated, _NAMES_SHOWN)}"
        )
    names = list(
        dict.fromkeys([*(face.file for face in faces), *(one.file or one.name for one in each.rejected)])
    )
    if nested := [name for name in names if "/" in name]:
        folders = list(dict.fromkeys(str(PurePosixPath(name).parent) for name in nested))
        verb = "is in a subfolder and belongs" if len(nested) == 1 else "are in subfolders and belong"
        count = "its only file" if len(names) == 1 else f"{len(nested):,} of its {len(names):,} files"
        lines.append(f"{each.name}: {count} {verb} to the set: {listed(folders, _NAMES_SHOWN)}")
    return lines


def _faces(each: AggregatedSet | EmptySet) -> list[FaceRecord]:
    return each.faces if isinstance(each, AggregatedSet) else []


def _rejected_files(each: AggregatedSet | EmptySet) -> list[Rejection]:
    """One for each file without any used face; of a video the first reason."""
    used = {face.medium for face in _faces(each)}
    files: dict[str, Rejection] = {}
    for one in each.rejected:
        if one.medium not in used:
            name = one.file or one.name
            files.setdefault(name, Rejection(name, one.reason, name, one.medium))
    return list(files.values())


def _grouped(rejected: Sequence[Rejection], all_in: str = "") -> str:
    """'a.jpg, b.jpg (the file is empty); c.txt (is not an image)'."""
    by_reason: dict[str, list[str]] = {}
    for one in rejected:
        by_reason.setdefault(one.reason.rstrip("."), []).append(one.name)
    most = sorted(by_reason.items(), key=lambda item: -len(item[1]))
    text = "; ".join(f"{listed(names, _NAMES_SHOWN)} ({reason})" for reason, names in most[:_REASONS_SHOWN])
    if more := sum(len(names) for _, names in most[_REASONS_SHOWN:]):
        text += f"; and {more:,} more"
    is_short = more or any(len(names) > _NAMES_SHOWN for names in by_reason.values())
    return f"{text}. {all_in} lists them all." if is_short and all_in else f"{text}."
