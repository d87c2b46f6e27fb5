"""Image folders and packs: order, decoding, the kept list, selections."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import data.sources.face_source
import data.sources.folder_index
import data.sources.image_stamps
from data.sources.decoding import decode_face
from data.sources.face_source import ImageFolder, RecordIOSource, open_source, select
from data.sources.fingerprint import fingerprint
from data.sources.subject_index import SubjectIndex
from runtime.array_files import write_npz
from runtime.errors import InputError

LONG_AGO_NS = 1_600_000_000_000_000_000


def encoded(
    colour_rgb: tuple[int, int, int] = (200, 120, 40), suffix: str = ".png", size: int = 112
) -> bytes:
    pixels = np.full((size, size, 3), colour_rgb[::-1], np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def write_folder(root: Path, subjects: dict[str, list[str]], *, settled: bool = True) -> Path:
    for number, (subject, names) in enumerate(subjects.items()):
        (root / subject).mkdir(parents=True)
        for name in names:
            (root / subject / name).write_bytes(encoded((10 * number, len(name), 40), Path(name).suffix))
    if settled:
        settle(root)
    return root


def settle(root: Path) -> None:
    """Makes the folders look unchanged for long: a fresh folder's list is not trusted."""
    for folder in root.iterdir():
        if folder.is_dir():
            os.utime(folder, ns=(LONG_AGO_NS, LONG_AGO_NS))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(
        tmp_path / "imgs",
        {"10": ["100.jpg", "99.jpg"], "2": ["7.png"], "1": ["1.jpg", "10.jpg", "2.JPG"]},
    )


@pytest.fixture
def no_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path, skipped: object) -> list[str]:
        raise AssertionError(f"{folder} was listed again")

    monkeypatch.setattr(data.sources.folder_index, "_image_names", refuse)


class FakeReader:
    def __init__(self, payloads: dict[int, bytes]) -> None:
        self.payloads = payloads

    def read(self, key: int) -> tuple[None, bytes]:
        return None, self.payloads[key]


class FakePack:
    notes = ()

    def __init__(self, labels_of_keys: dict[int, int]) -> None:
        self.keys = np.array(list(labels_of_keys), np.int64)
        self.labels = np.array(list(labels_of_keys.values()), np.int64)
        self.reader = FakeReader({key: encoded((key % 256, 0, 0)) for key in labels_of_keys})


def test_rows_are_in_the_published_order(root: Path) -> None:
    source = ImageFolder(root)
    published = [Path(folder, name) for folder, _, names in sorted(os.walk(root)) for name in sorted(names)]
    published = [path for path in published if path.suffix != ".npz"]
    assert [source.path(row) for row in range(len(source))] == published
    assert source.subjects == ["1", "10", "2"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 2]


def test_only_images_in_subject_folders_count(root: Path) -> None:
    before = len(ImageFolder(root))
    (root / "1" / ".2.jpg.part.jpg").write_bytes(b"")
    (root / "1" / "notes.txt").write_text("")
    (root / "1" / "folder.jpg").mkdir()
    (root / ".hidden").mkdir()
    (root / ".hidden" / "1.jpg").write_bytes(encoded())
    (root / "without images").mkdir()
    source = ImageFolder(root)
    assert len(source) == before
    assert source.subjects == ["1", "10", "2"]


def test_colours_are_true_and_swapped_on_request(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(encoded((250, 100, 5)))
    assert ImageFolder(tmp_path).image(0)[50, 50].tolist() == [250, 100, 5]
    swapped = open_source(tmp_path, swap_color_channel=True).image(0)
    assert swapped[50, 50].tolist() == [5, 100, 250]
    assert swapped.shape == (112, 112, 3)
    assert swapped.dtype == np.uint8


def test_grey_images_get_three_channels() -> None:
    grey = cv2.imencode(".jpg", np.full((112, 112), 77, np.uint8))[1].tobytes()
    image = decode_face(grey, "grey.jpg")
    assert image.shape == (112, 112, 3)
    assert (image == image[..., :1]).all()


@pytest.mark.parametrize("content", [b"", b"no image", encoded()[:40]])
def test_undecodable_image_is_named(root: Path, content: bytes) -> None:
    (root / "2" / "7.png").write_bytes(content)
    source = ImageFolder(root)
    with pytest.raises(InputError, match=r"2/7\.png: .* cannot be decoded"):
        source.image(5)


def test_wrong_size_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"x\.png: the image is 96 x 96 pixels, expected 112 x 112. Align"):
        decode_face(encoded(size=96), "x.png")


def test_vanished_image_is_named(root: Path) -> None:
    source = ImageFolder(root)
    source.path(0).unlink()
    with pytest.raises(InputError, match=r"1/1\.jpg: cannot be read"):
        source.image(0)


def test_errors_of_a_folder_suggest_the_right_one(tmp_path: Path) -> None:
    cases = {"gone": "no such folder", "file": "is a file", "empty": "no subject folders"}
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            ImageFolder(tmp_path / name)
    write_folder(tmp_path / "emore" / "imgs", {"7": ["1.jpg"]})
    write_folder(tmp_path / "above" / "data" / "people", {"7": ["1.jpg"]})
    with pytest.raises(InputError, match=r"did you mean .*above/data\?"):
        ImageFolder(tmp_path / "above")
    with pytest.raises(InputError, match="did you mean its parent"):
        ImageFolder(tmp_path / "emore" / "imgs" / "7")
    (tmp_path / "empty" / "train.rec").write_bytes(b"")
    with pytest.raises(InputError, match="--use_mxrecord"):
        ImageFolder(tmp_path / "empty")


def test_folder_is_listed_once(root: Path, request: pytest.FixtureRequest) -> None:
    first = ImageFolder(root)
    assert [path.name for path in (root / ".face_index").iterdir()] == ["listing.npz"]
    request.getfixturevalue("no_listing")
    second = ImageFolder(root)
    assert [first.path(row) for row in range(len(first))] == [second.path(row) for row in range(len(second))]
    assert second.subjects == first.subjects
    assert second.labels.tolist() == first.labels.tolist()


@pytest.mark.parametrize(
    "change", ["add image", "remove image", "add subject", "remove subject", "rename subject"]
)
def test_changed_folder_is_listed_again(root: Path, change: str) -> None:
    before = len(ImageFolder(root))
    if change == "add image":
        (root / "2" / "8.jpg").write_bytes(encoded())
    elif change == "remove image":
        (root / "10" / "99.jpg").unlink()
    elif change == "add subject":
        write_folder(root / "..", {"imgs/3": ["1.jpg"]}, settled=False)
        settle(root)
    elif change == "remove subject":
        (root / "2" / "7.png").unlink()
        (root / "2").rmdir()
    else:
        (root / "2").rename(root / "3")
    expected = before + {"add": 1, "remove": -1, "rename": 0}[change.split()[0]]
    source = ImageFolder(root)
    assert len(source) == expected
    assert all(source.path(row).is_file() for row in range(expected))


def test_listing_of_a_recently_changed_folder_is_not_cached(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "imgs", {"1": ["1.jpg"]}, settled=False)
    ImageFolder(root)
    assert not (root / ".face_index" / "listing.npz").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x93NUMPY"])
def test_broken_cached_listing_is_rebuilt(root: Path, content: bytes) -> None:
    before = len(ImageFolder(root))
    kept = root / ".face_index" / "listing.npz"
    kept.write_bytes(content)
    assert len(ImageFolder(root)) == before
    assert len(kept.read_bytes()) > len(content)


def test_listing_is_cached_elsewhere_for_a_read_only_root(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    (root / ".face_index").write_text("a file: no folder can be made here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = len(ImageFolder(root))
    assert len(list((tmp_path / "cache").rglob("listing.npz"))) == 1
    request.getfixturevalue("no_listing")
    assert len(ImageFolder(root)) == before


def test_folder_is_read_if_no_listing_can_be_cached(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / ".face_index").write_text("")
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(ImageFolder(root)) == 6


def test_sources_travel_to_workers(root: Path) -> None:
    source = select(ImageFolder(root), [5, 3, 0])
    arrived = pickle.loads(pickle.dumps(source))
    assert [arrived.describe(row) for row in range(3)] == [source.describe(row) for row in range(3)]
    assert arrived.labels.tolist() == source.labels.tolist()
    assert (arrived.image(0) == source.image(0)).all()


def test_pack_has_the_rows_of_its_unpacked_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels_of_keys = {1: 2, 2: 10, 10: 2, 9: 2, 100: 10, 99: 10, 5: 0}
    monkeypatch.setattr(data.sources.face_source, "read_face_pack", lambda folder: FakePack(labels_of_keys))
    pack = open_source(tmp_path, use_mxrecord=True)
    names: dict[str, list[str]] = {}
    for key, label in labels_of_keys.items():
        names.setdefault(str(label), []).append(f"{key}.jpg")
    folder = ImageFolder(write_folder(tmp_path / "imgs", names))
    assert pack.subjects == folder.subjects == ["0", "10", "2"]
    assert pack.labels.tolist() == folder.labels.tolist()
    for row in range(len(folder)):
        assert pack.describe(row).endswith(f"key {folder.path(row).stem}")
        assert pack.image(row)[0, 0, 0] == int(folder.path(row).stem)
        folder.path(row).write_bytes(pack.read_bytes(row))
    assert fingerprint(pack) == fingerprint(folder)
    assert fingerprint(select(pack, [0, 4])) == fingerprint(select(folder, [0, 4]))


def test_pack_without_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.sources.face_source, "read_face_pack", lambda folder: FakePack({}))
    with pytest.raises(InputError, match="no images"):
        RecordIOSource(tmp_path)


def test_pack_written_by_mxnet_is_read(shared: Path) -> None:
    folder = shared / "conformance" / "recordio" / "faces112"
    source = RecordIOSource(folder)
    expected = json.loads((folder / "expected.json").read_text())
    assert len(source.subjects) == 3
    assert len(source) <= len(expected)
    assert source.image(0).shape == (112, 112, 3)
    arrived = pickle.loads(pickle.dumps(source))
    assert arrived.read_bytes(3) == source.read_bytes(3)


@given(st.lists(st.integers(0, 10**12), unique=True, min_size=1), st.data())
def test_keys_are_ordered_as_strings(keys: list[int], draw: st.DataObject) -> None:
    labels = draw.draw(st.lists(st.integers(0, 12), min_size=len(keys), max_size=len(keys)))
    order = np.lexsort((*data.sources.face_source._text_order(np.array(keys, np.int64)), labels))
    assert [keys[i] for i in order] == [
        keys[i] for i in sorted(range(len(keys)), key=lambda i: (labels[i], str(keys[i])))
    ]


def test_fingerprint_shows_which_part_of_the_data_differs(tmp_path: Path) -> None:
    subjects = {"a": ["1.png", "22.png"], "b": ["333.png"]}
    original = write_folder(tmp_path / "one", subjects)
    before = fingerprint(ImageFolder(original))

    def differing(root: Path, **options: bool) -> set[str]:
        after = fingerprint(ImageFolder(root, **options))
        return {part for part in before if after[part] != before[part]}

    # Neither a copy with other times nor another name in the same place is other data.
    shutil.copytree(original, tmp_path / "copy", copy_function=shutil.copyfile)
    (tmp_path / "copy" / "a" / "22.png").rename(tmp_path / "copy" / "a" / "5.png")
    assert differing(tmp_path / "copy") == set()
    assert differing(original, swap_color_channel=True) == {"colours"}
    (tmp_path / "copy" / "b").rename(tmp_path / "copy" / "c")
    assert differing(tmp_path / "copy") == {"subjects"}
    (original / "a" / "22.png").rename(original / "b" / "22.png")
    assert differing(original) == {"labels"}
    (original / "b" / "22.png").unlink()
    assert differing(original) == {"labels", "images"}


def replace_in_place(path: Path, content: bytes) -> None:
    """Another image of the same size and times, so that `ls` shows no difference."""
    before = path.stat()
    path.write_bytes(content + bytes(before.st_size - len(content)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_image_that_was_replaced_changes_the_fingerprint_even_with_its_old_time(root: Path) -> None:
    before = ImageFolder(root).stamps()
    replace_in_place(root / "1" / "2.JPG", encoded((1, 2, 3), ".png"))
    after = ImageFolder(root).stamps()
    assert np.flatnonzero(before != after).tolist() == [2]
    (root / "1" / "10.jpg").unlink()
    (root / "1" / "10.jpg").mkdir()
    (root / "1" / "10.jpg" / "x").touch()
    source = select(ImageFolder(root), [4, 0])
    assert source.stamps().tolist() == [int(before[5]), int(before[0])]


def test_unchanged_images_are_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.sources.image_stamps, "_MIN_REMEMBERED", 1)
    # As if the files were older than a step of the file system's clock; their inodes cannot be set back.
    monkeypatch.setattr(data.sources.image_stamps, "TIME_STEP_NS", -(10**18))
    read: list[bytes] = []
    stamp = data.sources.image_stamps.content_stamp

    def counted(content: bytes) -> int:
        read.extend([content] if len(content) > 100 else [])
        return stamp(content)

    monkeypatch.setattr(data.sources.image_stamps, "content_stamp", counted)
    first = ImageFolder(root).stamps(np.array([0, 1]))
    assert len(read) == 2
    stamps = ImageFolder(root).stamps()
    assert len(read) == 6
    assert stamps[:2].tolist() == first.tolist()
    assert ImageFolder(root).stamps().tolist() == stamps.tolist()
    assert len(read) == 6
    replace_in_place(root / "2" / "7.png", encoded((1, 2, 3)))
    changed = ImageFolder(root).stamps()
    assert len(read) == 7
    assert np.flatnonzero(changed != stamps).tolist() == [5]
    # A list that is damaged is made again.
    (root / ".face_index" / "stamps.npz").write_bytes(b"PK")
    assert ImageFolder(root).stamps().tolist() == changed.tolist()
    assert len(read) == 13


def test_recently_changed_files_are_not_cached(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.sources.image_stamps, "_MIN_REMEMBERED", 1)
    ImageFolder(root).stamps()
    assert not (root / ".face_index" / "stamps.npz").exists()


def test_selection_renumbers_its_subjects(root: Path) -> None:
    source = ImageFolder(root)
    chosen = select(source, [5, 1, 0])
    assert chosen.subjects == ["1", "2"]
    assert chosen.labels.tolist() == [1, 0, 0]
    assert [chosen.describe(row) for row in range(3)] == [source.describe(row) for row in (5, 1, 0)]
    again = select(chosen, [2])
    assert again.subjects == ["1"]
    assert again.describe(0) == source.describe(0)


@pytest.mark.parametrize(
    ("rows", "message"), [([0, 6, 9], "2 of 3 .* 6 images"), ([-1], "out of range"), ([], "empty")]
)
def test_selection_outside_of_the_source_is_refused(root: Path, rows: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        select(ImageFolder(root), rows)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_subject_index_equals_a_search(labels: list[int]) -> None:
    array = np.unique(np.array(labels, np.int64), return_inverse=True)[1].reshape(-1)
    index = SubjectIndex(array)
    assert len(index) == array.max() + 1
    for subject in range(len(index)):
        assert index.images_of(subject).tolist() == np.flatnonzero(array == subject).tolist()
        assert np.shares_memory(index.images_of(subject), index.rows)
    assert index.counts().tolist() == np.bincount(array).tolist()


def repacked(path: Path, **changes: NDArray[Any]) -> None:
    """A list with a right checksum, as somebody may have put it beside the data."""
    kept = {name: array for name, array in np.load(path).items() if name != "sha256"}
    write_npz(path, kept | changes)


@pytest.mark.parametrize(
    "name", [b"../../secret.jpg", b"/etc/passwd", b"..", b".", b"", b"a/b.jpg", b"1.jpg\0x.jpg"]
)
def test_cached_listing_names_no_file_outside_of_its_folder(root: Path, name: bytes) -> None:
    before = ImageFolder(root)
    expected = [before.path(row) for row in range(len(before))]
    kept = root / ".face_index" / "listing.npz"
    names = np.load(kept)["names"].tobytes().split(b"\0")
    repacked(kept, names=np.frombuffer(b"\0".join([name, *names[1:]]), np.uint8))
    after = ImageFolder(root)
    assert [after.path(row) for row in range(len(after))] == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": np.array([-1, 1, 5])},
        {"counts": np.array([1, 1])},
        {"counts": np.array([1.0, 1.0, 1.0])},
        {"names": np.zeros(0, np.uint8)},
        {"names": np.array("a")},
        {"stamps": np.array(0)},
        {"notes": np.array("[" * 5000)},
        {"format": np.array([3, 3])},
    ],
    ids=str,
)
def test_cached_listing_of_no_folder_is_rebuilt(root: Path, changes: dict[str, NDArray[Any]]) -> None:
    before = len(ImageFolder(root))
    repacked(root / ".face_index" / "listing.npz", **changes)
    source = ImageFolder(root)
    assert len(source) == before
    assert all(source.path(row).is_file() for row in range(before))


def test_flipped_bit_in_a_cached_listing_is_not_read(root: Path) -> None:
    source = ImageFolder(root)
    expected = [source.path(row) for row in range(len(source))]
    kept = root / ".face_index" / "listing.npz"
    whole = kept.read_bytes()
    for place in range(0, len(whole), 31):
        kept.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        source = ImageFolder(root)
        assert [source.path(row) for row in range(len(source))] == expected
