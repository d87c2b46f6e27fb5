"""Entries of the catalogue -> files on this machine: asked for by name, with progress, resumed, checked.

An interrupted download stays beside its place as NAME.part and goes on from there; what stands under the name
itself is whole.
"""

from __future__ import annotations

import http.client
import shutil
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from runtime.errors import InputError
from runtime.files import atomic_path, private_folder
from runtime.input_files import sha256_of
from runtime.output_checks import require_free_space
from runtime.progress import progress_bar
from weights.catalogue import CATALOGUE, Entry, fetched_path
from weights.hub import PREFIX, hub_file
from weights.reading import what_it_may_be

_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 30
_TRIES = 4
_AGENT = {"User-Agent": "facecoresetnet"}
# What a connection that breaks is seen as; a full disk is none of them.
_BROKEN = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)


def entry_named(name: str) -> Entry:
    """The catalogue's entry; InputError lists the names."""
    if name not in CATALOGUE:
        raise InputError(f"{name!r} is not in the catalogue. There are: {', '.join(CATALOGUE)}.")
    return CATALOGUE[name]


def fetch(entry: Entry, out: Path | None = None, *, pause: float = 2.0) -> Path:
    """Downloads an entry unless it is there; gives its file.

    Args:
        entry: of the catalogue.
        out: a file to write instead of the cache's own place.
        pause: seconds before a broken connection is tried again; doubled each time.

    Raises:
        InputError: the server refuses, the connection breaks again and again, or what came is not the file
            that the catalogue describes.
    """
    if entry.source.startswith(PREFIX):
        return _copied(hub_file(entry.source), out)
    target = out or fetched_path(entry)
    if target.is_file():
        _check(entry, target, "Remove it, and fetch it again.")
        return target
    partial = target.with_name(f"{target.name}.part")
    private_folder(target.parent)
    _download(entry, partial, pause)
    try:
        _check(entry, partial, "The catalogue's entry may be out of date; nothing was kept.")
    except InputError:
        partial.unlink()
        raise
    partial.replace(target)
    return target


def _download(entry: Entry, partial: Path, pause: float) -> None:
    """Fills `partial`, going on from what it has; a connection that breaks is tried again."""
    for left in reversed(range(_TRIES)):
        try:
            _receive(entry, partial)
            return
        except _BROKEN as error:
            if (final := _told(entry, partial, error)) is not None:
                raise InputError(final) from error
            if left == 0:
                kept = partial.stat().st_size if partial.exists() else 0
                raise InputError(
                    f"{entry.name}: the connection broke {_TRIES} times ({error}); {kept:,} bytes are kept "
                    f"in {partial}. Run the command again; it goes on from there."
                ) from error
        time.sleep(pause)
        pause *= 2


def _told(entry: Entry, partial: Path, error: Exception) -> str | None:
    """What a person is told of an answer that no second try will mend; None for the others."""
    if not isinstance(error, urllib.error.HTTPError) or error.code >= 500:
        return None
    if error.code == 416:
        partial.unlink(missing_ok=True)
        return (
            f"{entry.name}: what was kept of it does not fit the file on the server; run the command again."
        )
    return (
        f"{entry.name}: the server answers {error.code} {error.reason}. The file may have moved; look at "
        f"{entry.page}, fetch it in a browser and give its path."
    )


def _receive(entry: Entry, partial: Path) -> None:
    version = partial.with_name(f"{partial.name}.etag")
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(entry.source, headers=dict(_AGENT))
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version.exists():
            # Else the end of a new file could be put behind the beginning of an old one.
            request.add_header("If-Range", version.read_text(encoding="utf-8"))
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:
        if start and answer.status != 206:
            # The server sends the whole file again.
            start = 0
        tag = answer.headers.get("ETag") or ""
        if tag.startswith('"'):
            version.write_text(tag, encoding="utf-8")
        length = answer.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        if total is not None:
            require_free_space(partial.parent, total - start)
        bar = progress_bar(
            total=total, initial=start, desc=entry.name, unit="B", unit_scale=True, mininterval=1
        )
        with bar, partial.open("r+b" if start else "wb") as stream:
            stream.seek(start)
            while block := answer.read(_BLOCK):
                stream.write(block)
                bar.update(len(block))
            stream.truncate()
    size = partial.stat().st_size
    if total is not None and size < total:
        raise ConnectionError(f"{size:,} of {total:,} bytes came")
    version.unlink(missing_ok=True)


def _check(entry: Entry, path: Path, advice: str) -> None:
    """Size and SHA-256 where the catalogue has them, and that it is no web page."""
    size = path.stat().st_size
    faults = []
    if entry.size is not None and size != entry.size:
        faults.append(f"has {size:,} bytes, and the catalogue says {entry.size:,}")
    if entry.sha256 is not None and (found := sha256_of(path)) != entry.sha256:
        faults.append(f"has the SHA-256 {found}, and the catalogue says {entry.sha256}")
    if faults:
        raise InputError(f"{entry.name}: {path} {'; it '.join(faults)}. {advice}")
    with path.open("rb") as stream:
        page = stream.read(64).lstrip().startswith(b"<")
    if page or size == 0:
        raise InputError(
            f"{entry.name}: {what_it_may_be(path)} Its page: {entry.page}; fetch it there, give its path."
        )


def _copied(file: Path, out: Path | None) -> Path:
    if out is None:
        return file
    with atomic_path(out) as temporary:
        shutil.copyfile(file, temporary)
    return out
