"""Write a planned set benchmark in the layout of IJB-B: images or features, meta files, manifest.

The same pool, plan and seed give the same bytes. `evaluation.protocols.ijb_layout` reads the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.sampling.degradations import Degradation, degrade, draw_degradation, next_frame
from data.sampling.views import Kind
from data.sources.decoding import encode_image
from photos.alignment import TEMPLATE
from runtime.errors import InputError
from runtime.escaping import csv_cell
from runtime.files import atomic_write, private_folder
from runtime.input_files import sha256_of
from runtime.progress import progress_bar
from set_benchmark.media import Frame, MediaPool, evenly, kept_suffix
from set_benchmark.plan import BenchmarkPlan, PlannedMedium
from set_benchmark.protocol import BenchmarkProtocol, with_causes

MANIFEST = "manifest.json"
FEATURES = "features"
NOTES = "face_notes.csv"
_FORMAT = 1
# Draws until one of the selected causes occurs; each occurs in about a third of them.
_DRAWS = 200


@dataclass(frozen=True)
class _Face:
    """A line of the meta files; `medium`: index in the plan."""

    file: str
    medium: int
    score: float


def write_benchmark(
    folder: Path, name: str, pool: MediaPool, plan: BenchmarkPlan, protocol: BenchmarkProtocol, seed: int
) -> dict[str, Any]:
    """Write all files into `folder`; returns the content of manifest.json.

    Raises:
        InputError: features without the views that the protocol needs, or an unreadable image.
    """
    private_folder(folder / "meta")
    if pool.bank is not None:
        faces = _write_features(folder / FEATURES, pool, plan, seed)
    else:
        private_folder(folder / "loose_crop")
        faces = list(_write_images(folder / "loose_crop", pool, plan, protocol, seed))
    _write_meta(folder / "meta", name.lower(), pool, plan, faces)
    manifest = {
        "format": _FORMAT,
        "name": name,
        "seed": seed,
        "protocol": protocol.to_dict(),
        "source": _kind_of(pool),
        "counts": _counts(plan, faces),
        "stress": _stress_counts(plan),
        "left_out": {
            "subjects_with_too_few_media": plan.too_few,
            "unreadable": [what for what, _ in sorted(pool.rejected)],
            "near_duplicates": [list(pair) for pair in pool.duplicates],
            "under_two_names": [list(pair) for pair in pool.two_names],
        },
        "made_with": {"numpy": np.__version__, "opencv": cv2.__version__},
        "sha256": _digest(folder, name, protocol, seed),
    }
    atomic_write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return manifest


def _kind_of(pool: MediaPool) -> str:
    if pool.bank is not None:
        return "features"
    return "folder" if pool.source is None else "pack"


def _counts(plan: BenchmarkPlan, faces: list[_Face]) -> dict[str, int]:
    mated = plan.subject_of[plan.pairs[:, 0]] == plan.subject_of[plan.pairs[:, 1]]
    return {
        "subjects": len(plan.subjects),
        "templates": len(plan.subject_of),
        "media": len(plan.media),
        "images": len(faces),
        "pairs": len(plan.pairs),
        "mated_pairs": int(mated.sum()),
        "gallery_templates": int(plan.is_gallery.sum()),
        "probe_templates": int((~plan.is_gallery).sum()),
    }


def _stress_counts(plan: BenchmarkPlan) -> dict[str, int]:
    probes = [each for each in plan.media if not plan.is_gallery[each.template]]
    return {
        "probe_media": len(probes),
        "foreign": sum(each.is_impostor for each in probes),
        "degraded": sum(each.is_degraded for each in probes),
        "repeated": sum(each.times > 1 for each in probes),
    }


def _digest(folder: Path, name: str, protocol: BenchmarkProtocol, seed: int) -> str:
    """SHA-256 over name, seed, protocol and every file."""
    digest = hashlib.sha256(json.dumps([name, seed, protocol.to_dict()], sort_keys=True).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------- images


def _write_images(
    folder: Path, pool: MediaPool, plan: BenchmarkPlan, protocol: BenchmarkProtocol, seed: int
) -> Iterator[_Face]:
    number = 0
    for place, each in enumerate(progress_bar(plan.media, desc="writing", unit=" media", mininterval=0.5)):
        for content, suffix, score in _rendered(pool, each, protocol, (seed, 11, place)):
            for _ in range(each.times):
                number += 1
                file = f"{number}{suffix}"
                (folder / file).write_bytes(content)
                yield _Face(file, place, score)


def _rendered(
    pool: MediaPool, each: PlannedMedium, protocol: BenchmarkProtocol, key: tuple[int, ...]
) -> Iterator[tuple[bytes, str, float]]:
    """Bytes, suffix and detector score of the frames of a medium; unmodified ones as stored."""
    draw = None
    if each.is_degraded:
        draw = _drawn(protocol, np.random.default_rng([*key, 0]))
    for number, (frame, variation) in enumerate(_frames(pool.media[each.shown].frames, each.frames)):
        rng = np.random.default_rng([*key, 1 + number])
        own = draw
        if draw is not None and each.frames > 1:
            own = with_causes(next_frame(draw, rng), protocol.stress.causes)
        elif draw is None and variation:
            own = next_frame(Degradation(), rng)
        if own is not None:
            yield encode_image(degrade(pool.image(frame), own, rng), ".png"), ".png", frame.score
            continue
        encoded = pool.encoded(frame)
        suffix = kept_suffix(encoded)
        if suffix is None:
            encoded, suffix = encode_image(pool.image(frame), ".png"), ".png"
        yield encoded, suffix, frame.score


def _frames(frames: tuple[Frame, ...], wanted: int) -> list[tuple[Frame, int]]:
    """`wanted` frames with the number of their variation, 0 for the original."""
    if wanted <= len(frames):
        return [(frame, 0) for frame in evenly(frames, wanted)]
    return [(frames[number % len(frames)], number // len(frames)) for number in range(wanted)]


def _drawn(protocol: BenchmarkProtocol, rng: np.random.Generator) -> Degradation:
    """Draw a degradation with at least one of the selected causes."""
    stress = protocol.stress
    for _ in range(_DRAWS):
        draw = with_causes(draw_degradation(rng, rng.uniform(*stress.strength)), stress.causes)
        if draw != Degradation():
            return draw
    raise InputError(
        f"stress: strength {stress.strength} of {', '.join(stress.causes)} has no effect. Increase it."
    )


# -------------------------------------------------------------------------------------------- features


def _write_features(folder: Path, pool: MediaPool, plan: BenchmarkPlan, seed: int) -> list[_Face]:
    """Write features in the order of the meta files; returns their lines."""
    bank = pool.bank
    if bank is None:
        raise InputError("expected features.")
    private_folder(folder)
    rows: list[int] = []
    faces: list[_Face] = []
    for place, each in enumerate(plan.media):
        for row in _rows_of(pool, each, np.random.default_rng([seed, 11, place])):
            for _ in range(each.times):
                rows.append(row)
                faces.append(_Face(f"{len(rows)}.feature", place, 1.0))
    wanted = np.array(rows)
    np.save(folder / "features.npy", np.asarray(bank.features[wanted], np.float32))
    np.save(folder / "norms.npy", np.asarray(bank.norms[wanted], np.float32))
    return faces


def _rows_of(pool: MediaPool, each: PlannedMedium, rng: np.random.Generator) -> list[int]:
    rows = [frame.row for frame in pool.media[each.shown].frames]
    plan = pool.bank.plan if pool.bank is not None else None
    if plan is None:
        return evenly(rows, each.frames)
    if each.frames > 1 or each.is_degraded:
        kinds = (Kind.CLIP,) if each.frames > 1 else (Kind.MODERATE, Kind.POOR)
        groups = plan.media(*kinds)
        if not len(groups):
            raise InputError(
                f"the views of these features include none of {', '.join(kind.name for kind in kinds)}, "
                "which the stress of the protocol needs. Cache more views."
            )
        first, count = groups[int(rng.integers(len(groups)))].tolist()
        return rows[first : first + min(count, each.frames)]
    return [rows[plan.kinds.index(Kind.PLAIN)]] if Kind.PLAIN in plan.kinds else rows[:1]


# ------------------------------------------------------------------------------------------------ meta


def _write_meta(folder: Path, name: str, pool: MediaPool, plan: BenchmarkPlan, faces: list[_Face]) -> None:
    def write(part: str, lines: list[str]) -> None:
        (folder / f"{name}_{part}").write_text("\n".join(lines) + "\n", encoding="utf-8")

    points = " ".join(f"{value:.4f}" for value in TEMPLATE.ravel())
    # Ids start at 1, as in IJB.
    template_of = [1 + plan.media[face.medium].template for face in faces]
    write("name_5pts_score.txt", [f"{face.file} {points} {face.score:.6f}" for face in faces])
    write(
        "face_tid_mid.txt",
        [f"{face.file} {t} {1 + face.medium}" for face, t in zip(faces, template_of, strict=True)],
    )
    mated = plan.subject_of[plan.pairs[:, 0]] == plan.subject_of[plan.pairs[:, 1]]
    table = np.column_stack([plan.pairs + 1, mated]).astype(np.int64)
    write("template_pair_label.txt", [f"{a} {b} {label}" for a, b, label in table.tolist()])
    for part, wanted in _lists(plan).items():
        lines = [
            f"{t},{1 + plan.subject_of[t - 1]},{face.file},{1 + face.medium}"
            for face, t in zip(faces, template_of, strict=True)
            if wanted[t - 1]
        ]
        write(f"1N_{part}.csv", ["TEMPLATE_ID,SUBJECT_ID,FILENAME,SIGHTING_ID", *lines])
    write("subjects.csv", ["SUBJECT_ID,NAME", *(f"{n},{_csv(s)}" for n, s in enumerate(plan.subjects, 1))])
    write(NOTES, ["TEMPLATE_ID,MEDIA_ID,FOREIGN,DEGRADED,SOURCE", *_notes(pool, plan, faces)])


def _lists(plan: BenchmarkPlan) -> Mapping[str, NDArray[np.bool_]]:
    gallery = plan.gallery_of[plan.subject_of]
    return {
        "gallery_S1": plan.is_gallery & (gallery == 0),
        "gallery_S2": plan.is_gallery & (gallery == 1),
        "probe_mixed": ~plan.is_gallery,
    }


def _notes(pool: MediaPool, plan: BenchmarkPlan, faces: list[_Face]) -> Iterator[str]:
    """Ground truth of each face, in the order of the other files."""
    for face in faces:
        each = plan.media[face.medium]
        source = _csv(pool.media[each.shown].name)
        yield f"{1 + each.template},{1 + face.medium},{each.is_impostor:d},{each.is_degraded:d},{source}"


def _csv(text: str) -> str:
    return '"' + csv_cell(text).replace('"', '""') + '"'
