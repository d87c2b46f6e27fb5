"""Resolve hf://owner/repo[@revision][/file] with huggingface_hub: its cache, offline mode and tokens.

Cached files are used without asking the hub for updates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from runtime.errors import InputError
from runtime.input_files import sha256_of
from runtime.text import first_line

PREFIX = "hf://"
# Usual names of weights in repositories, the preferred one first; CVLFace's have both.
_USUAL = ("model.safetensors", "pretrained_model/model.pt")
# States the colour order of a CVLFace repository; `weights.layouts` reads it beside the weights.
_CONFIG = "config.json"
# As on the hub, a name begins and ends with a letter or digit, which excludes `.` and `..`.
_NAME = r"\w(?:[\w.-]*\w)?"
_FORM = re.compile(rf"hf://({_NAME}/{_NAME})(?:@({_NAME}))?(?:/(.+))?", re.ASCII)


@dataclass(frozen=True)
class HubSource:
    """The parts of an hf:// source; `file` None: one of the usual names."""

    repo: str
    revision: str | None
    file: str | None


def parse(source: str) -> HubSource:
    """Parse hf://owner/repo[@revision][/file]; InputError for another form, or a path outside it."""
    match = _FORM.fullmatch(source)
    if match is None or ".." in source[: match.end(2) if match[2] else match.end(1)]:
        raise InputError(f"{source}: expected hf://owner/repo, hf://owner/repo@revision, or one with /file.")
    wanted = HubSource(*match.groups())
    if wanted.file and (
        any(part in ("", ".", "..") for part in wanted.file.split("/"))
        or "\\" in wanted.file
        or not wanted.file.isprintable()
    ):
        raise InputError(f"{source}: the file must be a path inside the repository, without '..' or '\\'.")
    return wanted


def cached_file(source: str) -> Path | None:
    """The verified file of an hf:// source in the hub's cache; None where it is not cached.

    Raises:
        InputError: another form of source, or a damaged file.
    """
    wanted = parse(source)
    hub = _library()
    for name in (wanted.file,) if wanted.file else _USUAL:
        try:
            found = hub.try_to_load_from_cache(wanted.repo, name, revision=wanted.revision)
        except ValueError as error:
            raise InputError(f"{source}: is not a valid name on the hub: {error}") from error
        if isinstance(found, str):
            return _verified(source, Path(found))
    return None


def hub_file(source: str) -> Path:
    """The file of an hf:// source, downloaded into the hub's cache if needed.

    Raises:
        InputError: another form of source, huggingface_hub is not installed, or no such file.
    """
    if (there := cached_file(source)) is not None:
        return there
    wanted = parse(source)
    for name in (wanted.file,) if wanted.file else _USUAL:
        if (found := _downloaded(source, wanted, name)) is not None:
            # Best effort: not every repository has one.
            _downloaded(source, wanted, _CONFIG)
            return _verified(source, found)
    looked = wanted.file or " nor ".join(_USUAL)
    raise InputError(
        f"{source}: contains no {looked}. Name the file: hf://{wanted.repo}/FILE (a .safetensors, .pt, "
        ".pth, .ckpt or .onnx file)."
    )


def _downloaded(source: str, wanted: HubSource, name: str) -> Path | None:
    """Download a file; None where the repository has none of that name."""
    hub = _library()
    from huggingface_hub import errors

    try:
        return Path(hub.hf_hub_download(wanted.repo, name, revision=wanted.revision))
    except errors.LocalEntryNotFoundError as error:
        if name == _CONFIG:
            return None
        raise InputError(
            f"{source}: {name} is not in the hub's cache, and the hub cannot be reached (no network, or "
            "HF_HUB_OFFLINE is set). Download it with network access: "
            f"hf download {wanted.repo} {name}"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise InputError(
            f"{source}: the repository is gated. Accept the terms on its page, then "
            "log in: hf auth login (or set HF_TOKEN)."
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise InputError(
            f"{source}: the hub has no such repository or revision, or it is private: hf auth login"
        ) from error
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise InputError(
            f"{source}: {name} cannot be downloaded from the hub: {first_line(error)}"
        ) from error


def _verified(source: str, path: Path) -> Path:
    """Verify a cached file: the cache names large files by their SHA-256."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        status = blob.stat()
        if _digest(blob, status.st_size, status.st_mtime_ns) != blob.name:
            raise InputError(
                f"{source}: {blob} differs from the file on the hub ({status.st_size} bytes, another "
                "SHA-256). The download is incomplete or the disk is damaged: remove it and the link "
                f"{path}, and download it again."
            )
    return path


@lru_cache(maxsize=32)
def _digest(path: Path, size: int, changed: int) -> str:
    return sha256_of(path)


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(
            "hf:// sources need huggingface_hub, which is not installed: pip install huggingface_hub"
        ) from error
    return huggingface_hub
