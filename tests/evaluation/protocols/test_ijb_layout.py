"""Meta files of the IJB layout: read rightly, refused with file and line when broken; the pair cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.protocols import ijb_layout as protocols
from evaluation.protocols.face_points import faces_digest, read_points
from evaluation.protocols.ijb_layout import image_stamps, read_protocol
from runtime.errors import InputError
from tests.ijb_layout import Dataset, write_dataset, write_lines


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_dataset(tmp_path / "sets")


def read(data: Dataset) -> protocols.SetProtocol:
    return read_protocol(data.root, data.name)


def edit(path: Path, change: Callable[[list[str]], object]) -> None:
    lines = path.read_text().splitlines()
    change(lines)
    write_lines(path, lines)


def test_everything_is_as_written(data: Dataset) -> None:
    found = read(data)
    files, templates, media = zip(*data.faces, strict=True)
    assert found.image_names == list(files)
    assert found.template_ids.tolist() == sorted(set(templates))
    assert found.template_ids[found.template_of_face].tolist() == list(templates)
    assert found.media.tolist() == list(media)
    pairs = zip(
        found.template_ids[found.pairs.first].tolist(),
        found.template_ids[found.pairs.second].tolist(),
        found.pairs.is_mated.tolist(),
        strict=True,
    )
    assert list(pairs) == [(first, second, bool(label)) for first, second, label in data.pairs]
    assert [gallery.name for gallery in found.galleries] == ["S1", "S2"]
    for gallery, part in zip(found.galleries, ("S1", "S2"), strict=True):
        assert sorted(found.template_ids[gallery.templates].tolist()) == sorted(data.gallery[part])
    assert found.probes is not None
    for entry in (*found.galleries, found.probes):
        ids = found.template_ids[entry.templates].tolist()
        assert entry.subjects.tolist() == [data.subject_of[template] for template in ids]
    assert sorted(found.template_ids[found.probes.templates].tolist()) == sorted(data.probes)
    assert found.sizes == {
        "images": len(files),
        "templates": 32,
        "pairs": len(data.pairs),
        "mated pairs": sum(label for *_, label in data.pairs),
    }


@pytest.mark.parametrize("with_lists", [True, False])
def test_subjects_come_from_the_lists_or_from_mated_pairs(data: Dataset, with_lists: bool) -> None:
    if with_lists:
        # A gallery of templates that no pair names is known from the csv alone.
        edit(data.meta("template_pair_label.txt"), lambda lines: lines.__delitem__(slice(5, None)))
    else:
        for path in data.folder.glob("meta/*1N*"):
            path.unlink()
    found = read(data)
    names = [data.subject_of[template] for template in found.template_ids.tolist()]
    assert (
        len(set(zip(names, found.subjects.tolist(), strict=True)))
        == len(set(names))
        == found.subjects.max() + 1
    )
    assert (found.probes is not None) == with_lists


def test_landmarks_and_scores(data: Dataset) -> None:
    points = read_points(read(data))
    line = data.meta("name_5pts_score.txt").read_text().splitlines()[3].split()
    np.testing.assert_allclose(points.landmarks[3].ravel(), [float(value) for value in line[1:11]], rtol=1e-6)
    assert points.scores[3] == np.float32(line[11])


def test_blanks_and_empty_lines_do_no_harm(data: Dataset) -> None:
    wanted = read(data)
    for part in ("face_tid_mid.txt", "template_pair_label.txt"):
        edit(data.meta(part), lambda lines: lines.__setitem__(2, f"  {lines[2]} \t"))
        data.meta(part).write_text(data.meta(part).read_text().replace("\n", "\r\n") + "\n\n")
    found = read(data)
    assert found.image_names == wanted.image_names
    np.testing.assert_array_equal(found.pairs.second, wanted.pairs.second)


# ------------------------------------------------------------------------------------------ broken files


def broken_line(number: int, text: str) -> Callable[[list[str]], object]:
    return lambda lines: lines.__setitem__(number - 1, text)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "face_tid_mid.txt",
            broken_line(5, "17.jpg 44"),
            r"line 5: expected 'FILE TEMPLATE MEDIA', found '17.jpg 44'",
        ),
        (
            "face_tid_mid.txt",
            broken_line(1, "17.jpg 44"),
            r"line 1: expected 'FILE TEMPLATE MEDIA', found '17.jpg 44'",
        ),
        (
            "face_tid_mid.txt",
            broken_line(2, "17.jpg x 4"),
            r"line 2: expected 'FILE TEMPLATE MEDIA', found '17.jpg x 4'",
        ),
        ("face_tid_mid.txt", broken_line(2, "17.jpg 1.5 4"), r"line 2: .* found '17.jpg 1.5 4'"),
        ("face_tid_mid.txt", broken_line(2, "17.jpg 1 4 5"), r"line 2: .* found '17.jpg 1 4 5'"),
        (
            "template_pair_label.txt",
            broken_line(7, "1 2"),
            r"line 7: expected 'TEMPLATE TEMPLATE_2 LABEL', found '1 2'",
        ),
        (
            "template_pair_label.txt",
            broken_line(3, "99999 2 0"),
            r"line 3: expected a template .* found 99999",
        ),
        ("template_pair_label.txt", broken_line(3, "-5 2 0"), r"line 3: expected a template .* found -5"),
        (
            "1N_probe_mixed.csv",
            broken_line(4, "1,x,a,1"),
            r"line 4: expected 'TEMPLATE_ID,...,SUBJECT_ID', found '1,x,a,1'",
        ),
        (
            "1N_probe_mixed.csv",
            broken_line(1, "A,B,C,D"),
            r"line 1: expected a header with TEMPLATE_ID, SUBJECT_ID",
        ),
        ("1N_gallery_S2.csv", broken_line(2, "99999,1,a,1"), r"line 2: expected a template .* found 99999"),
    ],
)
def test_a_broken_line_is_told_with_file_and_number(
    data: Dataset, part: str, change: Callable[[list[str]], object], message: str
) -> None:
    edit(data.meta(part), change)
    with pytest.raises(InputError, match=message) as fault:
        read(data)
    assert str(data.meta(part)) in str(fault.value)


@pytest.mark.parametrize("label", ["2", "-1", "300"])
def test_a_label_is_0_or_1(data: Dataset, label: str) -> None:
    first, second, _ = data.pairs[6]
    edit(data.meta("template_pair_label.txt"), broken_line(7, f"{first} {second} {label}"))
    with pytest.raises(InputError, match=r"line 7: expected"):
        read(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken_line(6, "6.jpg 1 2 3 4 5 6 7 8 9 10"), r"line 6: expected 'FILE x1 y1 .* SCORE', found"),
        (broken_line(6, "6.jpg 1 2 3 4 5 6 7 8 9 nan 0.5"), r"line 6: expected 'FILE x1"),
        (broken_line(6, "6.jpg 1 2 3 4 5 6 7 8 9 inf 0.5"), r"line 6: expected 'FILE x1"),
        (
            broken_line(6, "x.jpg 1 2 3 4 5 6 7 8 9 10 0.5"),
            r"line 6: expected image '6.jpg', .* found 'x.jpg'",
        ),
        (broken_line(6, "6.jpg 1 2 1 2 1 2 1 2 1 2 0.5"), r"line 6: expected five different points"),
        (lambda lines: lines.pop(), r"images, but tiny_face_tid_mid.txt has"),
    ],
)
def test_broken_landmarks_are_told(
    data: Dataset, change: Callable[[list[str]], object], message: str
) -> None:
    edit(data.meta("name_5pts_score.txt"), change)
    with pytest.raises(InputError, match=message):
        read_points(read(data))


def test_a_template_of_two_subjects_is_refused(data: Dataset) -> None:
    path = data.meta("1N_gallery_S1.csv")
    template, subject, *rest = path.read_text().splitlines()[2].split(",")
    edit(path, lambda lines: lines.append(",".join([template, str(int(subject) + 100), *rest])))
    last = len(path.read_text().splitlines())
    with pytest.raises(InputError, match=rf"line {last}: expected subject {subject} for template {template}"):
        read(data)


@pytest.mark.parametrize("part", ["face_tid_mid.txt", "template_pair_label.txt", "1N_probe_mixed.csv"])
def test_a_missing_or_empty_file_is_named(data: Dataset, part: str) -> None:
    data.meta(part).write_text("")
    with pytest.raises(InputError, match=part):
        read(data)
    data.meta(part).unlink()
    with pytest.raises(InputError, match=rf"{part}: (no such file|is missing)"):
        read(data)


def test_a_wrong_root_says_what_is_there(data: Dataset) -> None:
    with pytest.raises(InputError, match=r"no such folder.*It holds TINY"):
        read_protocol(data.root, "IJBB")
    with pytest.raises(InputError, match="no such folder"):
        read_protocol(data.root / "nowhere", "IJBB")
    shutil.rmtree(data.folder / "meta")
    with pytest.raises(InputError, match="has no folder 'meta'"):
        read(data)


def test_sizes_of_published_sets_are_checked(data: Dataset) -> None:
    write_dataset(data.root, "IJBB", images=False)
    with pytest.raises(InputError, match=r"images, expected 227,630; 32 templates, expected 12,115; .*1,845"):
        read_protocol(data.root, "IJBB")


# ------------------------------------------------------------------------------------------ images


def test_missing_images_are_listed_ten_at_most(data: Dataset) -> None:
    image_stamps(read(data))
    names = [file for file, *_ in data.faces]
    for name in names[:11]:
        (data.folder / "loose_crop" / name).unlink()
    (data.folder / "loose_crop" / names[11]).write_bytes(b"")
    with pytest.raises(InputError, match=rf"12 of {len(names)} images are missing or empty") as fault:
        image_stamps(read(data))
    assert f": {', '.join(names[:10])} and 2 more" in str(fault.value)
    assert f" {names[10]}" not in str(fault.value)
    shutil.rmtree(data.folder / "loose_crop")
    with pytest.raises(InputError, match="loose_crop: cannot be read"):
        image_stamps(read(data))


def test_a_changed_image_has_another_stamp(data: Dataset) -> None:
    before = image_stamps(read(data))
    path = data.folder / "loose_crop" / data.faces[4][0]
    np.testing.assert_array_equal(image_stamps(read(data)), before)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    same_size = image_stamps(read(data))
    assert np.flatnonzero(same_size != before).tolist() == [4]
    path.write_bytes(content + b"x")
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    assert np.flatnonzero(image_stamps(read(data)) != same_size).tolist() == [4]
    assert len(set(before.tolist())) == len(before)


def test_the_digest_follows_names_order_and_points(data: Dataset) -> None:
    def digest() -> str:
        found = read(data)
        return faces_digest(found, read_points(found))

    before = digest()
    assert digest() == before
    edit(
        data.meta("name_5pts_score.txt"),
        lambda lines: lines.__setitem__(0, lines[0].replace(" 5", " 6").replace(" 4", " 5")),
    )
    moved = digest()
    assert moved != before
    for part in ("name_5pts_score.txt", "face_tid_mid.txt"):
        edit(data.meta(part), lambda lines: lines.reverse())
    assert digest() not in (before, moved)


def test_images_in_folders_below_are_found(data: Dataset) -> None:
    moved = data.folder / "loose_crop" / "a"
    moved.mkdir()
    shutil.move(data.folder / "loose_crop" / "3.jpg", moved / "3.jpg")
    edit(
        data.meta("face_tid_mid.txt"),
        lambda lines: lines.__setitem__(2, lines[2].replace("3.jpg", "a/3.jpg")),
    )
    found = read(data)
    assert found.image_names[2] == "a/3.jpg"
    assert (image_stamps(found) > 0).all()


def test_an_image_may_stand_in_two_templates(data: Dataset) -> None:
    edit(data.meta("face_tid_mid.txt"), lambda lines: lines.append(f"1.jpg {lines[1].split()[1]} 99"))
    stamps = image_stamps(read(data))
    assert stamps[0] == stamps[-1]


# ------------------------------------------------------------------------------------------ pair cache


def test_a_changed_template_list_is_noticed(data: Dataset) -> None:
    read(data)
    template = data.pairs[0][0]
    data.faces.append(("extra.jpg", 0, 1))
    write_lines(data.meta("face_tid_mid.txt"), [" ".join(map(str, face)) for face in data.faces])
    found = read(data)
    assert found.template_ids[found.pairs.first[0]] == template


def test_far_apart_template_ids_are_found_too(data: Dataset) -> None:
    wanted = read(data)
    shift = 2_000_000_000
    for part in ("face_tid_mid.txt", "template_pair_label.txt"):
        first = data.faces[0][1]
        lines = [
            " ".join(
                str(shift) if field == str(first) and place in places else field
                for place, field in enumerate(line.split())
            )
            for line in data.meta(part).read_text().splitlines()
            for places in [(1,) if part.startswith("face") else (0, 1)]
        ]
        write_lines(data.meta(part), lines)
    for path in data.folder.glob("meta/*1N*"):
        path.unlink()
    found = read(data)
    assert found.template_ids[-1] == shift
    assert found.pairs.is_mated.sum() == wanted.pairs.is_mated.sum()


def test_images_outside_of_the_folder_are_not_read(data: Dataset) -> None:
    path = data.meta("face_tid_mid.txt")
    first, rest = path.read_text().split("\n", 1)
    path.write_text("\n".join([" ".join(["../../secret.jpg", *first.split()[1:]]), rest]))
    with pytest.raises(InputError, match=r"face_tid_mid\.txt.*\.\./\.\./secret\.jpg"):
        read(data)
