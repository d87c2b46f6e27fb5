"""Recognise image files, videos, system files and subject folders."""

from __future__ import annotations

import os
from pathlib import Path

from data.sources.decoding import HEIF_BRANDS, is_image
from runtime.text import listed

# Read as images without inspecting the content.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".avif", ".jp2", ".j2k", ".gif"),
    *(".ppm", ".pgm", ".pnm", ".tif", ".tiff"),
)
# Never images. Whether a file is a video is decided by its content.
VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".asf", ".3gp", ".3g2"),
    *(".ts", ".mts", ".m2ts", ".flv", ".ogv", ".vob", ".mxf", ".rm"),
)
# (offset, bytes) of video containers. Text formats are excluded: FFmpeg would follow URLs in a playlist.
_VIDEO_STARTS = (
    *((0, start) for start in (b"\x1aE\xdf\xa3", b"FLV\x01", b"0&\xb2u\x8ef\xcf\x11", b"OggS", b".RMF")),
    *(
        (0, start)
        for start in (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x06\x0e+4", b"DKIF", b"YUV4MPEG2 ")
    ),
    *((4, box) for box in (b"moov", b"mdat", b"wide", b"free", b"skip")),
)
_STILL_BRANDS = (b"avif", b"avis", *HEIF_BRANDS)
# Sync byte at the start of each packet of an MPEG transport stream.
_TS_SYNC, _TS_PACKETS = 0x47, ((0, 188), (4, 192))
_HEAD_BYTES = 1024
# Photos of phones, reported as unsupported.
HEIF_SUFFIXES = (".heic", ".heif", ".hif")
# Annotations beside images, possibly millions: never opened.
_ANNOTATION_SUFFIXES = (
    *(".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".pts", ".mat"),
    *(".npy", ".npz", ".pkl", ".pt", ".zip", ".html"),
)
# Files of macOS, Windows, Synology and QNAP, in lower case. All hidden files are ignored too.
_LEFTOVERS = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "lost+found"),
        *("$recycle.bin", "system volume information", "@eadir", "#recycle", "#snapshot", "@recycle"),
        *("@recently-snapshot", "@__thumb"),
    )
)
_LEFTOVER_ENDS = ("@synoeastream", "@synoresource")

# `convert.py --rec_path` unpacks the images of train.rec to IMAGES, and each pair set to a folder with PAIRS.
IMAGES = "imgs"
PAIRS = "pairs.csv"


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is hidden or created by an operating system."""
    lower = name.lower()
    return lower.startswith(".") or lower in _LEFTOVERS or lower.endswith(_LEFTOVER_ENDS)


def is_image_file(path: str) -> bool:
    """Whether a file is an image, by its suffix or else its first bytes. Special files are not opened."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return True
    named_otherwise = suffix in VIDEO_SUFFIXES or suffix in _ANNOTATION_SUFFIXES
    return not named_otherwise and os.path.isfile(path) and is_image(path)


def is_video(path: Path) -> bool:
    """Whether a file is a video, by its first bytes. Special files are not opened."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except OSError:
        return False
    if head[4:8] == b"ftyp":
        return head[8:12] not in _STILL_BRANDS
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI "
    return any(head[at : at + len(start)] == start for at, start in _VIDEO_STARTS) or any(
        len(head) > first + 4 * length and all(head[first + n * length] == _TS_SYNC for n in range(5))
        for first, length in _TS_PACKETS
    )


def visible(folder: Path) -> list[Path]:
    """Files and folders in `folder`, sorted by name, without system files and unpacked pair sets."""
    return sorted(each for each in folder.iterdir() if not is_leftover(each.name) and not is_pair_set(each))


def files_below(folder: Path) -> list[Path]:
    """Files in `folder` and its subfolders, depth first, sorted by name.

    Includes special files, but no system files. Links are followed; each folder is visited once.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            about, inside = place.stat(), visible(place)
        except OSError:
            # The caller reports the error when reading it.
            found.append(place)
            continue
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        found += [each for each in inside if not each.is_dir()]
        waiting += reversed([each for each in inside if each.is_dir()])
    return found


def subfolders(folder: Path) -> list[Path]:
    """The folders among `visible`."""
    return [each for each in visible(folder) if each.is_dir()]


def pair_set_folders(root: Path) -> list[Path]:
    """The unpacked pair sets in `root`."""
    return sorted(each for each in root.iterdir() if is_pair_set(each)) if root.is_dir() else []


def is_pair_set(folder: Path) -> bool:
    """Whether a folder is an unpacked pair set."""
    return (folder / PAIRS).is_file()


def subjects_root(root: Path) -> Path:
    """The folder of subjects: `root/imgs` of an unpacked data set, else `root`.

    `imgs` is used if it contains folders and no folder beside it contains images. (AdaFace's loader always
    appends imgs.)
    """
    inner = root / IMAGES
    try:
        if not inner.is_dir() or not subfolders(inner):
            return root
        return root if any(_holds_image(each) for each in subfolders(root)) else inner
    except OSError:
        return root


def unpacked_note(root: Path) -> str:
    """A sentence on pair sets in `root` and the folder of its subjects; '' if there is nothing to report."""
    beside = ", ".join(folder.name for folder in pair_set_folders(root))
    parts = [f"pair sets are for evaluation and not read: {beside}"] if beside else []
    if (people := subjects_root(root)) != root:
        parts.insert(0, f"the subjects of {root} are in {people}")
    return "; ".join(parts)


def beside_note(root: Path) -> str:
    """A sentence on images and videos beside the subject folders in `root`; '' for none."""
    loose = [each.name for each in visible(root) if not each.is_dir() and _is_medium(each)]
    if not loose:
        return ""
    which = (
        "1 photo or video beside the subject folders is"
        if len(loose) == 1
        else f"{len(loose):,} photos or videos beside the subject folders are"
    )
    return f"{which} skipped: {listed(loose)}. Move each into the folder of its subject"


def _is_medium(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in (*IMAGE_SUFFIXES, *HEIF_SUFFIXES) or is_video(path) or is_image_file(str(path))


def _holds_image(folder: Path) -> bool:
    return any(each.is_file() and is_image_file(str(each)) for each in visible(folder))
