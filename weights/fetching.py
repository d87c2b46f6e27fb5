"""Download entries of the catalogue by name, with progress, resume and verification.

An interrupted download is kept as NAME.part and resumed from there; NAME itself is always complete.

This is our code because pooch 1.9 and torch.hub restart an interrupted download of hundreds of MB, and
huggingface_hub, which resumes, serves the hub alone (`weights.hub` uses it).
"""

from __future__ import annotations

import http.client
import shutil
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

from runtime.errors import InputError, valid_names
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
# Errors of a broken connection; a full disk raises none of them.
_BROKEN = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)


def entry_named(name: str) -> Entry:
    """The entry of a name; InputError lists the names."""
    if name not in CATALOGUE:
        raise InputError(f"{name!r} is not in the catalogue. {valid_names(name, CATALOGUE)}")
    return CATALOGUE[name]


def fetch(entry: Entry, out: Path | None = None, *, pause: float = 2.0) -> Path:
    """Download an entry if needed, and return its file.

    Args:
        entry: of the catalogue.
        out: the file to write; None: in the cache.
        pause: seconds before the first retry; doubled each time.

    Raises:
        InputError: the server refuses, the connection breaks repeatedly, or the file is not the one that the
            catalogue describes.
    """
    if entry.source.startswith(PREFIX):
        return _copied(hub_file(entry.source), out)
    target = out or fetched_path(entry)
    if target.is_file():
        _check(entry, target, "Remove it and download it again.")
        return target
    partial = target.with_name(f"{target.name}.part")
    private_folder(target.parent)
    _download(entry, partial, pause)
    try:
        _check(entry, partial, "The catalogue may be out of date; the file was removed.")
    except InputError:
        partial.unlink()
        raise
    partial.replace(target)
    return target


def _download(entry: Entry, partial: Path, pause: float) -> None:
    """Complete `partial`, with retries."""
    for left in reversed(range(_TRIES)):
        try:
            _receive(entry, partial)
            return
        except _BROKEN as error:
            if (final := _final_fault(entry, partial, error)) is not None:
                raise InputError(final) from error
            if left == 0:
                kept = partial.stat().st_size if partial.exists() else 0
                raise InputError(
                    f"{entry.name}: the connection broke {_TRIES} times ({error}); {kept:,} bytes are kept "
                    f"in {partial}. Run the command again to resume."
                ) from error
        time.sleep(pause)
        pause *= 2


def _final_fault(entry: Entry, partial: Path, error: Exception) -> str | None:
    """The message for an answer that a retry cannot change; None for the others."""
    if not isinstance(error, urllib.error.HTTPError) or error.code >= 500:
        return None
    if error.code == 416:
        partial.unlink(missing_ok=True)
        return f"{entry.name}: the partial download does not match the file on the server. Run it again."
    return (
        f"{entry.name}: the server answers {error.code} {error.reason}. The file may have moved: download it "
        f"from {entry.page} in a browser and pass its path."
    )


def _receive(entry: Entry, partial: Path) -> None:
    version = partial.with_name(f"{partial.name}.etag")
    start = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(entry.source, headers=dict(_AGENT))
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version.exists():
            # Otherwise the end of a new file could follow the beginning of an old one.
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
        raise ConnectionError(f"received {size:,} of {total:,} bytes")
    version.unlink(missing_ok=True)


def _check(entry: Entry, path: Path, advice: str) -> None:
    """Verify size and SHA-256 where the catalogue has them, and that it is not a web page."""
    size = path.stat().st_size
    faults = []
    if entry.size is not None and size != entry.size:
        faults.append(f"has {size:,} bytes, expected {entry.size:,}")
    if entry.sha256 is not None and (found := sha256_of(path)) != entry.sha256:
        faults.append(f"has the SHA-256 {found}, expected {entry.sha256}")
    if faults:
        raise InputError(f"{entry.name}: {path} {'; it '.join(faults)}. {advice}")
    with path.open("rb") as stream:
        page = stream.read(64).lstrip().startswith(b"<")
    if page or size == 0:
        raise InputError(
            f"{entry.name}: {what_it_may_be(path)} Download it from {entry.page} and pass its path."
        )


def _copied(file: Path, out: Path | None) -> Path:
    if out is None:
        return file
    with atomic_path(out) as temporary:
        shutil.copyfile(file, temporary)
    return out
