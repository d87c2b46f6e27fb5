"""Galleries of enrolled subjects, each in one SQLite file.

Every change is one transaction, whose cost does not depend on the size of the gallery. Readers see the
gallery as it was before a change or as it is after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as with_values
from pathlib import Path

import numpy as np

from data.sources.subject_names import normal
from recognition.gallery.contents import Gallery, GalleryInfo, Subject, are_names
from recognition.gallery.database import create, transaction
from runtime.errors import InputError
from runtime.escaping import escaped


def open_gallery(path: Path) -> Gallery:
    """Read a whole gallery.

    Raises:
        InputError: no such gallery, a damaged one, or another file.
    """
    with transaction(path) as gallery:
        info = gallery.info
        numbers, subjects = gallery.subjects()
        descriptors = gallery.descriptors(numbers)
        gallery.check_total()
    names, norms, files = zip(*subjects, strict=True) if subjects else ((), (), ())
    try:
        return Gallery(names, descriptors, np.array(norms, np.float32), files, info.fingerprint, info.reading)
    except InputError as fault:
        raise InputError(f"{path}: {fault}") from None


def gallery_info(path: Path) -> GalleryInfo:
    """Read what holds for all subjects, at constant cost. Raises InputError as `open_gallery`."""
    with transaction(path) as gallery:
        return gallery.info


def list_subjects(path: Path) -> tuple[GalleryInfo, list[Subject]]:
    """Read all subjects without their descriptors. Raises InputError as `open_gallery`."""
    with transaction(path) as gallery:
        return gallery.info, gallery.subjects()[1]


def enrolled_names(path: Path, names: Sequence[str]) -> list[str]:
    """Those of `names` that are enrolled, sorted; the cost does not depend on the size of the gallery."""
    with transaction(path) as gallery:
        return sorted(name for name in names if gallery.number_of(name) is not None)


# ------------------------------------------------------------------------------------------- writing


def enroll(path: Path, subjects: Gallery, *, replace: bool = False) -> int:
    """Add subjects to a gallery, which is created if needed, and return how many it holds then.

    Other writers are waited for. A process that is killed leaves the gallery as it was or as it is after.

    Args:
        path: of the gallery.
        subjects: to add.
        replace: whether subjects of the same names are replaced.

    Raises:
        InputError: names that are enrolled already (without `replace`), another model, another way of reading
            faces, descriptors of another size, or as `open_gallery`; the gallery is as it was.
        OSError: no room on the disk; the gallery is as it was.
    """
    create(path)
    added = subjects.info
    with transaction(path, write=True) as gallery:
        info = gallery.info
        if info.fingerprint:
            info.check_model(subjects.fingerprint, "the new descriptors")
        info.check_reading(subjects.reading)
        if info.count and info.dimension != added.dimension:
            raise InputError(
                f"gallery: holds descriptors of {info.dimension} values, the new ones have "
                f"{added.dimension}. Use the model that the gallery was made with."
            )
        there = [name for name in subjects.names if gallery.number_of(name) is not None]
        if there and not replace:
            raise InputError(
                f"gallery: {are_names(there)} already enrolled. Nothing was changed. Remove them first, "
                "replace them with --replace, or give the new sets other names."
            )
        for name in there:
            gallery.delete(name)
        count = info.count - len(there) + len(subjects)
        reading = added.reading
        if count > len(subjects):
            # What is not known of some is not known of all.
            reading = {**reading, **info.reading} if reading and info.reading else {}
        gallery.insert(subjects)
        gallery.set_info(GalleryInfo(subjects.fingerprint, reading, added.dimension, count))
    return count


def remove(path: Path, names: Sequence[str]) -> int:
    """Remove subjects from a gallery and return how many it holds then.

    Their descriptors are overwritten in the file.

    Raises:
        InputError: names that are not enrolled, or as `open_gallery`; nothing was removed then.
    """
    wanted = {normal(escaped(name)): name for name in names}
    with transaction(path, write=True) as gallery:
        if missing := [name for name in wanted.values() if gallery.number_of(name) is None]:
            raise _not_enrolled(missing)
        for name in wanted.values():
            gallery.delete(name)
        info = with_values(gallery.info, count=gallery.info.count - len(wanted))
        gallery.set_info(info)
    return info.count


def rename(path: Path, old: str, new: str) -> None:
    """Give an enrolled subject another name.

    Raises:
        InputError: `old` is not enrolled, another subject has the name `new`, `new` is empty, or as
            `open_gallery`; nothing was changed then.
    """
    new = escaped(new)
    if not new:
        raise InputError("gallery: the new name is empty. Give the subject a name.")
    with transaction(path, write=True) as gallery:
        number, taken = gallery.number_of(old), gallery.number_of(new)
        if number is None:
            raise _not_enrolled([old])
        if taken not in (None, number):
            raise InputError(
                f"gallery: {new!r} is already enrolled. Nothing was changed; choose another name."
            )
        gallery.rename(number, new)
        gallery.set_info(gallery.info)


def _not_enrolled(names: Sequence[str]) -> InputError:
    return InputError(f"gallery: {are_names(names)} not enrolled. Nothing was changed; 'list' shows who is.")
