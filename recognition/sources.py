"""Sets on disk: folders of photos and videos, single photos, single videos."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.sources.image_files import (
    beside_note,
    files_below,
    subfolders,
    subjects_root,
    unpacked_note,
    visible,
)
from runtime.errors import InputError, InputWarning
from runtime.escaping import escaped
from runtime.input_files import kind_of_special


@dataclass(frozen=True)
class SetSource:
    """A folder of photos and videos, a photo, or a video.

    Attributes:
        name: name of the set, `escaped`.
        path: folder or file.
        with_subfolders: whether files in subfolders belong to the set.
    """

    name: str
    path: Path
    with_subfolders: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", escaped(self.name))

    def files(self) -> list[Path]:
        """All files of the set."""
        below = self.with_subfolders and self.path.is_dir()
        return files_below(self.path) if below else files_of(self.path)


def find_sets(paths: Sequence[Path], images_root: Path | None = None) -> list[SetSource]:
    """Find sets and name them by folder or file; parent folders are prepended to make names unique.

    Args:
        paths: one path per set.
        images_root: folder whose subfolders are sets.

    Raises:
        InputError: no set, or paths that are not sets; all in one message.
    """
    faults = [fault for path in paths if (fault := _fault_of(path))]
    found = list(paths)
    if images_root is not None:
        folders = subfolders(subjects_root(images_root)) if images_root.is_dir() else []
        notes = [unpacked_note(images_root), beside_note(subjects_root(images_root))] if folders else []
        for note in filter(None, notes):
            warnings.warn(f"--images_root {images_root}: {note}.", InputWarning, stacklevel=2)
        if not folders:
            faults.append(f"--images_root {images_root}: expected a folder whose subfolders are sets.")
        found += folders
    if not found and not faults:
        faults.append("no set: give folders of photos, images or videos, one for each subject.")
    if faults:
        raise InputError.from_faults(faults)
    return [SetSource(name, path) for name, path in zip(_unique_names(found), found, strict=True)]


def files_of(path: Path) -> list[Path]:
    """Files directly in a folder, sorted by name and including broken links, or the file itself."""
    return [file for file in visible(path) if not file.is_dir()] if path.is_dir() else [path]


def _fault_of(path: Path) -> str | None:
    if not path.exists():
        return f"{path}: no such folder, image or video."
    if kind := kind_of_special(path.stat().st_mode):
        return f"{path}: is {kind}, which is not opened. Expected a folder, an image or a video."
    if path.is_dir() and not files_of(path):
        hint = (
            f" Its subfolders contain files: did you mean --images_root {path}? If they all show one "
            "subject, move the photos into this folder."
            if files_below(path)
            else ""
        )
        return f"{path}: there are no photos in this folder.{hint}"
    return None


def _unique_names(paths: Sequence[Path]) -> list[str]:
    """Shortest trailing parts of the paths that are unique; a repeated path is numbered."""
    whole = [Path(os.path.abspath(path)).parts for path in paths]
    names = [parts[-1] for parts in whole]
    for depth in range(2, max((len(parts) for parts in whole), default=1)):
        counts = Counter(names)
        if len(counts) == len(names):
            return names
        names = [
            "/".join(parts[-depth:]) if counts[name] > 1 else name
            for name, parts in zip(names, whole, strict=True)
        ]
    seen: Counter[str] = Counter()
    for number, name in enumerate(names):
        seen[name] += 1
        names[number] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names
