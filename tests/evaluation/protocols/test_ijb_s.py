"""IJB-S in the published layout: every figure against a slow oracle, every broken file told by its line."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coreset import build_aggregator
from data.sources.face_loader import Faces
from evaluation.metrics.search import Search
from evaluation.protocols.face_files import FaceFiles
from evaluation.protocols.ijb_s import (
    METADATA,
    PROTOCOLS,
    PUBLISHED_PROTOCOLS,
    IjbS,
    SearchLists,
    evaluate_ijb_s,
    ijb_s_figures,
    ijb_s_table,
    read_ijb_s,
    table_row,
)
from evaluation.protocols.templates import FaceGroups
from runtime.errors import InputError
from tests.lq_layout import (
    FIRST,
    SECOND,
    SUBJECTS,
    SURVEILLANCE,
    UAV_STILLS,
    Draw,
    IjbSByHand,
    frames,
    seen_in,
    write_ijb_s,
)


@pytest.fixture
def root(tmp_path: Path, drawn_face: Draw) -> Path:
    return write_ijb_s(tmp_path, drawn_face)


def embed(faces: Faces) -> tuple[np.ndarray, np.ndarray]:
    """A poor 'network': few of the levels of a drawn face's pattern, so that it errs at times."""
    levels = np.stack([faces.image(n)[8:40:16, 8::16, 0].ravel()[:2] for n in range(len(faces))]) - 130.0
    norms = np.linalg.norm(levels, axis=1)
    return levels / norms[:, None], norms


def built(*names: str) -> dict[str, Any]:
    return {name: build_aggregator(name, {}) for name in names}


@pytest.mark.parametrize("damaged", [False, True])
def test_from_files_to_figures(root: Path, damaged: bool) -> None:
    if damaged:
        # A probe, a gallery entry of each kind and a whole subject without faces.
        for path in [*(root / "2").glob("videos_4001_*"), *(root / "9").glob("img_90*")]:
            path.unlink()
        for path in (root / "8").glob("videos_4011_*"):
            path.unlink()
        shutil.rmtree(root / "4")
    data = read_ijb_s(root, root / "protocols", list(PROTOCOLS))
    figures = evaluate_ijb_s(data, *embed(data.faces), built("norm_weighted"))["norm_weighted"]

    def vectors(paths: Sequence[Path]) -> np.ndarray:
        features, norms = embed(FaceFiles.of(root, [str(path.relative_to(root)) for path in paths]))
        return features * norms[:, None]

    assert list(figures) == list(PROTOCOLS)
    for protocol, kind, probes in (
        ("surveillance_to_single", "single", ""),
        ("surveillance_to_booking", "booking", ""),
        ("surveillance_to_surveillance", "surveillance", ""),
        ("multi_view_to_booking", "booking", "multi_view"),
        ("uav_to_booking", "booking", "uav"),
    ):
        oracle = IjbSByHand(root, vectors, probes)
        mine = figures[protocol]
        first, second = oracle.galleries(kind)
        for name, gallery in (("gallery1", first), ("gallery2", second), ("joint", {**first, **second})):
            expected = {str(rank): oracle.cmc(gallery, rank) for rank in (1, 5, 10)}
            assert mine.closed[name] == pytest.approx(expected), (protocol, name)
        tpir = {}
        for name, gallery in (("gallery1", first), ("gallery2", second)):
            tpir[name] = {key: oracle.tpir(gallery, float(key)) for key in ("0.01", "0.1")}
            assert {key: rate.tpir for key, rate in mine.open[name].items()} == pytest.approx(tpir[name])
        means = {key: (tpir["gallery1"][key] + tpir["gallery2"][key]) / 2 for key in ("0.01", "0.1")}
        assert mine.mean_tpir == pytest.approx(means)
        assert mine.probes == len(oracle.probes)
        assert mine.gallery == (6, 6)
        assert mine.probes_without_faces == sum(p is None for _, p in oracle.probes)
        lacking = [e for e in (*first.values(), *second.values()) if e is None]
        assert mine.gallery_without_faces == len(lacking)
        assert bool(lacking) == damaged
        assert 0.2 < mine.closed["joint"]["1"] < mine.closed["joint"]["5"] or probes
    assert table_row(figures)["surveillance_to_single"] == (
        figures["surveillance_to_single"].closed["joint"]["1"],
        figures["surveillance_to_single"].closed["joint"]["5"],
        figures["surveillance_to_single"].mean_tpir["0.01"],
    )


def test_lists_of_the_other_protocols_are_needed_only_when_asked_for(root: Path) -> None:
    uav = root / "protocols" / PROTOCOLS["uav_to_booking"].probes
    text = uav.read_text()
    uav.unlink()
    assert set(read_ijb_s(root, root / "protocols").protocols) == set(PUBLISHED_PROTOCOLS)
    with pytest.raises(InputError, match=uav.name):
        read_ijb_s(root, root / "protocols", ["uav_to_booking"])
    uav.write_text(text.replace("img/29.jpg", "img/777.jpg"))
    with pytest.raises(InputError, match=r"line 3: img/777\.jpg"):
        read_ijb_s(root, root / "protocols", ["uav_to_booking"])
    # A still is no probe elsewhere.
    (root / "protocols" / PROTOCOLS["multi_view_to_booking"].probes).write_text("FILE\nimg/29.jpg\n")
    with pytest.raises(InputError, match="line 2"):
        read_ijb_s(root, root / "protocols", ["multi_view_to_booking"])


def test_each_face_is_embedded_once_and_only_if_needed(root: Path) -> None:
    data = read_ijb_s(root, root / "protocols")
    names = data.faces.names.tolist()
    assert len(set(names)) == len(names)
    stills = len(list(root.glob("*/img_*"))) - len(UAV_STILLS)
    assert len(names) == stills + sum(len(frames(s, v)) for v in SURVEILLANCE for s in seen_in(v)) + sum(
        len(frames(s, "4010")) for s in FIRST
    ) + sum(len(frames(s, "4011")) for s in SECOND)
    alone = read_ijb_s(root, root / "protocols", ["surveillance_to_single"])
    assert list(alone.protocols) == ["surveillance_to_single"]
    assert len(alone.faces) < len(names)


def test_frames_stand_in_their_order_and_media_are_files(root: Path, drawn_face: Draw) -> None:
    folder = root / "2"
    for frame in (2, 100, 11):
        (folder / f"videos_4001_{frame}.png").write_bytes(drawn_face(2, frame))
    data = read_ijb_s(root, root / "protocols")
    names = [name.decode() for name in data.faces.names.tolist()]
    mine = [name for name in names if name.startswith("2/videos_4001")]
    order = [int(Path(name).stem.rpartition("_")[2]) for name in mine]
    assert order == sorted(order)
    assert {2, 11, 100} < set(order)
    for template in range(len(data.groups)):
        part = slice(data.groups.offsets[template], data.groups.offsets[template + 1])
        files = [
            names[row].rpartition("_")[0] if "videos" in names[row] else names[row]
            for row in data.groups.rows[part]
        ]
        media = data.groups.media[part].tolist()
        assert len(set(media)) == len(set(files)) == len(set(zip(media, files, strict=True)))
        assert not set(media) & set(np.delete(data.groups.media, np.r_[part]).tolist())


def test_any_aggregator_is_a_way_to_fuse(root: Path) -> None:
    data = read_ijb_s(root, root / "protocols")
    names = ("mean", "media_mean", "best_norm", "fps_mean")
    features, norms = embed(data.faces)
    figures = evaluate_ijb_s(data, features, norms, built(*names))
    assert list(figures) == list(names)
    assert len({str(f) for f in figures.values()}) > 1
    with pytest.raises(InputError, match=r"IJB-S: features .* of .* faces"):
        evaluate_ijb_s(data, features[:-1], norms[:-1], built("mean"))


def test_ties_count_against_us_and_identical_probes_are_no_help() -> None:
    # Four templates, all alike: nobody is found at rank 1 in a gallery of two.
    lists = SearchLists(np.array([0, 1]), (np.array([2, 3]), np.array([4, 5])))
    subjects = np.array([7, 9, 7, 8, 9, 6])
    groups = FaceGroups(np.arange(6), np.arange(7), np.arange(6))
    data = IjbS(
        FaceFiles.of(Path(), ["x"] * 6), groups, subjects, np.arange(6), {"surveillance_to_single": lists}, ()
    )
    figures = ijb_s_figures(np.tile([[0.6, 0.8]], (6, 1)), data)["surveillance_to_single"]
    assert figures.closed["joint"] == {"1": 0.0, "5": 1.0, "10": 1.0}
    assert figures.mean_tpir == {"0.01": 0.0, "0.1": 0.0}
    with pytest.raises(InputError, match=r"descriptors \(5, 2\) of 6 templates"):
        ijb_s_figures(np.ones((5, 2)), data)


def test_a_probe_without_faces_is_a_miss_even_in_a_small_gallery() -> None:
    lists = SearchLists(np.array([0, 1, 2]), (np.array([3]), np.array([4, 5])))
    subjects = np.array([7, 9, 9, 7, 9, 6])
    row = np.array([-1, 0, 1, 2, 3, 4])
    groups = FaceGroups(np.arange(5), np.arange(6), np.arange(5))
    data = IjbS(FaceFiles.of(Path(), ["x"] * 5), groups, subjects, row, {"surveillance_to_single": lists}, ())
    descriptors = np.array([[1, 0], [1, 0], [0, 1], [1, 0], [0, 1]], float)
    figures = ijb_s_figures(descriptors, data)["surveillance_to_single"]
    assert figures.closed["gallery1"] == {"1": 0.0, "5": 0.0, "10": 0.0}
    assert figures.closed["joint"] == {"1": 2 / 3, "5": 2 / 3, "10": 2 / 3}
    assert figures.open["gallery1"]["0.01"].tpir == 0.0
    assert figures.open["gallery2"]["0.01"].tpir == 1.0
    assert Search.is_mated.fget is not None


def test_what_is_lacking_is_told_beside_the_figures(root: Path) -> None:
    notes = " ".join(read_ijb_s(root, root / "protocols").notes)
    assert "Sur-to-Single: 12 subjects in the galleries, the published protocol has 202" in notes
    assert "no face" not in notes
    shutil.rmtree(root / "4")
    notes = " ".join(read_ijb_s(root, root / "protocols").notes)
    assert f"Sur-to-Single: {sum(4 in seen_in(v) for v in SURVEILLANCE)} of " in notes
    assert "Sur-to-Book: 1 of 6 gallery 1 have no face" in notes
    path = root / "protocols" / "cs6_surveillance_to_surveillance_probe.csv"
    path.write_text(path.read_text() + "\nvideos/4010.mp4\n")
    notes = " ".join(read_ijb_s(root, root / "protocols").notes)
    assert "Sur-to-Sur: 6 probes are gallery entries too" in notes


def fault(root: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_ijb_s(root, root / "protocols")
    return str(caught.value)


def test_missing_files_are_told_together(root: Path) -> None:
    (root / "protocols" / METADATA).unlink()
    (root / "protocols" / "galleries" / "cs6_surveillance_to_booking_g2.csv").unlink()
    with pytest.raises(InputError) as caught:
        read_ijb_s(root / "gone", root / "protocols")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert "gone: no such folder. Expected DATA_ROOT/<SUBJECT>/videos_<VIDEO>_<FRAME>.jpg" in lines[0]
    assert METADATA in lines[1]
    assert "cs6_surveillance_to_booking_g2.csv" in lines[1]
    assert "surveillance_to_single_g1" not in lines[1]


def test_faces_in_another_layout_are_refused(root: Path) -> None:
    (root / "3" / "frame_1.jpg").write_bytes((root / "3" / "img_30.jpg").read_bytes())
    (root / "3" / "Thumbs.db").write_bytes(b"")
    assert f"{root / '3'}: 1 images have other names: frame_1.jpg. Expected DATA_ROOT" in fault(root)
    for subject in SUBJECTS:
        (root / str(subject)).rename(root / f"s{subject}")
    assert f"{root}: no face of any template of the protocols was found. Expected" in fault(root)


def test_a_side_without_any_face_is_refused(root: Path) -> None:
    for path in root.glob("*/img_*"):
        path.unlink()
    message = fault(root)
    assert "none of the 6 gallery 1 of Sur-to-Single has a face" in message
    assert "none of the 6 gallery 2 of Sur-to-Book has a face" in message
    assert "Sur-to-Sur" not in message


GALLERY = "galleries/cs6_surveillance_to_"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (METADATA, "SUBJECT_ID,FILENAME,FRAME,X\n", "", "line 1: expected a header"),
        (
            METADATA,
            "2,videos/4001.mp4,10,",
            "two,videos/4001.mp4,10,",
            "expected 'SUBJECT,FILE' with a whole number",
        ),
        (METADATA, "1,img/10.jpg,,", "1,img10.jpg,,", "found '1,img10.jpg'"),
        (METADATA, "2,img/20.jpg,,1.5", "2", "expected 'SUBJECT,FILE', found '2'"),
        (
            "cs6_surveillance_to_single-booking_probe.csv",
            "videos/4002.mp4",
            "4002",
            "line 3: expected videos/",
        ),
        (
            "cs6_surveillance_to_single-booking_probe.csv",
            "4002",
            "4999",
            "line 3: videos/4999.mp4 does not occur",
        ),
        ("cs6_surveillance_to_single-booking_probe.csv", "FILENAME\n", "", "line 1: expected a header"),
        (
            GALLERY + "single_g1.csv",
            "2,2,img/20.jpg",
            "2,2",
            "line 3: expected 'ENTRY,SUBJECT,FILE', found '2,2'",
        ),
        (GALLERY + "single_g1.csv", "2,2,img/20.jpg", "2,1,img/11.jpg", "line 3: a second file of subject 1"),
        (GALLERY + "single_g2.csv", "7,7,img/70.jpg", "7,1,img/11.jpg", "line 2: subject 1 is in"),
        (
            GALLERY + "surveillance_g1.csv",
            "videos/4010",
            "videos/4999",
            "does not have subject 1 in videos/4999",
        ),
        (
            GALLERY + "booking_g1.csv",
            "1,1,img/10.jpg",
            "1,1,img/10",
            "line 2: expected 'ENTRY,SUBJECT,FILE' with",
        ),
    ],
)
def test_a_broken_file_is_told_by_its_line(root: Path, file: str, old: str, new: str, message: str) -> None:
    path = root / "protocols" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    text = fault(root)
    assert str(path) in text
    assert message in text


@pytest.mark.parametrize("file", ["cs6_surveillance_to_surveillance_probe.csv", GALLERY + "single_g2.csv"])
def test_a_list_of_nothing_is_told(root: Path, file: str) -> None:
    path = root / "protocols" / file
    path.write_text("HEADER\n")
    assert f"{path}: lists no " in fault(root)
    path.write_text("")
    assert "line 1: expected a header, found ''" in fault(root)


def test_the_table_is_the_seeds() -> None:
    table = ijb_s_table(
        {
            "ours": {
                "surveillance_to_single": (0.5, 0.625, 0.25),
                "surveillance_to_surveillance": (0.1, 0.2, 0.0),
            },
            "published": {"surveillance_to_single": (0.7042, 0.7529, 0.5827)},
        }
    ).splitlines()
    assert [c.strip() for c in table[0].strip("|").split("|")] == [
        *("model", "Sur-to-Single rank 1", "rank 5", "TPIR@FPIR 0.01"),
        *("Sur-to-Sur rank 1", "rank 5", "TPIR@FPIR 0.01"),
    ]
    assert [c.strip() for c in table[2].strip("|").split("|")] == [
        *("ours", "50.00", "62.50", "25.00", "10.00", "20.00", "0.00"),
    ]
    assert [c.strip() for c in table[3].strip("|").split("|")][4:] == ["-", "-", "-"]
