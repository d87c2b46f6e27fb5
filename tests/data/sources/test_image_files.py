"""Which files are images: the same for training, packing, inference and the benchmark builder."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import convert
from data.sources.decoding import decode_face
from data.sources.face_source import ImageFolder
from data.sources.fingerprint import fingerprint
from data.sources.image_files import IMAGE_SUFFIXES, is_image_file, is_leftover, subjects_root
from data.sources.unpacking import pack_folder
from photos.photo_files import decode_photo
from recognition.calibration.labelled_sets import find_labelled
from recognition.sources import files_of, find_sets
from runtime.errors import InputError, InputWarning
from set_benchmark.media import collect_media
from set_benchmark.protocol import read_benchmark_protocol

FORMATS = {
    **{".jpg": "JPEG", ".jfif": "JPEG", ".jpe": "JPEG", ".png": "PNG", ".bmp": "BMP", ".webp": "WEBP"},
    **{".avif": "AVIF", ".jp2": "JPEG2000", ".gif": "GIF", ".ppm": "PPM", ".tif": "TIFF", "": "PNG"},
    ".JPEG": "JPEG",
}
LEFTOVERS = ("._0.jpg", ".DS_Store", "Thumbs.db", "THUMBS.DB", "desktop.ini", "0.jpg@SynoEAStream")
LEFTOVER_FOLDERS = ("@eaDir", "__MACOSX", ".git", "$RECYCLE.BIN", "#recycle", "@Recycle")


def face(number: int) -> np.ndarray:
    """Smooth, so that lossy formats keep it, and different from the others."""
    rng = np.random.default_rng(number)
    return rng.integers(40, 200, (7, 7, 3), np.uint8).repeat(16, axis=0).repeat(16, axis=1)


def encoded(number: int, kind: str) -> bytes:
    stream = io.BytesIO()
    options = {"quality": 90} if kind in ("JPEG", "WEBP", "AVIF") else {}
    Pillow.fromarray(face(number)).save(stream, kind, **options)
    return stream.getvalue()


def write_people(root: Path, people: int = 2) -> Path:
    """Every format once for each person, with leftovers and other files between."""
    for person in range(people):
        folder = root / f"p{person}"
        (folder / "older").mkdir(parents=True)
        (folder / "older" / "0.jpg").write_bytes(encoded(1000 + person, "JPEG"))
        for number, (suffix, kind) in enumerate(FORMATS.items()):
            (folder / f"{number}{suffix}").write_bytes(encoded(100 * person + number, kind))
        for name in LEFTOVERS:
            (folder / name).write_bytes(encoded(0, "JPEG"))
        (folder / "notes.txt").write_text("no image")
        (folder / "clip.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(12))
        (folder / "@eaDir" / "0.jpg").mkdir(parents=True)
        (folder / "@eaDir" / "0.jpg" / "SYNOPHOTO_THUMB_M.jpg").write_bytes(encoded(0, "JPEG"))
    for name in LEFTOVER_FOLDERS:
        (root / name).mkdir()
        (root / name / "0.jpg").write_bytes(encoded(0, "JPEG"))
    (root / "loose.jpg").write_bytes(encoded(0, "JPEG"))
    return root


@pytest.fixture
def people(tmp_path: Path) -> Path:
    return write_people(tmp_path / "people")


def read_by(people: Path) -> dict[str, set[str]]:
    """Names of the images of p0 by who reads them."""
    source = ImageFolder(people)

    def is_read(path: Path) -> bool:
        try:
            return decode_photo(path.read_bytes()).ndim == 3
        except InputError:
            return False

    return {
        "training": {source.path(row).name for row in range(len(source)) if source.labels[row] == 0},
        "inference": {path.name for path in files_of(people / "p0") if is_read(path)},
    }


def test_training_reads_what_inference_reads(people: Path) -> None:
    names = read_by(people)
    assert names["training"] == {f"{number}{suffix}" for number, suffix in enumerate(FORMATS)}
    assert names["inference"] == names["training"]
    assert {suffix.lower() for suffix in FORMATS if suffix} <= set(IMAGE_SUFFIXES)


def test_every_format_has_the_same_pixels_in_training_and_inference(people: Path) -> None:
    source = ImageFolder(people)
    for row in range(len(FORMATS)):
        content = source.read_bytes(row)
        assert (source.image(row) == decode_photo(content)).all()
        number = int(source.path(row).stem)
        assert np.abs(source.image(row).astype(int) - face(number)).mean() < 12, source.path(row)


def test_transparency_and_depth_are_decoded_as_by_inference() -> None:
    layered = Pillow.fromarray(np.dstack([face(1), np.full((112, 112), 90, np.uint8)]))
    deep = Pillow.fromarray(face(2)[..., 0].astype(np.uint16) * 257)
    for image in (layered, deep, Pillow.fromarray(face(3)).convert("CMYK")):
        stream = io.BytesIO()
        image.save(stream, "TIFF")
        assert (decode_face(stream.getvalue(), "x") == decode_photo(stream.getvalue())).all()


def test_system_files_are_neither_subjects_nor_faces(people: Path) -> None:
    assert all(map(is_leftover, (*LEFTOVERS, *LEFTOVER_FOLDERS)))
    assert not any(map(is_leftover, ("anna", "thumbs.jpg", "eaDir", "0.jpg")))
    assert ImageFolder(people).subjects == ["p0", "p1"]
    assert [source.name for source in find_sets([], people)] == ["p0", "p1"]
    found = find_labelled(people, "--images_root", 2)
    assert {each.source.name for each in found} == {"p0", "p0/older", "p1", "p1/older"}


def test_what_is_skipped_is_counted_with_examples(people: Path) -> None:
    said = "\n".join(ImageFolder(people).notes)
    facts = ("2 .txt files", "p0/notes.txt, p1/notes.txt", "2 .heic files", "2 folders within subjects")
    for fact in (*facts, "p0/older", "1 images beside", "loose.jpg"):
        assert fact in said
    assert "SYNO" not in said
    assert "Thumbs" not in said
    notes = ImageFolder(people).notes
    assert notes == ImageFolder(people).notes


def test_cached_listing_gives_the_same(people: Path) -> None:
    for folder in people.iterdir():
        os.utime(folder, ns=(10**18, 10**18))
    first = ImageFolder(people)
    assert (people / ".face_index" / "listing.npz").is_file()
    second = ImageFolder(people)
    assert first.notes == second.notes
    assert fingerprint(first) == fingerprint(second)


def test_pack_holds_what_training_reads(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    convert.convert({"pack": str(people), "out": str(tmp_path / "pack")})
    said = capsys.readouterr().out
    assert f"{2 * len(FORMATS)} images of 2 subjects" in said
    assert "2 .heic files are not read" in said
    assert pack_folder(people, tmp_path / "again")[:2] == (2, 2 * len(FORMATS))


def test_benchmark_builder_reads_the_same_and_reports_the_rest(people: Path, tmp_path: Path) -> None:
    pool = collect_media(
        people,
        read_benchmark_protocol("stills"),
        tmp_path / "work",
        detector=None,
        exclude=frozenset(),
        chosen=sorted,
    )
    names = {medium.name for medium in pool.media} | {again for again, _ in pool.duplicates}
    for person in ("p0", "p1"):
        assert {f"{person}/{number}{suffix}" for number, suffix in enumerate(FORMATS)} <= names
    rejected = {name for name, _ in pool.rejected}
    assert {"p0/notes.txt", "p0/clip.heic"} <= rejected
    assert any("loose.jpg" in reason for _, reason in pool.rejected)
    assert not any("@" in name or "__MACOSX" in name for name in names | rejected)


def test_broken_link_is_reported(people: Path) -> None:
    (people / "p0" / "gone.jpg").symlink_to(people / "nowhere.jpg")
    (people / "p2").symlink_to(people / "nowhere")
    said = "\n".join(ImageFolder(people).notes)
    assert "1 broken links beside the subject folders are not read: p2" in said
    assert "1 broken links are not read: p0/gone.jpg" in said
    assert "p0/gone.jpg" in said
    assert "p2" in said


def test_annotations_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> bool:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr("data.sources.image_files.is_image", refuse)
    assert is_image_file("a.JPG")
    assert not is_image_file("a.txt")
    assert not is_image_file("a.mp4")


def unpacked(root: Path, pair_sets: tuple[str, ...] = ("agedb_30", "lfw")) -> Path:
    """As convert.py --rec_path leaves it: imgs/<subject>, and pair sets with pairs.csv beside it."""
    for person in ("0", "1", "2"):
        (root / "imgs" / person).mkdir(parents=True)
        (root / "imgs" / person / "1.jpg").write_bytes(encoded(int(person), "JPEG"))
    for name in pair_sets:
        (root / name).mkdir()
        (root / name / "pairs.csv").write_text("first,second,mated\n")
        (root / name / "00000_a.jpg").write_bytes(encoded(9, "JPEG"))
    return root


def test_subjects_of_an_unpacked_data_set_are_in_imgs(tmp_path: Path) -> None:
    root = unpacked(tmp_path / "faces_emore")
    source = ImageFolder(root)
    assert source.subjects == ["0", "1", "2"]
    assert source.location == root / "imgs"
    for fact in (str(root / "imgs"), "agedb_30", "lfw"):
        assert fact in source.notes[0]
    assert fingerprint(source) == fingerprint(ImageFolder(root / "imgs"))
    with pytest.warns(InputWarning, match=r"agedb_30, lfw"):
        assert [each.name for each in find_sets([], root)] == ["0", "1", "2"]
    with pytest.warns(InputWarning, match=r"agedb_30, lfw"):
        assert len(find_labelled(root, "--images_root", 2)) == 3


def test_pair_set_beside_subjects_is_not_a_subject(tmp_path: Path) -> None:
    root = unpacked(tmp_path / "faces_emore")
    (root / "anna").mkdir()
    (root / "anna" / "1.jpg").write_bytes(encoded(5, "JPEG"))
    assert subjects_root(root) == root
    source = ImageFolder(root)
    assert source.subjects == ["anna"]
    assert "2 folders of unpacked pair sets" in "\n".join(source.notes)


def test_cached_listing_says_what_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "root" / "a"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(encoded(5, "JPEG"))
    for number in range(5):
        (folder / f"{number}.TXT").write_text("")
    (folder / "link").symlink_to("nowhere")
    (folder.parent / "beside.png").write_bytes(b"")
    for path in (folder, folder.parent):
        os.utime(path, (1e9, 1e9))
    notes = ImageFolder(folder.parent).notes
    assert [note.split(" are not read: ")[0] for note in notes] == [
        "1 images beside the subject folders",
        "5 .txt files",
        "1 broken links",
    ]
    assert notes[1].endswith(", ...")
    monkeypatch.setattr("data.sources.folder_index._scan", None)
    assert ImageFolder(folder.parent).notes == notes
