"""Set benchmarks from folders, packs and features: what is written is read and evaluated; what is refused."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import convert
from data.sampling.views import Kind, ViewPlan
from data.sources.recordio import write_face_pack
from evaluation.protocols.face_points import read_points
from evaluation.protocols.ijb_layout import SetProtocol, read_protocol
from evaluation.protocols.subgroups import read_impostor_faces
from evaluation.reporting.report import read_result
from features.bank import FACES, LABEL
from features.store import FeatureWriter, StoreLayout
from net import build_backbone
from photos.alignment import TEMPLATE
from photos.videos import frames as video_frames
from runtime.errors import InputError
from set_benchmark.build import BuiltBenchmark, build_set_benchmark
from set_benchmark.media import collect_media
from set_benchmark.protocol import PRESETS, BenchmarkProtocol, Stress, read_benchmark_protocol
from validation import ijb as validate_ijb
from weights import save_weights

Draw = Callable[[int, int], bytes]
SMALL = BenchmarkProtocol(name="small", templates=(2, 4), gallery_media=(1, 2), probe_media=(1, 3))


def face(subject: int, number: int) -> bytes:
    """A PNG whose details tell every photo apart, and a little the subject."""
    own = np.random.default_rng([subject, 1]).integers(0, 256, (16, 16, 3))
    photo = np.random.default_rng([subject, 2, number]).integers(0, 256, (16, 16, 3))
    levels = (0.5 * own + 0.5 * photo).astype(np.uint8)
    return cv2.imencode(".png", cv2.resize(levels, (112, 112), interpolation=cv2.INTER_CUBIC))[1].tobytes()


def subjects(root: Path, count: int = 12, images: int = 8, clips: int = 0) -> Path:
    """`<root>/s00/0.png`, and clips of six frames, each a little other than the first."""
    for subject in range(count):
        folder = root / f"s{subject:02}"
        folder.mkdir(parents=True)
        for number in range(images):
            (folder / f"{number}.png").write_bytes(face(subject, number))
        for number in range(clips):
            (folder / f"clip{number}").mkdir()
            first = cv2.imdecode(np.frombuffer(face(subject, 100 + number), np.uint8), cv2.IMREAD_COLOR)
            for frame in range(6):
                shown = np.clip(first.astype(int) + 3 * frame, 0, 255).astype(np.uint8)
                (folder / f"clip{number}" / f"f{frame}.png").write_bytes(
                    cv2.imencode(".png", shown)[1].tobytes()
                )
    return root


def build(source: Path, out: Path, protocol: BenchmarkProtocol = SMALL, **given: object) -> BuiltBenchmark:
    values = {"name": "MINE", "seed": 3} | given
    return build_set_benchmark(source, out, protocol=protocol, **values)  # type: ignore[arg-type]


def notes(built: BuiltBenchmark) -> list[dict[str, str]]:
    with (built.folder / "meta" / f"{built.folder.name.lower()}_face_notes.csv").open() as stream:
        return list(csv.DictReader(stream))


def shas(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def subject_of_templates(protocol: SetProtocol) -> dict[int, int]:
    return {
        int(row): int(subject)
        for listed in (*protocol.galleries, protocol.probes)
        for row, subject in zip(listed.templates, listed.subjects, strict=True)
    }


def test_evaluation_reads_written_benchmarks(tmp_path: Path) -> None:
    built = build(subjects(tmp_path / "faces"), tmp_path / "out")
    protocol = read_protocol(tmp_path / "out", "MINE")
    counts = built.manifest["counts"]
    assert protocol.sizes == {
        "images": counts["images"],
        "templates": counts["templates"],
        "pairs": counts["pairs"],
        "mated pairs": counts["mated_pairs"],
    }
    subject_of = subject_of_templates(protocol)
    assert len(subject_of) == len(protocol.template_ids)
    names = dict(csv.reader((built.folder / "meta" / "mine_subjects.csv").open()))
    # The image shows the subject that the lists say, bit for bit as it was, and stands in one template.
    used = Counter()
    for row, note in enumerate(notes(built)):
        subject, file = note["SOURCE"].split("/")
        assert names[str(subject_of[int(protocol.template_of_face[row])])] == subject
        content = (tmp_path / "faces" / subject / file).read_bytes()
        assert (protocol.image_folder / protocol.image_names[row]).read_bytes() == content
        used[note["SOURCE"]] += 1
    assert set(used.values()) == {1}
    assert len(protocol.galleries) == 2
    for gallery in protocol.galleries:
        assert len(set(gallery.subjects.tolist())) == len(gallery) == 6
    assert not set(protocol.galleries[0].subjects.tolist()) & set(protocol.galleries[1].subjects.tolist())
    # Every gallery template against every probe, and the labels are the subjects'.
    pairs = protocol.pairs
    assert len(pairs) == counts["gallery_templates"] * counts["probe_templates"]
    for first, second, mated in zip(pairs.first, pairs.second, pairs.is_mated, strict=True):
        assert (subject_of[int(first)] == subject_of[int(second)]) == mated
    points = read_points(protocol)
    np.testing.assert_allclose(points.landmarks[0], TEMPLATE, atol=1e-3)


def test_sizes_are_those_of_the_protocol(tmp_path: Path) -> None:
    protocol = BenchmarkProtocol(templates=(3, 3), gallery_media=(2, 2), probe_media=(1, 2))
    built = build(subjects(tmp_path / "faces", images=7), tmp_path / "out", protocol)
    read = read_protocol(tmp_path / "out", "MINE")
    media = defaultdict(set)
    for template, medium in zip(read.template_of_face, read.media, strict=True):
        media[int(template)].add(int(medium))
    gallery = {int(t) for listed in read.galleries for t in listed.templates}
    assert {len(media[t]) for t in gallery} == {2}
    assert {len(media[t]) for t in media if t not in gallery} == {1, 2}
    assert built.manifest["counts"]["templates"] == 36


def test_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    source = subjects(tmp_path / "faces", clips=1)
    stress = BenchmarkProtocol(
        name="all",
        probe_media=(1, 3),
        clip_frames=(2, 4),
        stress=Stress(degraded=0.5, simulated_clips=0.5, repeated=0.2),
    )
    first = build(source, tmp_path / "a", stress)
    again = build(source, tmp_path / "b", stress)
    assert shas(first.folder) == shas(again.folder)
    assert first.manifest == again.manifest
    other = build(source, tmp_path / "c", stress, seed=4)
    assert other.manifest["sha256"] != first.manifest["sha256"]
    assert first.manifest["sha256"] in first.text


def test_change_of_one_image_is_another_benchmark(tmp_path: Path) -> None:
    source = subjects(tmp_path / "faces")
    first = build(source, tmp_path / "a")
    shown = notes(first)[0]["SOURCE"]
    (source / shown).write_bytes(face(99, 99))
    assert build(source, tmp_path / "b").manifest["sha256"] != first.manifest["sha256"]


def test_subjects_templates_do_not_depend_on_the_others(tmp_path: Path) -> None:
    source = subjects(tmp_path / "faces")
    first = notes(build(source, tmp_path / "a"))
    shutil.rmtree(source / "s00")
    second = notes(build(source, tmp_path / "b"))

    def templates(lines: list[dict[str, str]]) -> set[frozenset[str]]:
        found = defaultdict(set)
        for line in lines:
            if not line["SOURCE"].startswith("s00"):
                found[line["TEMPLATE_ID"]].add(line["SOURCE"])
        return {frozenset(each) for each in found.values()}

    assert templates(first) == templates(second)


def test_clips_come_from_folders_of_frames_and_from_videos(tmp_path: Path) -> None:
    source = subjects(tmp_path / "faces", count=4, images=2, clips=2)
    for subject in range(4):
        writer = cv2.VideoWriter(
            str(source / f"s{subject:02}" / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (112, 112)
        )
        frame = cv2.imdecode(np.frombuffer(face(subject, 77), np.uint8), cv2.IMREAD_COLOR)
        for _ in range(20):
            writer.write(frame)
        writer.release()
    protocol = BenchmarkProtocol(
        templates=(2, 4), gallery_media=(1, 1), probe_media=(1, 2), gallery_kind="stills", clip_frames=(3, 4)
    )
    built = build(source, tmp_path / "out", protocol)
    frames = Counter((line["MEDIA_ID"], line["SOURCE"]) for line in notes(built))
    sizes = defaultdict(set)
    for (_, shown), count in frames.items():
        sizes["film" if "film" in shown else "clip" if "clip" in shown else "still"].add(count)
    assert sizes["still"] == {1}
    assert sizes["clip"] <= {3, 4}
    assert sizes["film"] <= {3, 4}
    assert sizes["film"]
    read = read_protocol(tmp_path / "out", "MINE")
    gallery = {int(t) + 1 for listed in read.galleries for t in listed.templates}
    assert all(
        "." in n["SOURCE"] and "film" not in n["SOURCE"]
        for n in notes(built)
        if int(n["TEMPLATE_ID"]) in gallery
    )


@pytest.mark.parametrize("count", [3, 400])
def test_even_frames_of_a_video_are_taken_and_the_others_not_kept(tmp_path: Path, count: int) -> None:
    film = tmp_path / "faces" / "anna" / "film.avi"
    film.parent.mkdir(parents=True)
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 25, (112, 112))
    for number in range(count):
        writer.write(np.full((112, 112, 3), number // 2 + 20, np.uint8))
    writer.release()
    protocol = BenchmarkProtocol(clip_frames=(2, 5), fps=25.0)
    tracemalloc.start()
    pool = collect_media(
        tmp_path / "faces", protocol, tmp_path / "cut", detector=None, exclude=frozenset(), chosen=list
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pool.rejected == []
    every = [float(frame.image.mean()) for frame in video_frames(film, 25.0)]
    assert len(every) == count
    wanted = [every[place] for place in np.linspace(0, count - 1, min(count, 5)).round().astype(int)]
    assert [float(pool.image(frame).mean()) for frame in pool.media[0].frames] == wanted
    # All 400 would be 15 MB.
    assert peak < 40 * 112 * 112 * 3


def test_benchmark_from_a_pack(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    write_face_pack(
        tmp_path / "pack", [(s, face(s, n)) for s in range(5) for n in range(6)] + [(5, b"broken")]
    )
    built = build(tmp_path / "pack", tmp_path / "out")
    assert built.manifest["source"] == "pack"
    assert built.manifest["counts"]["subjects"] == 5
    assert len(built.manifest["left_out"]["unreadable"]) == 1
    assert str(tmp_path) not in json.dumps(built.manifest)
    assert read_protocol(tmp_path / "out", "MINE").sizes["images"] == built.manifest["counts"]["images"]


def test_features_take_the_place_of_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 8))
    labels, media = (
        np.repeat(np.arange(10), 12),
        np.tile(np.repeat(np.arange(6), 2), 10) + 100 * np.repeat(np.arange(10), 12),
    )
    features = (centres[labels] + 0.4 * rng.normal(size=(120, 8))).astype(np.float32)
    norms = np.linalg.norm(features, axis=1)
    np.savez(
        tmp_path / "rows.npz", features=features / norms[:, None], norms=norms, labels=labels, media=media
    )
    protocol = BenchmarkProtocol(probe_media=(1, 2), clip_frames=(2, 2))
    built = build(tmp_path / "rows.npz", tmp_path / "out", protocol)
    given = np.load(built.folder / "features" / "features.npy")
    assert len(given) == built.manifest["counts"]["images"]
    # Each row of a template is a feature of the subject.
    read = read_protocol(tmp_path / "out", "MINE")
    names = dict(csv.reader((built.folder / "meta" / "mine_subjects.csv").open()))
    subject_of = subject_of_templates(read)
    for row, template in enumerate(read.template_of_face):
        source = np.flatnonzero((features / norms[:, None] == given[row]).all(axis=1))
        assert labels[source[0]] == int(names[str(subject_of[int(template)])])
    validate_ijb.PROTOCOL.validate(
        {
            "data_root": str(tmp_path / "out"),
            "dataset_name": "MINE",
            "features": str(built.folder / "features"),
            "out": str(tmp_path / "eval"),
            "aggregator": ["mean"],
            "replicates": 0,
        }
    )
    assert read_result(tmp_path / "eval")["verification"]["tar_at_far"]["1e-02"]["strict"] > 0.5
    with pytest.raises(InputError, match="stress degraded"):
        build(tmp_path / "rows.npz", tmp_path / "b", BenchmarkProtocol(stress=Stress(degraded=0.5)))


def test_views_provide_stress_for_features(tmp_path: Path) -> None:
    plan, images = ViewPlan.of(16), 30
    rows = images * len(plan)
    layout = StoreLayout(rows, 4, columns={LABEL: "int64"}, part_rows=rows)
    writer = FeatureWriter(tmp_path / "store", layout, {"backbone_sha256": "0"}, {})
    features = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    # The norm tells which row it is.
    norms = np.arange(rows, dtype=np.float32)
    labels = np.repeat(np.arange(6), rows // 6)
    writer.write_part(0, {"features": features, "norms": norms, LABEL: labels})
    writer.finish()
    said = {"subjects": list("abcdef"), "kinds": [k.name for k in plan.kinds], "groups": list(plan.groups)}
    (tmp_path / "store" / FACES).write_text(json.dumps(said))
    protocol = BenchmarkProtocol(
        probe_media=(2, 3), clip_frames=(3, 4), stress=Stress(degraded=0.5, simulated_clips=0.4)
    )
    built = build(tmp_path / "store", tmp_path / "out", protocol)
    assert built.manifest["source"] == "features"
    read = read_protocol(tmp_path / "out", "MINE")
    gallery = {int(t) + 1 for listed in read.galleries for t in listed.templates}
    names = dict(csv.reader((built.folder / "meta" / "mine_subjects.csv").open()))
    subject_of = subject_of_templates(read)
    shown = np.load(built.folder / "features" / "norms.npy").astype(int)
    lines, frames = notes(built), Counter(note["MEDIA_ID"] for note in notes(built))
    clips = set()
    for row, note, template in zip(shown, lines, read.template_of_face, strict=True):
        kind = plan.kinds[row % 16]
        assert said["subjects"][labels[row]] == names[str(subject_of[int(template)])]
        if int(note["TEMPLATE_ID"]) in gallery:
            assert kind == Kind.PLAIN
        elif frames[note["MEDIA_ID"]] > 1:
            assert kind == Kind.CLIP
            clips.add(note["MEDIA_ID"])
        else:
            assert kind in ((Kind.MODERATE, Kind.POOR) if note["DEGRADED"] == "1" else (Kind.PLAIN,))
    assert len(clips) == round(0.4 * built.manifest["stress"]["probe_media"])


# --------------------------------------------------------------------------------------------- stress


STRESSED = BenchmarkProtocol(
    name="hard",
    templates=(3, 4),
    probe_media=(3, 4),
    clip_frames=(3, 5),
    stress=Stress(degraded=0.6, simulated_clips=0.3, foreign=0.1, repeated=0.2, repeats=(3, 3)),
)


def test_fractions_of_stress_are_exact(tmp_path: Path) -> None:
    built = build(subjects(tmp_path / "faces", count=14, images=14), tmp_path / "out", STRESSED)
    read = read_protocol(tmp_path / "out", "MINE")
    gallery = {int(t) + 1 for listed in read.galleries for t in listed.templates}
    subject_of = subject_of_templates(read)
    names = dict(csv.reader((built.folder / "meta" / "mine_subjects.csv").open()))
    media: dict[str, list[tuple[int, dict[str, str]]]] = defaultdict(list)
    for row, note in enumerate(notes(built)):
        media[note["MEDIA_ID"]].append((row, note))
    probes = {m: lines for m, lines in media.items() if int(lines[0][1]["TEMPLATE_ID"]) not in gallery}
    P = len(probes)
    foreign = {m for m, lines in probes.items() if lines[0][1]["FOREIGN"] == "1"}
    degraded = {m for m, lines in probes.items() if lines[0][1]["DEGRADED"] == "1"}
    assert len(foreign) == round(0.1 * P)
    assert len(degraded) == round(0.6 * P)
    # Foreign is what shows another subject than the template's, and nobody who is enrolled.
    enrolled = {names[str(s)] for s in subject_of.values()}
    of_template: dict[str, list[bool]] = defaultdict(list)
    for medium, lines in media.items():
        row, note = lines[0]
        shown = note["SOURCE"].split("/")[0]
        own = names[str(subject_of[int(read.template_of_face[row])])]
        assert (shown != own) == (medium in foreign)
        assert medium not in foreign or shown not in enrolled
        of_template[note["TEMPLATE_ID"]].append(medium in foreign)
    assert all(2 * sum(each) < len(each) for each in of_template.values())
    np.testing.assert_array_equal(read_impostor_faces(read), [n["FOREIGN"] == "1" for n in notes(built)])
    # Repeats are the same bytes three times.
    shots = {
        m: Counter((read.image_folder / read.image_names[row]).read_bytes() for row, _ in lines)
        for m, lines in media.items()
    }
    repeated = {m for m, counts in shots.items() if max(counts.values()) > 1}
    assert len(repeated) == round(0.2 * P)
    assert {count for m in repeated for count in shots[m].values()} == {3}
    # Stills that became clips have frames that differ; the others are one image.
    clips = [len(shots[m]) for m in probes if len(shots[m]) > 1]
    assert len(clips) == round(0.3 * P)
    assert set(clips) <= {3, 4, 5}
    # What is not degraded is as it was.
    for medium, lines in media.items():
        row, note = lines[0]
        content = (read.image_folder / read.image_names[row]).read_bytes()
        same = content == (tmp_path / "faces" / note["SOURCE"]).read_bytes()
        assert same == (medium not in degraded)
    done = built.manifest["stress"]
    assert done == {
        "probe_media": P,
        "foreign": len(foreign),
        "degraded": len(degraded),
        "repeated": len(repeated),
    }
    assert built.manifest["protocol"]["stress"]["foreign"] == 0.1


@pytest.mark.parametrize("cause", ["resolution", "light", "occlusion"])
def test_one_cause_alone_is_chosen(tmp_path: Path, cause: str) -> None:
    stress = Stress(degraded=1.0, strength=(0.4, 0.5), causes=(cause,))
    built = build(subjects(tmp_path / "faces", count=4), tmp_path / "out", BenchmarkProtocol(stress=stress))
    read = read_protocol(tmp_path / "out", "MINE")
    changed = 0
    for row, note in enumerate(notes(built)):
        if note["DEGRADED"] != "1":
            continue
        got = cv2.imread(str(read.image_folder / read.image_names[row])).astype(int)
        was = cv2.imread(str(tmp_path / "faces" / note["SOURCE"])).astype(int)
        changed += not np.array_equal(got, was)
        if cause == "occlusion":
            # What is not hidden stays as it was, as nothing else is done to it.
            assert (got == was).all(axis=2).mean() > 0.2
        if cause == "light":
            # The order of levels is kept, so that a face is in its place.
            assert np.corrcoef(got.mean(axis=2).ravel(), was.mean(axis=2).ravel())[0, 1] > 0.6
    degraded = sum(note["DEGRADED"] == "1" for note in notes(built))
    assert changed == degraded > 0


def test_templates_have_the_sizes_asked_for(tmp_path: Path) -> None:
    protocol = BenchmarkProtocol(probe_media=(1, 3), stress=Stress(template_sizes=(1, 4, 9)))
    build(subjects(tmp_path / "faces", clips=2), tmp_path / "out", protocol)
    read = read_protocol(tmp_path / "out", "MINE")
    probes = np.bincount(read.template_of_face)[read.probes.templates]
    counts = Counter(probes.tolist())
    assert set(counts) == {1, 4, 9}
    assert max(counts.values()) - min(counts.values()) <= 1


def test_gallery_is_never_stressed(tmp_path: Path) -> None:
    built = build(subjects(tmp_path / "faces", count=14, images=14), tmp_path / "out", STRESSED)
    read = read_protocol(tmp_path / "out", "MINE")
    gallery = {int(t) + 1 for listed in read.galleries for t in listed.templates}
    for note in notes(built):
        if int(note["TEMPLATE_ID"]) in gallery:
            assert (note["FOREIGN"], note["DEGRADED"]) == ("0", "0")


# ------------------------------------------------------------------------------- pairs, subjects, duplicates


def test_nonmated_pairs_can_be_sampled(tmp_path: Path) -> None:
    source = subjects(tmp_path / "faces")
    whole = build(source, tmp_path / "a", BenchmarkProtocol(pairs="all"))
    M = whole.manifest["counts"]["templates"]
    assert whole.manifest["counts"]["pairs"] == M * (M - 1) // 2
    part = build(source, tmp_path / "b", BenchmarkProtocol(pairs="all", nonmated_pairs=50))
    assert part.manifest["counts"]["mated_pairs"] == whole.manifest["counts"]["mated_pairs"]
    assert part.manifest["counts"]["pairs"] == 50 + part.manifest["counts"]["mated_pairs"]
    lines = (part.folder / "meta" / "mine_template_pair_label.txt").read_text().splitlines()
    assert len(set(lines)) == len(lines)


def test_subjects_are_limited_and_excluded_by_name(tmp_path: Path) -> None:
    source = subjects(tmp_path / "faces")
    protocol = BenchmarkProtocol(subjects=5)
    built = build(source, tmp_path / "out", protocol, exclude=frozenset({"s03", "s04", "nobody"}))
    shown = {note["SOURCE"].split("/")[0] for note in notes(built)}
    assert len(shown) == 5
    assert not shown & {"s03", "s04"}
    assert "2 of 3 names to exclude are subjects of the source" in built.text


def test_near_duplicate_is_skipped_and_reported(tmp_path: Path) -> None:
    source = subjects(tmp_path / "faces")
    image = cv2.imdecode(np.frombuffer(face(0, 0), np.uint8), cv2.IMREAD_COLOR)
    cv2.imwrite(str(source / "s00" / "saved_again.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 40])
    small = cv2.resize(image, (60, 60), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(source / "s00" / "small.jpg"), cv2.resize(small, (112, 112)))
    cv2.imwrite(str(source / "s00" / "turned.png"), cv2.flip(image, 1))
    # One picture of two subjects shows one of them at most.
    (source / "s01" / "x.png").write_bytes(face(2, 0))
    built = build(source, tmp_path / "out", BenchmarkProtocol(templates=(5, 9), probe_media=(1, 1)))
    left = built.manifest["left_out"]
    assert left["near_duplicates"] == [
        [f"s00/{name}", "s00/0.png"] for name in ("saved_again.jpg", "small.jpg", "turned.png")
    ]
    assert left["under_two_names"] == [["s01/x.png", "s02/0.png"]]
    shown = {note["SOURCE"] for note in notes(built)}
    assert not shown & {"s00/saved_again.jpg", "s00/small.jpg", "s00/turned.png", "s01/x.png", "s02/0.png"}
    assert "s00/small.jpg of s00/0.png" in built.text
    assert "s01/x.png and s02/0.png" in built.text


# ------------------------------------------------------------------------------------------- bad input


def test_two_names_for_one_folder_are_refused(tmp_path: Path) -> None:
    source = subjects(tmp_path / "faces", count=4)
    (source / "other").symlink_to(source / "s01")
    with pytest.raises(InputError, match="other and s01"):
        build(source, tmp_path / "out")
    (source / "other").unlink()
    shutil.copytree(source / "s01", source / "other")
    with pytest.raises(InputError, match="other and s01: all images"):
        build(source, tmp_path / "out")
    assert not (tmp_path / "out" / "MINE").exists()
    assert not list((tmp_path / "out").iterdir())


def test_one_image_for_all_is_refused(tmp_path: Path) -> None:
    for subject in range(8):
        (tmp_path / "faces" / f"s{subject}").mkdir(parents=True)
        for number in range(3):
            (tmp_path / "faces" / f"s{subject}" / f"{number}.png").write_bytes(face(0, 0))
    with pytest.raises(InputError, match="more pairs"):
        build(tmp_path / "faces", tmp_path / "out")


def test_files_that_cannot_be_read_and_empty_subjects_are_reported(tmp_path: Path) -> None:
    source = subjects(tmp_path / "faces")
    (source / "s00" / "0.png").write_bytes(b"no image")
    (source / "s01" / "0.png").write_bytes(b"")
    (source / "nobody").mkdir()
    (source / "s02" / "clip").mkdir()
    built = build(source, tmp_path / "out")
    for name in ("s00/0.png", "s01/0.png", "nobody", "s02/clip"):
        assert name in built.manifest["left_out"]["unreadable"]
        assert name in built.text
    assert built.manifest["left_out"]["subjects_with_too_few_media"] == 1
    assert built.manifest["counts"]["subjects"] == 12


def test_invalid_source_is_refused(tmp_path: Path) -> None:
    source = subjects(tmp_path / "faces", count=3, images=1)
    with pytest.raises(InputError, match=r"0 of 3 subjects have the 2 media .* 3 of 1"):
        build(source, tmp_path / "out")
    for path in source.rglob("*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"s00/0.png: is not an image"):
        build(source, tmp_path / "out")
    with pytest.raises(InputError, match="no such folder"):
        build(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no subject folders"):
        build(tmp_path / "empty", tmp_path / "out")


def test_impossible_fraction_reports_the_possible_one(tmp_path: Path) -> None:
    source = subjects(tmp_path / "faces")
    protocol = BenchmarkProtocol(probe_media=(1, 2), stress=Stress(foreign=0.3))
    with pytest.raises(InputError, match=r"foreign 0.3 of .*; 0 are possible"):
        build(source, tmp_path / "out", protocol)


def test_invalid_targets_are_refused_together(tmp_path: Path) -> None:
    source = subjects(tmp_path / "faces", count=2)
    (tmp_path / "out" / "MINE").mkdir(parents=True)
    with pytest.raises(InputError, match="already exists"):
        build(source, tmp_path / "out")
    with pytest.raises(InputError, match="expected letters, digits"):
        build(source, tmp_path / "out", name="a/b")
    with pytest.raises(InputError, match="published data set"):
        build(source, tmp_path / "out", name="ijbc")
    with pytest.raises(InputError, match="is inside"):
        build(source, source)


# ---------------------------------------------------------------------------------- protocols, the command


def test_protocols_are_presets_or_files(tmp_path: Path) -> None:
    assert read_benchmark_protocol("stress") is PRESETS["stress"]
    (tmp_path / "mine.json").write_text(json.dumps({"templates": [2, 3], "stress": {"degraded": 0.5}}))
    (tmp_path / "mine.toml").write_text("templates = [2, 3]\n[stress]\ndegraded = 0.5\n")
    expected = BenchmarkProtocol(name="mine", templates=(2, 3), stress=Stress(degraded=0.5))
    assert read_benchmark_protocol(str(tmp_path / "mine.json")) == expected
    if sys.version_info >= (3, 11):
        assert read_benchmark_protocol(str(tmp_path / "mine.toml")) == expected
    written = json.dumps(PRESETS["stress"].to_dict())
    (tmp_path / "again.json").write_text(written)
    assert read_benchmark_protocol(str(tmp_path / "again.json")) == PRESETS["stress"]


def test_all_faults_of_a_protocol_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps(
            {"templates": [4, 2], "pairs": "some", "colour": 1, "stress": {"foreign": 2, "causes": ["rain"]}}
        )
    )
    with pytest.raises(InputError) as fault:
        read_benchmark_protocol(str(path))
    for part in (
        "templates is [4, 2]",
        "pairs is 'some'",
        "'colour' is not a field",
        "foreign is 2",
        "causes is ['rain']",
    ):
        assert part in str(fault.value)
    path.write_text("{")
    with pytest.raises(InputError, match=r"mine\.json.*JSON"):
        read_benchmark_protocol(str(path))
    with pytest.raises(InputError, match="no such preset"):
        read_benchmark_protocol("easy")


def test_from_the_command_to_a_table_of_subgroups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = subjects(tmp_path / "faces", count=14, images=14)
    (tmp_path / "hard.json").write_text(json.dumps(STRESSED.to_dict()))
    (tmp_path / "trained.txt").write_text("s00\n")
    convert.convert(
        {
            "build_set_benchmark": str(source),
            "out": str(tmp_path / "sets"),
            "name": "HARD",
            "protocol": str(tmp_path / "hard.json"),
            "exclude_subjects": str(tmp_path / "trained.txt"),
        }
    )
    said = capsys.readouterr().out
    manifest = json.loads((tmp_path / "sets" / "HARD" / "manifest.json").read_text())
    assert manifest["sha256"] in said
    assert f"{manifest['counts']['templates']} templates" in said
    torch.manual_seed(1)
    save_weights(tmp_path / "tiny.safetensors", build_backbone("ir_tiny"))
    validate_ijb.PROTOCOL.validate(
        {
            "data_root": str(tmp_path / "sets"),
            "dataset_name": "HARD",
            "weights": str(tmp_path / "tiny.safetensors"),
            "aggregator": ["mean", "media_mean"],
            "num_workers": 0,
            "gpus": 0,
            "replicates": 0,
            "out": str(tmp_path / "eval"),
        }
    )
    result = read_result(tmp_path / "eval")
    shares = result["strata"]["share of foreign faces"]
    assert sum(each["pairs"] for each in shares.values()) == result["data"]["pairs"]
    assert set(result["aggregators"]["media_mean"]["strata"]) == set(result["strata"])
    assert "| share of foreign faces" in capsys.readouterr().out
    with pytest.raises(InputError, match="--build_set_benchmark needs --name"):
        convert.convert({"build_set_benchmark": str(source), "out": str(tmp_path)})
    with pytest.raises(InputError, match="--protocol has no effect with --pack"):
        convert.convert({"pack": str(source), "out": str(tmp_path), "protocol": "stills"})
