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
from recognition.gallery.database import Tables, create, transaction
from runtime.errors import InputError
from runtime.escaping import escaped


def open_gallery(path: Path) -> Gallery:
    """Read a whole gallery.

    Raises:
        InputError: no such gallery, a damaged one, or another file.
    """
    with transaction(path) as gallery:
        info = gallery.info
        ids, names, norms, files = gallery.subjects()
        descriptors = gallery.descriptors(ids)
        gallery.check_total()
    columns = tuple(names), descriptors, np.array(norms, np.float32), tuple(files)
    try:
        return Gallery(*columns, info.fingerprint, info.reading)
    except InputError as fault:
        raise InputError(f"{path}: {fault}") from None


def gallery_info(path: Path) -> GalleryInfo:
    """Read what holds for all subjects, at constant cost. Raises InputError as `open_gallery`."""
    with transaction(path) as gallery:
        return gallery.info


def list_subjects(path: Path) -> tuple[GalleryInfo, list[Subject]]:
    """Read all subjects without their descriptors. Raises InputError as `open_gallery`."""
    with transaction(path) as gallery:
        return gallery.info, [*map(Subject, *gallery.subjects()[1:])]


def enrolled_names(path: Path, names: Sequence[str]) -> list[str]:
    """Those of `names` that are enrolled, sorted; the cost does not depend on the size of the gallery."""
    with transaction(path) as gallery:
        return sorted(name for name in names if gallery.number_of(name) is not None)


# ------------------------------------------------------------------------------------------- writing


def enroll(path: Path, subjects: Gallery, *, replace: bool = False) -> int:
    """Add subjects to a gallery, which is created if needed, and return how many it holds then.

    Other writers are waited for. A process that is killed leaves the gallery as it was or as it is after.

    Raises:
        InputError: names that are enrolled already (without `replace`), another model, another way of reading
            faces, descriptors of another size, or as `open_gallery`; the gallery is as it was.
        OSError: the disk is full; the gallery is as it was.
    """
    create(path)
    with transaction(path, write=True) as tables:
        return add(tables, subjects, path, replace=replace)


def add(tables: Tables, subjects: Gallery, path: Path, *, replace: bool) -> int:
    """`enroll` within a transaction on the gallery at `path`, which may add several galleries."""
    info, added = tables.info, subjects.info
    info.check_model(path, added.fingerprint)
    info.check_reading(path, added.reading)
    if info.count and info.dimension != added.dimension:
        raise InputError(
            f"{path}: holds descriptors of {info.dimension} values, the new ones have {added.dimension}. Use "
            "the model of this gallery, or another gallery."
        )
    there = [name for name in subjects.names if tables.number_of(name) is not None]
    if there and not replace:
        raise already_enrolled(path, there)
    for name in there:
        tables.delete(name)
    count = info.count - len(there) + len(subjects)
    reading = added.reading
    if count > len(subjects):
        # What is not known of some is not known of all.
        reading = {**reading, **info.reading} if reading and info.reading else {}
    tables.insert(subjects)
    tables.set_info(GalleryInfo(added.fingerprint, reading, added.dimension, count))
    return count


def already_enrolled(path: Path, names: Sequence[str]) -> InputError:
    """The error for names that a gallery has already."""
    return InputError(
        f"{path}: {are_names(names)} already enrolled. Nothing was changed. Add --replace to replace them, "
        "remove them first, or give the new subjects other names."
    )


def remove(path: Path, names: Sequence[str]) -> int:
    """Remove subjects from a gallery and return how many it holds then.

    Their descriptors are overwritten in the file.

    Raises:
        InputError: names that are not enrolled, or as `open_gallery`; nothing was removed then.
    """
    wanted = {normal(escaped(name)): name for name in names}
    with transaction(path, write=True) as gallery:
        if missing := [name for name in wanted.values() if gallery.number_of(name) is None]:
            raise _not_enrolled(path, missing)
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
        raise InputError("NEW_NAME is empty. Give the subject a name.")
    with transaction(path, write=True) as gallery:
        number, taken = gallery.number_of(old), gallery.number_of(new)
        if number is None:
            raise _not_enrolled(path, [old])
        if taken not in (None, number):
            raise InputError(
                f"{path}: another subject is named {new!r}. Nothing was changed. Choose another name."
            )
        gallery.rename(number, new)
        gallery.set_info(gallery.info)


def _not_enrolled(path: Path, names: Sequence[str]) -> InputError:
    return InputError(
        f"{path}: {are_names(names)} not enrolled. Nothing was changed. 'inference.py list' shows the "
        "enrolled subjects; names are case-sensitive."
    )
