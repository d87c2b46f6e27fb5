"""Stores of training features: found by what they hold, and never used for anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backbones.spec import BackboneSpec
from data.sampling import views
from data.sources import fingerprint as fingerprints
from data.sources.face_source import FaceSource, open_source, select
from data.sources.fingerprint import fingerprint
from data.sources.recordio import write_face_pack
from features import cache as feature_cache
from features import extract as embedding
from features import store as feature_store
from features.bank import FACES
from features.cache import Cache, CachedViews, cached_views
from features.options import EmbedOptions
from features.store import written_rows
from net import Backbone, build_backbone
from runs.saved_run import SavedRun, check_same_data
from runtime.errors import InputError, InputWarning
from runtime.json_files import json_text

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SUBJECTS, IMAGES, VIEWS = 4, 6, 3
# Each part has 32 rows of the 72.
ALL_ROWS = SUBJECTS * IMAGES * VIEWS


@pytest.fixture
def folder(face_folder: Callable[..., Path]) -> Path:
    return face_folder(SUBJECTS, IMAGES)


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(1)
    return build_backbone("ir_tiny").eval()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", VIEWS, 0, EmbedOptions())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the faces that were embedded."""
    numbers: list[int] = []
    original = views.ViewedFaces.image

    def image(self: Any, number: int) -> Any:
        numbers.append(number)
        return original(self, number)

    monkeypatch.setattr(views.ViewedFaces, "image", image)
    return numbers


def saved_run_of(fingerprint: dict[str, str]) -> SavedRun:
    return SavedRun(
        Path("last.ckpt"),
        step=0,
        hparams={},
        data_fingerprint=fingerprint,
        backbone_spec=None,
        epochs_done=0,
        images_by_subject=None,
        epoch_items=None,
        unusable=(),
    )


def check(saved: SavedRun, fingerprint: dict[str, str]) -> None:
    check_same_data(saved, "imgs", fingerprint, ["s000"], None)


def rows_of(cached: CachedViews) -> np.ndarray:
    """(I, V, D) features of the images of a bank."""
    bank = cached.bank
    return np.stack([bank.features[bank.starts + view] for view in range(len(bank.plan))], axis=1)


def assert_pictures_are_of_the_rows(cached: CachedViews, backbone: Backbone) -> None:
    """What is drawn for a row of the bank is what its feature was made from."""
    bank = cached.bank
    rows = (bank.starts[:, None] + np.arange(len(bank.plan))).reshape(-1)
    images = np.stack([cached.faces.image(int(row)) for row in rows])
    features, _ = embedding.extract(images, backbone)
    np.testing.assert_allclose(features, bank.features[rows], atol=2e-5)


CHANGES = {
    "weights": "backbone_sha256",
    "channel_order": "colour_order",
    "mean": "pixel_scale",
    "normalises_illumination": "illumination_normalisation",
    "precision": "precision",
    "feature_type": "features",
    "swap_color_channel": "colours",
    "decoder": "decoder",
    "seed": "views",
    "more views": "views",
    "recipe of the views": "views",
    "way of embedding": "embedding",
    "another image in place": "images",
    "other people under the same names": "images",
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_input_of_a_feature_changes_the_store_and_the_fingerprint(
    change: str,
    folder: Path,
    backbone: Backbone,
    cache: Cache,
    made: list[int],
    monkeypatch: pytest.MonkeyPatch,
    drawn_face: Callable[[int, int], bytes],
) -> None:
    before = cached_views(backbone, open_source(folder), cache)
    saved = saved_run_of(before.bank.identity)
    kept = rows_of(before).copy()
    made.clear()
    again = cached_views(backbone, open_source(folder), cache)
    assert made == []
    check(saved, again.bank.identity)

    swap, spec = False, backbone.spec
    if change == "weights":
        with torch.no_grad():
            next(backbone.parameters()).view(-1)[0] += 1e-3
    elif change in ("channel_order", "mean", "normalises_illumination"):
        values = {"channel_order": "RGB", "mean": spec.mean + 1e-5, "normalises_illumination": True}
        backbone.spec = BackboneSpec(**spec.to_dict() | {change: values[change]})
    elif change == "precision":
        cache = replace(cache, options=EmbedOptions(precision="bf16-mixed"))
    elif change == "feature_type":
        cache = replace(cache, options=EmbedOptions(feature_type="float16"))
    elif change == "swap_color_channel":
        swap = True
    elif change == "decoder":
        monkeypatch.setitem(fingerprints.PIXEL_LIBRARIES, "decoder", "Pillow of tomorrow")
    elif change == "seed":
        cache = replace(cache, seed=1)
    elif change == "more views":
        cache = replace(cache, views=VIEWS + 1)
    elif change == "recipe of the views":
        monkeypatch.setattr(views, "_REVISION", "of tomorrow")
    elif change == "way of embedding":
        monkeypatch.setattr(embedding, "_REVISION", "of tomorrow")
    elif change == "another image in place":
        (folder / "s000" / "0.png").write_bytes(drawn_face(100, 0))
    else:
        for subject in range(SUBJECTS):
            for number in range(IMAGES):
                (folder / f"s{subject:03}" / f"{number}.png").write_bytes(drawn_face(100 + subject, number))

    after = cached_views(backbone, open_source(folder, swap_color_channel=swap), cache)
    assert len(list(cache.folder.iterdir())) == 2
    # Where one image is another, its part alone is made again; all else depends on all images.
    one = change == "another image in place"
    assert len(made) == (32 if one else len(after.bank) * cache.views)
    if change not in ("decoder", "more views", "recipe of the views", "way of embedding"):
        same = np.allclose(rows_of(after)[:, :VIEWS].astype(np.float32), kept, atol=1e-7)
        assert not same
    assert_pictures_are_of_the_rows(after, backbone) if change in ("weights", "seed") or one else None

    if change == "decoder":
        with pytest.warns(InputWarning, match="Pillow of tomorrow"):
            check(saved, after.bank.identity)
        return
    with pytest.raises(InputError, match=rf"(?m)^  {CHANGES[change]}: "):
        check(saved, after.bank.identity)
    # The first store is as it was.
    np.testing.assert_array_equal(rows_of(before), kept)


def test_packs_of_different_subjects_have_different_stores(
    tmp_path: Path, backbone: Backbone, cache: Cache, made: list[int], drawn_face: Callable[[int, int], bytes]
) -> None:
    for name, first in (("a", 0), ("b", 100)):
        images = [(s, drawn_face(first + s, n)) for s in range(3) for n in range(3)]
        write_face_pack(tmp_path / name, images)
        cached_views(backbone, open_source(tmp_path / name, use_mxrecord=True), cache)
    assert len(made) == 2 * 9 * VIEWS
    assert len(list(cache.folder.iterdir())) == 2


def test_subset_of_images_uses_the_store_of_all(
    folder: Path, backbone: Backbone, cache: Cache, made: list[int]
) -> None:
    whole = cached_views(backbone, open_source(folder), cache)
    made.clear()
    rows = np.flatnonzero(whole.bank.labels != 1)[::-2].copy()
    part = select(open_source(folder), rows)
    found = cached_views(backbone, part, cache)
    assert made == []
    assert len(list(cache.folder.iterdir())) == 1
    np.testing.assert_array_equal(rows_of(found), rows_of(whole)[rows])
    assert_pictures_are_of_the_rows(found, backbone)
    # Fewer views of it, and from another copy of the data.
    fewer = cached_views(backbone, part, replace(cache, views=1))
    np.testing.assert_array_equal(rows_of(fewer)[:, 0], rows_of(whole)[rows, 0])
    assert len(list(cache.folder.iterdir())) == 1
    # What the run is does not depend on the store that served it.
    fresh = cached_views(backbone, part, replace(cache, folder=cache.folder / "fresh"))
    assert fresh.bank.identity == found.bank.identity
    np.testing.assert_allclose(rows_of(fresh), rows_of(found), atol=2e-6)


def test_excluded_subjects_are_not_embedded(
    folder: Path, backbone: Backbone, cache: Cache, made: list[int]
) -> None:
    source = open_source(folder)
    cached_views(backbone, select(source, np.flatnonzero(source.labels != 1)), cache)
    assert len(made) == ALL_ROWS * 3 // 4
    made.clear()
    # The others later: what is there is copied, part by part.
    both = cached_views(backbone, source, cache)
    assert IMAGES * VIEWS <= len(made) < ALL_ROWS
    assert_pictures_are_of_the_rows(both, backbone)


def test_corrected_label_needs_no_embedding_and_is_kept(
    folder: Path, backbone: Backbone, cache: Cache, made: list[int]
) -> None:
    cached_views(backbone, open_source(folder), cache)
    made.clear()
    (folder / "s000" / "0.png").rename(folder / "s001" / "9.png")
    mended = cached_views(backbone, open_source(folder), cache)
    assert made == []
    assert_pictures_are_of_the_rows(mended, backbone)
    # Whoever trains from the new store by --features gets the new labels.
    given = feature_cache.precomputed_features(Path(mended.bank.name))
    assert np.bincount(given.bank.labels).tolist() == [5, 7, 6, 6]
    assert given.bank.identity == mended.bank.identity


def test_parts_of_an_interrupted_run_are_reused_after_removing_an_image(
    folder: Path, backbone: Backbone, cache: Cache, made: list[int]
) -> None:
    broken = folder / "s003" / "5.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:50])
    with pytest.raises(InputError, match=r"s003/5\.png"):
        cached_views(backbone, open_source(folder), cache)
    made.clear()
    broken.unlink()
    found = cached_views(backbone, open_source(folder), cache)
    assert set(made) == set(range(64, 69))
    assert_pictures_are_of_the_rows(found, backbone)


def test_old_and_damaged_stores_are_not_used(
    folder: Path, backbone: Backbone, cache: Cache, made: list[int], drawn_face: Callable[[int, int], bytes]
) -> None:
    cached_views(backbone, open_source(folder), cache)
    (store,) = cache.folder.iterdir()
    whole = (store / feature_store.MANIFEST).read_text()
    manifest = {key: value for key, value in json.loads(whole).items() if key != "sha256"}
    part = select(open_source(folder), np.arange(6))
    made.clear()
    (store / feature_store.MANIFEST).write_text(json.dumps(manifest | {"format": 1}))
    cached_views(backbone, part, cache)
    assert len(made) == 6 * VIEWS
    with pytest.raises(InputError, match="format 1"):
        feature_cache.precomputed_features(store)
    with pytest.raises(InputError, match="format 1"):
        cached_views(backbone, open_source(folder), cache)
    # A list that no store holds takes from damaged ones what is sound: the second and third part.
    (store / feature_store.MANIFEST).write_text(whole)
    features = np.load(store / "features.npy", mmap_mode="r+")
    features[0] += 1
    del features
    with pytest.raises(InputError, match="are damaged"):
        cached_views(backbone, open_source(folder), cache)
    (folder / "s003" / "9.png").write_bytes(drawn_face(3, 9))
    made.clear()
    cached_views(backbone, open_source(folder), cache)
    assert set(made) == {*range(32), *range(64, 75)}
    (store / "features.npy").write_bytes(b"")
    cached_views(backbone, select(open_source(folder), np.arange(7)), cache)


def test_training_from_images_records_its_images(folder: Path, drawn_face: Callable[..., bytes]) -> None:
    def source() -> FaceSource:
        return open_source(folder)

    saved = saved_run_of(fingerprint(source()))
    check(saved, fingerprint(source()))
    (folder / "s000" / "0.png").write_bytes(drawn_face(100, 0))
    with pytest.raises(InputError) as fault:
        check(saved, fingerprint(source()))
    assert "images: 24, " in str(fault.value)
    assert "labels" not in str(fault.value)


def changed_json(path: Path, change: Callable[[dict[str, Any]], object], *, checksum: bool) -> None:
    """Changes a JSON file; as a version without a checksum would have written it, or with a right one."""
    content = {key: value for key, value in json.loads(path.read_text()).items() if key != "sha256"}
    change(content)
    path.write_text(json_text(content) if checksum else json.dumps(content))


STORE_CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no_identity": lambda m: m.pop("identity"),
    "identity_number": lambda m: m["identity"].update(views=3),
    "rows": lambda m: m["layout"].update(num_rows=10**15),
    "rows_text": lambda m: m["layout"].update(num_rows="9"),
    "part_rows": lambda m: m["layout"].update(part_rows=10**15),
    "size": lambda m: m["layout"].update(embedding_size=10**12),
    "column_path": lambda m: m["layout"]["columns"].update({"../../secret": "int64"}),
    "column_type": lambda m: m["layout"]["columns"].update(label="O"),
    "column_garbage": lambda m: m["layout"]["columns"].update(label="x9"),
    "no_layout": lambda m: m.update(layout={}),
    "fewer_digests": lambda m: m["digests"].pop(),
    "digest_number": lambda m: m["digests"].__setitem__(0, 3),
    "digest": lambda m: m["digests"].__setitem__(0, "0" * 64),
    "format": lambda m: m.update(format="3"),
    "auxiliary_size": lambda m: m["identity"].update(auxiliary_size="x"),
    "much_auxiliary": lambda m: m["identity"].update(auxiliary_size="1000"),
    "no_stamps": lambda m: m["layout"]["columns"].pop("stamp"),
}
FACES_CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "fewer": lambda f: f["subjects"].pop(),
    "more": lambda f: f["subjects"].append("x"),
    "other_name": lambda f: f["subjects"].__setitem__(0, "s00O"),
    "exchanged": lambda f: f["subjects"].reverse(),
    "number": lambda f: f["subjects"].__setitem__(0, 3),
    "kind": lambda f: f["kinds"].__setitem__(0, "X"),
    "no_kinds": lambda f: f.update(kinds=[], groups=[]),
    "groups": lambda f: f["groups"].pop(),
    "no_subjects": lambda f: f.pop("subjects"),
}


def test_inconsistent_files_of_a_store_are_reported(folder: Path, backbone: Backbone, cache: Cache) -> None:
    cached_views(backbone, open_source(folder), cache)
    (store,) = cache.folder.iterdir()
    for name, changes in ((feature_store.MANIFEST, STORE_CHANGES), (FACES, FACES_CHANGES)):
        path = store / name
        whole = path.read_bytes()
        for change in changes.values():
            for checksum in (True, False):
                path.write_bytes(whole)
                changed_json(path, change, checksum=checksum)
                with pytest.raises(InputError, match=str(store)):
                    feature_cache.precomputed_features(store)
                written_rows(store)
        if name == feature_store.MANIFEST:
            # Without stamps, and of the images that it is named by.
            with pytest.raises(InputError, match=str(store)):
                cached_views(backbone, open_source(folder), cache)
        for content in (b"", b"[", whole[:-40], whole.replace(b"PLAIN", b"PLAIM"), b"[" * 100_000):
            path.write_bytes(content)
            with pytest.raises(InputError, match=str(path)):
                feature_cache.precomputed_features(store)
            # A damaged store of other images stops nobody.
            cached_views(backbone, select(open_source(folder), np.arange(6)), cache)
        path.write_bytes(whole)
    feature_cache.precomputed_features(store)


def test_store_without_checksum_is_refused(folder: Path, backbone: Backbone, cache: Cache) -> None:
    cached_views(backbone, open_source(folder), cache)
    (store,) = cache.folder.iterdir()
    changed_json(store / feature_store.MANIFEST, lambda m: m.update(format=3), checksum=False)
    with pytest.raises(InputError, match="checksum"):
        feature_cache.precomputed_features(store)
