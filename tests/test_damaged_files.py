"""Damaged files of every kind that is read: refused with a sentence or read, in bounded time and memory.

What carries a checksum is refused or read as it was written: no flipped bit changes a result in silence.
"""

from __future__ import annotations

import io
import itertools
import os
import resource
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from scipy.io import savemat

from coreset import build_aggregator
from data.sources.pair_files import read_pair_set, write_pair_set
from data.sources.recordio import read_face_pack, write_face_pack
from evaluation.protocols.face_points import read_points
from evaluation.protocols.ijb_layout import read_protocol
from evaluation.protocols.matlab_files import read_matlab
from features.store import FeatureWriter, StoreLayout, open_store
from net import build_backbone
from photos.photo_files import read_photo
from photos.videos import frames
from recognition.calibration.thresholds import read_calibration
from recognition.gallery.contents import Gallery
from recognition.gallery.store import enroll, open_gallery
from runtime.errors import InputError
from runtime.json_files import json_text
from tests.damage import damaged
from tests.ijb_layout import write_dataset
from weights import load_aggregator, load_backbone, save_weights

MUTATIONS = int(os.environ.get("MUT", 2000))
# Of one reading; it takes milliseconds, and something that runs away takes for ever.
SECONDS = 20
BYTES = 1 << 30

Reader = Callable[[], object]
# A file, and what reads it; the reader gives what is to be the same as before damage, or None.
Case = tuple[Path, Reader]


@contextmanager
def bounded() -> Iterator[None]:
    """MemoryError beyond a GiB more than now, TimeoutError after so many seconds."""

    def late(*_: object) -> None:
        raise TimeoutError

    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("the limit on memory needs /proc (Linux)")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmData"))
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(line.split()[1]) * 1024 + BYTES, hard))
    handler = signal.signal(signal.SIGALRM, late)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def faults_of(cases: list[Case], mutations: int) -> list[str]:
    """Damages the files by turns; what was wrong, with the number that makes the damage again."""
    contents = [path.read_bytes() for path, _ in cases]
    wanted = [reader() for _, reader in cases]
    found = []
    with bounded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(mutations):
            place = seed % len(cases)
            path, reader = cases[place]
            path.write_bytes(damaged(contents[place], np.random.default_rng(seed)))
            signal.alarm(SECONDS)
            try:
                got = reader()
            except InputError:
                pass
            except Exception as fault:  # noqa: BLE001 (whatever else comes out is what is looked for)
                where = traceback.extract_tb(fault.__traceback__)[-1]
                found.append(f"{path.name} {seed}: {fault!r} at {where.filename}:{where.lineno}"[:300])
            else:
                if wanted[place] is not None and got != wanted[place]:
                    found.append(f"{path.name} {seed}: was read as something else")
            finally:
                signal.alarm(0)
            path.write_bytes(contents[place])
    return found


def photos(folder: Path) -> list[Case]:
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (64, 48))
    image = Pillow.fromarray(pixels)
    exif = Pillow.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[Pillow.Image, dict[str, Any]]] = {
        "jpg": (image, {"exif": exif}),
        "png": (image.convert("RGBA"), {}),
        "webp": (image, {"exif": exif}),
        "tif": (image, {"compression": "tiff_lzw"}),
        "bmp": (image, {}),
        "gif": (image.quantize(16), {}),
        "avif": (image, {}),
        "deep.png": (Pillow.fromarray(pixels[..., 0].astype(np.uint16) * 200), {}),
        "float.tif": (Pillow.fromarray(pixels[..., 0].astype(np.float32)), {}),
        "progressive.jpg": (image, {"progressive": True}),
    }
    cases: list[Case] = []
    for suffix, (picture, options) in kinds.items():
        path = folder / f"photo.{suffix}"
        try:
            picture.save(path, **options)
        except (OSError, KeyError, ValueError):
            continue  # this Pillow was built without it
        cases.append((path, lambda path=path: _checked_pixels(read_photo(path))))
    assert len(cases) >= 8
    return cases


def _checked_pixels(image: np.ndarray) -> None:
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3


def videos(folder: Path) -> list[Case]:
    cases: list[Case] = []
    for suffix, codec in (("mp4", "mp4v"), ("avi", "MJPG")):
        path = folder / f"clip.{suffix}"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 10, (64, 48))
        for number in range(6):
            writer.write(np.full((48, 64, 3), 40 * number, np.uint8))
        writer.release()

        def read(path: Path = path) -> None:
            for frame in itertools.islice(frames(path, 5.0), 200):
                _checked_pixels(frame.image)

        cases.append((path, read))
    return cases


def meta_files(folder: Path) -> list[Case]:
    data = write_dataset(folder, images=False)

    def protocol() -> None:
        read_points(read_protocol(data.root, data.name))

    cases: list[Case] = [(path, protocol) for path in sorted((data.folder / "meta").iterdir())]
    images = [cv2.imencode(".png", np.full((112, 112, 3), 5 * n, np.uint8))[1].tobytes() for n in range(40)]
    pairs = folder / "pairs.bin"
    write_pair_set(pairs, images, [n % 2 == 0 for n in range(20)])
    cases.append((pairs, lambda: read_pair_set(pairs) and None))
    pack = folder / "pack"
    write_face_pack(pack, [(n // 4, image) for n, image in enumerate(images)])

    def records() -> None:
        faces = read_face_pack(pack)
        for key in faces.keys[:50].tolist():
            faces.reader.read(key)

    cases += [(path, records) for path in sorted(pack.iterdir())]
    lists = folder / "list.mat"
    names = np.empty((8, 1), object)
    names[:, 0] = [f"{n}.jpg" for n in range(8)]
    savemat(lists, {"gallery_set": names, "gallery_ids": np.arange(8.0)[:, None]}, do_compression=True)
    cases.append((lists, lambda: read_matlab(lists) and None))
    return cases


def weight_files(folder: Path) -> list[Case]:
    backbone = build_backbone("ir_tiny").eval()
    own = folder / "own.safetensors"
    save_weights(own, backbone)
    options = {"embedding_size": 64, "coreset_size": 3}
    aggregator = build_aggregator("weighted_coreset", options)
    state = {f"model.{key}": value for key, value in backbone.state_dict().items()}
    state |= {f"aggregator.{key}": value for key, value in aggregator.state_dict().items()}
    checkpoint = folder / "best.ckpt"
    content = {"state_dict": state, "backbone_spec": backbone.spec.to_dict()}
    torch.save(
        content
        | {"aggregator_name": "weighted_coreset", "aggregator_options": options, "hyper_parameters": {}},
        checkpoint,
    )
    foreign = folder / "foreign.pt"
    torch.save(backbone.state_dict(), foreign)

    def values(path: Path) -> bytes:
        return _values(load_backbone(path))

    def whole(path: Path) -> bytes:
        found = load_aggregator(path)
        assert found is not None
        return values(path) + _values(found)

    return [
        (own, lambda: values(own)),
        (checkpoint, lambda: whole(checkpoint)),
        (foreign, lambda: _values(load_backbone(foreign)) and None),
    ]


def _values(module: torch.nn.Module) -> bytes:
    stream = io.BytesIO()
    for value in module.state_dict().values():
        stream.write(value.numpy().tobytes())
    return stream.getvalue()


def stores(folder: Path) -> list[Case]:
    layout = StoreLayout(30, 8, columns={"label": "int64"}, part_rows=20)
    identity = {"weights": "a", "flip": "none"}
    store = folder / "store"
    writer = FeatureWriter(store, layout, identity, {"device": "cpu"})
    rng = np.random.default_rng(0)
    for part in writer.pending():
        rows = layout.rows(part)
        writer.write_part(
            part,
            {
                "features": rng.standard_normal((len(rows), 8)).astype(layout.feature_type),
                "norms": rng.uniform(5, 35, len(rows)).astype(np.float32),
                "label": np.arange(len(rows)),
            },
        )
    writer.finish()

    def read_store() -> bytes:
        found = open_store(store, identity)
        return b"".join(np.asarray(array).tobytes() for array in (found.features, found.norms))

    gallery = folder / "gallery.db"
    vectors = np.eye(3, 8, dtype=np.float32)
    people = Gallery(("Ann", "Bob", "Çağla"), vectors, np.ones(3, np.float32), (("1.jpg",),) * 3, "f" * 64)
    enroll(gallery, people)

    def read_gallery() -> object:
        for log in folder.glob("gallery.db-*"):
            log.unlink()
        found = open_gallery(gallery)
        return found.names, found.files, found.fingerprint, found.descriptors.tobytes(), found.norms.tobytes()

    calibration = folder / "calibration.json"
    thresholds = {"1e-02": {"threshold": 0.3, "interval95": [0.2, 0.4]}, "1e-03": {"threshold": 0.4}}
    calibration.write_text(json_text({"schema": 1, "fingerprint": "f" * 64, "thresholds": thresholds}))

    def read_thresholds() -> object:
        read = [read_calibration(calibration, "f" * 64, rate) for rate in thresholds]
        return [each.everything.thresholds[each.fmr] for each in read]

    files = sorted(path for path in store.rglob("*") if path.is_file())
    return [
        *((path, read_store) for path in files),
        (gallery, read_gallery),
        (calibration, read_thresholds),
    ]


KINDS = {"photo": photos, "video": videos, "meta": meta_files, "weights": weight_files, "store": stores}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_refused_or_harmless(kind: str, tmp_path: Path) -> None:
    faults = faults_of(KINDS[kind](tmp_path), MUTATIONS)
    assert not faults, f"{len(faults)} of {MUTATIONS}:\n" + "\n".join(faults[:20])
