"""RecordIO packs: MXNet's own files record by record, damage named, written as MXNet writes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import data.sources.recordio
from data.sources.recordio import RecordReader, read_face_pack, record_writer, write_face_pack
from runtime.errors import InputError

PACKS = ("small", "multipart")
MAGIC = struct.pack("<I", 0xCED7230A)


@pytest.fixture
def packs(golden: Path) -> Path:
    return golden / "recordio"


def copied(pack: Path, tmp_path: Path) -> Path:
    for name in ("train.rec", "train.idx"):
        (tmp_path / name).write_bytes((pack / name).read_bytes())
    return tmp_path


def opened(folder: Path) -> RecordReader:
    return RecordReader(folder / "train.rec", folder / "train.idx")


def assert_as_expected(reader: RecordReader, expected: Path) -> None:
    records = json.loads(expected.read_text())
    assert sorted(reader.keys.tolist()) == sorted(map(int, records))
    for key, record in records.items():
        header, payload = reader.read(int(key))
        assert list(header.labels) == record["label"]
        assert (header.id, header.id2) == (record["id"], record["id2"])
        assert hashlib.sha256(payload).hexdigest() == record["payload_sha256"]


@pytest.mark.parametrize("name", PACKS)
def test_every_record_is_mxnets(packs: Path, name: str) -> None:
    assert_as_expected(opened(packs / name), packs / name / "expected.json")


@pytest.mark.parametrize("name", [*PACKS, "faces112"])
def test_every_record_of_the_conformance_data_is_mxnets(shared: Path, name: str) -> None:
    folder = shared / "conformance" / "recordio" / name
    assert_as_expected(opened(folder), folder / "expected.json")


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.parametrize(
    "fault", ["missing", "off by four", "truncated", "empty", "no numbers", "of another file"]
)
def test_index_that_is_wrong_is_rebuilt(packs: Path, tmp_path: Path, name: str, fault: str) -> None:
    folder = copied(packs / name, tmp_path)
    idx = folder / "train.idx"
    lines = idx.read_text().splitlines()
    numbers = [tuple(map(int, line.split())) for line in lines]
    text = {
        "off by four": "".join(f"{key}\t{offset + 4}\n" for key, offset in numbers),
        "truncated": "\n".join(lines[:-2]) + "\n",
        "empty": "",
        "no numbers": "<html>\n",
        "of another file": "".join(f"{key}\t{offset + 10_000_000}\n" for key, offset in numbers),
    }
    if fault == "missing":
        idx.unlink()
    else:
        idx.write_text(text[fault])
    assert_as_expected(opened(folder), packs / name / "expected.json")


def test_labels_are_the_subjects(packs: Path) -> None:
    pack = read_face_pack(packs / "small")
    records = json.loads((packs / "small" / "expected.json").read_text())
    images = {int(key): int(r["label"][0]) for key, r in records.items() if r["payload_bytes"]}
    assert dict(zip(pack.keys.tolist(), pack.labels.tolist(), strict=True)) == images


def test_labels_come_from_the_headers_where_no_ranges_are(packs: Path, tmp_path: Path) -> None:
    pack = read_face_pack(packs / "multipart")
    assert pack.labels.tolist() == list(range(7))
    # Ranges that leave an image out are not believed either.
    with record_writer(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
        writer.write(0, b"", (4.0, 5.0))
        for key, subject in ((1, 5), (2, 5), (3, 9)):
            writer.write(key, b"x", (float(subject), 1.0))
        writer.write(4, b"", (1.0, 3.0))
    assert read_face_pack(tmp_path).labels.tolist() == [5, 5, 9]
    with record_writer(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
        writer.write(0, b"", (2.0, 3.0))
        writer.write(1, b"x", (5.0, 1.0))
        writer.write(2, b"", (1.0, 1e15))
    assert read_face_pack(tmp_path).labels.tolist() == [5]


@pytest.mark.parametrize(
    ("key", "damage", "said"),
    [
        (7, lambda data, at: data[:at] + b"\x00" + data[at + 1 :], "expected the magic number"),
        (
            12,
            lambda data, at: data[: at + 4] + struct.pack("<I", 99_999) + data[at + 8 :],
            "length is 99,999",
        ),
        (12, lambda data, at: data[: at + 4] + struct.pack("<I", 5 << 29) + data[at + 8 :], "out of order"),
        (12, lambda data, at: data[: at + 8] + struct.pack("<I", 9_999) + data[at + 12 :], "too short"),
        (39, lambda data, at: data[: at + 10], "file ends"),
        (38, lambda data, at: data[: at + 6], "file ends"),
    ],
)
def test_damage_is_named_by_file_key_and_byte(
    packs: Path, tmp_path: Path, key: int, damage, said: str
) -> None:
    folder = copied(packs / "small", tmp_path)
    offsets = dict(line.split() for line in (folder / "train.idx").read_text().splitlines())
    offset = int(offsets[str(key)])
    rec = folder / "train.rec"
    rec.write_bytes(damage(rec.read_bytes(), offset))
    with pytest.raises(InputError, match=said) as fault:
        opened(folder).read(key)
    assert f"{rec}, record {key} at byte {offset:,}" in str(fault.value)


def test_empty_or_missing_pack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_face_pack(tmp_path)
    (tmp_path / "train.rec").write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        read_face_pack(tmp_path)


def test_unknown_key_is_refused(packs: Path) -> None:
    with pytest.raises(InputError, match="has no record 40; its keys are 0 to 39"):
        opened(packs / "small").read(40)
    with pytest.raises(InputError, match="has no record -1"):
        opened(packs / "small").read(-1)


def test_writing_the_same_records_gives_the_same_bytes(packs: Path, tmp_path: Path) -> None:
    for name in PACKS:
        reader = opened(packs / name)
        target = tmp_path / name
        with record_writer(target / "train.rec", target / "train.idx") as writer:
            for key in reader.keys.tolist():
                header, payload = reader.read(key)
                writer.write(key, payload, header.labels)
        for part in ("train.rec", "train.idx"):
            assert (target / part).read_bytes() == (packs / name / part).read_bytes()


record = st.lists(st.sampled_from([MAGIC, MAGIC[:3], b"\x00", b"abcd", b"xyz"]), max_size=12).map(b"".join)


@given(
    st.lists(
        st.tuples(record, st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=4)),
        min_size=1,
        max_size=5,
    )
)
def test_written_data_are_read_back(tmp_path_factory: pytest.TempPathFactory, records) -> None:
    folder = tmp_path_factory.mktemp("pack")
    with record_writer(folder / "train.rec", folder / "train.idx") as writer:
        for key, (payload, labels) in enumerate(records):
            writer.write(key * 3 + 1, payload, tuple(labels))
    for reader in (opened(folder), RecordReader(folder / "train.rec")):
        for key, (payload, labels) in enumerate(records):
            header, read = reader.read(key * 3 + 1)
            assert read == payload
            assert list(header.labels) == labels


def test_face_pack_is_laid_out_as_insightfaces(packs: Path, tmp_path: Path) -> None:
    images = [(2, b"a"), (2, b"bb"), (5, b"c"), (7, b"dddd")]
    assert write_face_pack(tmp_path, images) == 4
    pack = read_face_pack(tmp_path)
    assert pack.keys.tolist() == [1, 2, 3, 4]
    assert pack.labels.tolist() == [2, 2, 5, 7]
    reader = pack.reader
    assert reader.header(0).labels == (5.0, 8.0)
    assert [reader.header(key).labels for key in (5, 6, 7)] == [(1.0, 3.0), (3.0, 4.0), (4.0, 5.0)]
    assert reader.read(4)[1] == b"dddd"
    assert (tmp_path / "property").read_text() == "3,112,112"
    # MXNet's own `small` has the same layout.
    small = read_face_pack(packs / "small").reader
    assert small.header(0).labels == (34.0, 40.0)


def test_pack_that_cannot_be_finished_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="subject 1 follows 2"):
        write_face_pack(tmp_path, [(2, b"a"), (1, b"b")])
    with pytest.raises(InputError, match="no images to pack"):
        write_face_pack(tmp_path, [])
    assert list(tmp_path.iterdir()) == []


def digest(reader: RecordReader) -> str:
    return hashlib.sha256(b"".join(reader.read(key)[1] for key in reader.keys.tolist())).hexdigest()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same(packs: Path, method: str) -> None:
    reader = opened(packs / "multipart")
    here = digest(reader)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(digest, [reader] * 4) == [here] * 4
    assert len(pickle.dumps(reader)) < 5_000


def test_keys_with_gaps_are_found(tmp_path: Path) -> None:
    keys = np.random.default_rng(0).permutation(1000)[:50].tolist()
    with record_writer(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
        for key in keys:
            writer.write(key, b"%d" % key)
    reader = opened(tmp_path)
    assert [reader.read(key)[1] for key in keys] == [b"%d" % key for key in keys]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("empty", "the file is empty"),
        ("length_too_long_at_record_12", r"record 12 at byte 14,044: its length is 536,870,911"),
        ("magic_flipped_at_record_7", r"record 7 at byte 7,612: expected the magic number"),
        ("truncated_in_record_10", r"record 10 at byte 11,4\d\d: .*the file ends"),
    ],
)
def test_broken_conformance_pack_names_file_record_and_byte(shared: Path, case: str, said: str) -> None:
    folder = shared / "conformance" / "recordio" / "broken" / case
    with pytest.raises(InputError, match=said) as fault:
        digest(read_face_pack(folder).reader)
    assert str(folder / "train.rec") in str(fault.value)


@pytest.mark.parametrize("case", ["no_idx", "stale_idx", "idx_cut_short", "jpeg_destroyed_at_record_5"])
def test_broken_index_or_image_leaves_the_records_readable(shared: Path, case: str) -> None:
    recordio = shared / "conformance" / "recordio"
    records = json.loads((recordio / "small" / "expected.json").read_text())
    reader = read_face_pack(recordio / "broken" / case).reader
    read = {str(key): hashlib.sha256(reader.read(key)[1]).hexdigest() for key in reader.keys.tolist()}
    differing = [key for key, record in records.items() if read[key] != record["payload_sha256"]]
    assert differing == (["5"] if case.startswith("jpeg") else [])


def test_index_whose_keys_are_of_other_records_is_rebuilt(tmp_path: Path) -> None:
    # All of one size, so that every offset of the wrong index holds a record.
    with record_writer(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
        for key in (3, 1, 2, 0):
            writer.write(key, b"%04d" % key)
    idx = tmp_path / "train.idx"
    offsets = [line.split()[1] for line in idx.read_text().splitlines()]
    idx.write_text("".join(f"{key}\t{offset}\n" for key, offset in enumerate(offsets)))
    assert [opened(tmp_path).read(key)[1] for key in range(4)] == [b"0000", b"0001", b"0002", b"0003"]


def test_index_counts_where_records_have_no_number_of_their_own(tmp_path: Path) -> None:
    rec, idx = tmp_path / "train.rec", tmp_path / "train.idx"
    with record_writer(rec, idx) as writer:
        for payload in (b"a", b"bb", b"ccc"):
            writer.write(0, payload)
    offsets = [line.split()[1] for line in idx.read_text().splitlines()]
    idx.write_text("".join(f"{key}\t{offset}\n" for key, offset in zip((7, 9, 8), offsets, strict=True)))
    assert {key: opened(tmp_path).read(key)[1] for key in (7, 8, 9)} == {7: b"a", 8: b"ccc", 9: b"bb"}
    idx.unlink()
    assert [RecordReader(rec).read(key)[1] for key in range(3)] == [b"a", b"bb", b"ccc"]


def test_index_of_some_records_only_is_followed(packs: Path, tmp_path: Path) -> None:
    folder = copied(packs / "small", tmp_path)
    lines = (folder / "train.idx").read_text().splitlines(keepends=True)
    (folder / "train.idx").write_text("".join(line for line in lines if line.split()[0] not in ("2", "3")))
    pack = read_face_pack(folder)
    assert pack.keys.tolist() == [key for key in range(1, 34) if key not in (2, 3)]
    whole = read_face_pack(packs / "small")
    assert pack.labels.tolist() == [
        label
        for key, label in zip(whole.keys.tolist(), whole.labels.tolist(), strict=True)
        if key not in (2, 3)
    ]
    assert pack.reader.read(1) == whole.reader.read(1)
    (note,) = pack.notes
    assert str(folder / "train.idx") in note
    assert f"{len(lines) - 2} records" in note
    assert whole.notes == ()


@pytest.mark.parametrize("with_index", [True, False])
def test_pack_cut_between_two_records_is_not_taken_for_a_smaller_one(
    packs: Path, tmp_path: Path, with_index: bool
) -> None:
    folder = copied(packs / "small", tmp_path)
    offset = int((folder / "train.idx").read_text().splitlines()[20].split()[1])
    rec = folder / "train.rec"
    rec.write_bytes(rec.read_bytes()[:offset])
    if not with_index:
        (folder / "train.idx").unlink()
    said = f"record 20 at byte {offset:,}: .*file ends before" if with_index else "keys up to 39.*one is 19"
    with pytest.raises(InputError, match=said):
        read_face_pack(folder)


@pytest.mark.parametrize("name", PACKS)
def test_labels_read_at_once_are_those_of_the_headers(
    packs: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = opened(packs / name)
    expected = [reader.header(key).labels[0] for key in reader.keys.tolist()]
    for at_once in (3, 1000):
        monkeypatch.setattr(data.sources.recordio, "_RECORDS_AT_ONCE", at_once)
        assert reader.first_labels(reader.keys).tolist() == expected
        assert reader.first_labels(reader.keys[::-1]).tolist() == expected[::-1]
    with pytest.raises(InputError, match="has no record 77"):
        reader.first_labels(np.array([1, 77]))


def test_reading_labels_finds_every_damaged_record(packs: Path, tmp_path: Path) -> None:
    folder = copied(packs / "small", tmp_path)
    whole = (folder / "train.rec").read_bytes()
    numbers = [tuple(map(int, line.split())) for line in (folder / "train.idx").read_text().splitlines()]
    reader = opened(folder)
    for key, offset in numbers:
        for place, word in ((0, 1), (4, 99_999), (4, 8), (4, 3 << 29), (8, 0xFFFFFFFF)):
            damaged = bytearray(whole)
            struct.pack_into("<I", damaged, offset + place, word)
            # In place: the file stays the one that the reader has mapped.
            with (folder / "train.rec").open("r+b") as stream:
                stream.write(damaged)
            with pytest.raises(InputError, match=f"record {key} at byte {offset:,}: "):
                reader.first_labels(reader.keys)


def test_more_images_than_labels_can_count_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data.sources.recordio, "_FIRST_INEXACT", 20)
    with pytest.raises(InputError, match="more than 20 records"):
        write_face_pack(tmp_path, [(0, b"x")] * 30)
    assert write_face_pack(tmp_path, [(0, b"x")] * 18) == 18


def test_killed_writer_leaves_the_old_pack(tmp_path: Path) -> None:
    write_face_pack(tmp_path, [(0, b"old"), (1, b"pack")])
    call = "import sys; from pathlib import Path; from data.sources.recordio import write_face_pack; "
    call += "write_face_pack(Path(sys.argv[1]), ((n, bytes(5000)) for n in range(10**9)))"
    root = Path(__file__).resolve().parents[3]
    environment = os.environ | {"PYTHONPATH": str(root)}
    process = subprocess.Popen([sys.executable, "-c", call, str(tmp_path)], env=environment)
    while process.poll() is None and not any(
        part.stat().st_size > 10_000 for part in tmp_path.glob(".train.*.rec")
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    pack = read_face_pack(tmp_path)
    assert [pack.reader.read(key)[1] for key in pack.keys.tolist()] == [b"old", b"pack"]


def write_labels(folder: Path, labels: list[float], ranges: bool = False, images_each: int = 2) -> Path:
    """A pack with these labels; `ranges`: with identity records, as InsightFace's have."""
    with record_writer(folder / "train.rec", folder / "train.idx") as writer:
        key = 0
        if ranges:
            last = len(labels) * images_each
            writer.write(0, b"", (float(last + 1), float(last + 1 + len(labels))))
            key = 1
        for label in labels:
            for _ in range(images_each):
                writer.write(key, b"image", (label, 1.0) if ranges else (label,))
                key += 1
        for number in range(len(labels)) if ranges else ():
            first = 1 + number * images_each
            writer.write(key + number, b"", (float(first), float(first + images_each)))
    return folder


FIVE = [float(2**24 + number) for number in range(5)]


def test_labels_that_are_inexact_as_floats_are_refused(tmp_path: Path) -> None:
    assert len(set(np.array(FIVE, np.float32).tolist())) == 3
    for ranges, place, count in ((False, 2, "10 records"), (True, 3, "5 records")):
        with pytest.raises(InputError) as fault:
            read_face_pack(write_labels(tmp_path, [7.0, *FIVE], ranges))
        for fact in (f"train.rec, record {place}:", "16777216", "16,777,216", count):
            assert fact in str(fault.value)
    with pytest.raises(InputError, match="subject 16777216"):
        write_face_pack(tmp_path / "own", [(2**24 - 1, b"x"), (2**24, b"x")])
    assert read_face_pack(write_labels(tmp_path, [2.0**24 - 1])).labels.tolist() == [2**24 - 1] * 2


@pytest.mark.parametrize("label", [float("nan"), float("inf"), float("-inf"), -1.0, 2.5])
@pytest.mark.parametrize("ranges", [False, True])
def test_invalid_label_is_named_by_its_record(tmp_path: Path, label: float, ranges: bool) -> None:
    folder = write_labels(tmp_path, [3.0, label, 4.0], ranges)
    with pytest.raises(InputError, match=rf"train\.rec, record {3 if ranges else 2}: .*{label:g}"):
        read_face_pack(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_invalid_first_record_is_named(tmp_path: Path, value: float) -> None:
    with record_writer(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
        writer.write(0, b"", (value, value))
        writer.write(1, b"image", (0.0,))
    with pytest.raises(InputError, match=r"train\.rec, record 0: "):
        read_face_pack(tmp_path)


@pytest.mark.parametrize("odd", [False, True])
def test_ranges_that_floats_round_do_not_move_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: bool
) -> None:
    """Keys as those of a pack of 17 million images, whose bounds are rounded to whole pairs."""
    counts = [3, 1, 4, 1] if odd else [3, 2, 4, 2]
    start = 2**24 + 3
    ends = start + np.cumsum(counts)
    with record_writer(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
        writer.write(0, b"", (float(ends[-1]), float(ends[-1] + len(counts))))
        expected = np.repeat(np.arange(len(counts)), counts).tolist()
        for place, subject in enumerate(expected):
            writer.write(start + place, b"image", (float(subject), 1.0))
        for number, (count, end) in enumerate(zip(counts, ends.tolist(), strict=True)):
            writer.write(int(ends[-1]) + number, b"", (float(end - count), float(end)))
    pack = read_face_pack(tmp_path)
    assert pack.keys.tolist() == list(range(start, start + len(expected)))
    assert pack.labels.tolist() == expected


def lines_without(folder: Path, keys: set[int]) -> None:
    idx = folder / "train.idx"
    idx.write_text("".join(e for e in idx.read_text().splitlines(True) if int(e.split()[0]) not in keys))


@pytest.mark.parametrize("keys", [{5}, {1, 2, 3}, {6, 7, 8, 9, 10}, {38}, {20, 36, 37}], ids=str)
def test_records_that_an_index_leaves_out_are_reported(packs: Path, tmp_path: Path, keys: set[int]) -> None:
    folder = copied(packs / "small", tmp_path)
    lines_without(folder, keys)
    assert any(str(folder / "train.idx") in note for note in read_face_pack(folder).notes)


@pytest.mark.parametrize("bit", [0, 3, 17, 40])
@pytest.mark.parametrize("row", [0, 5, 20, 39])
def test_flipped_bit_in_a_number_in_an_id_is_reported(
    packs: Path, tmp_path: Path, row: int, bit: int
) -> None:
    folder = copied(packs / "small", tmp_path)
    offset = int((folder / "train.idx").read_text().splitlines()[row].split()[1])
    rec, expected = folder / "train.rec", read_face_pack(folder)
    content = bytearray(rec.read_bytes())
    content[offset + 16 + bit // 8] ^= 1 << bit % 8
    rec.write_bytes(content)
    # The index says which record is which.
    pack = read_face_pack(folder)
    assert (pack.keys.tolist(), pack.labels.tolist()) == (expected.keys.tolist(), expected.labels.tolist())
    (folder / "train.idx").unlink()
    with pytest.raises(InputError, match=rf"at byte {offset:,}: its id is"):
        read_face_pack(folder)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -1e30, 1e30])
@pytest.mark.parametrize("where", ["announced", "range"])
def test_ranges_that_are_no_numbers_of_records_are_refused_or_ignored(
    tmp_path: Path, value: float, where: str
) -> None:
    with record_writer(tmp_path / "train.rec", tmp_path / "train.idx") as writer:
        writer.write(0, b"", (3.0 if where == "range" else value, 4.0))
        for key in (1, 2):
            writer.write(key, b"x", (7.0, 1.0))
        writer.write(3, b"", (1.0 if where == "announced" else value, 3.0))
    try:
        pack = read_face_pack(tmp_path)
    except InputError as fault:
        assert "train.rec" in str(fault)  # noqa: PT017 (either is right)
    else:
        assert set(pack.labels.tolist()) <= {7, 3, 0}
        assert len(pack.keys) <= 4


def test_two_ranges_of_one_label_are_reported(tmp_path: Path) -> None:
    write_face_pack(tmp_path, [(subject, b"x") for subject in (0, 0, 1, 1, 2, 2)])
    rec = tmp_path / "train.rec"
    offsets = [int(line.split()[1]) for line in (tmp_path / "train.idx").read_text().splitlines()]
    content = bytearray(rec.read_bytes())
    # The label of the first image of subject 1, behind the header.
    content[offsets[3] + 32 : offsets[3] + 36] = struct.pack("<f", 2.0)
    rec.write_bytes(content)
    with pytest.raises(InputError, match="label 2"):
        read_face_pack(tmp_path)
