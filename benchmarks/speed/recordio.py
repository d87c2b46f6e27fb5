"""Random reads of a RecordIO pack: memory map against seek, read and struct.unpack.

The second side re-creates MXNet's Python package. Both read the same records in the same random order and
return label and payload, from a warm page cache. MXNet itself reads 87,000 to 98,000 such records/s on a
similar machine. Run from the root: `python benchmarks/speed/recordio.py`.
"""

from __future__ import annotations

import argparse
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.sources.recordio import IDX_NAME, REC_NAME, RecordReader, read_face_pack, write_face_pack

Result = TypeVar("Result")


def main() -> None:
    """Measure, and print rates and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--payload", type=int, default=5_500, help="bytes of an image")
    parser.add_argument("--rounds", type=int, default=5, help="each way so often, in turn; medians count")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = ((number // 50, rng.bytes(arguments.payload)) for number in range(arguments.records))
        _, seconds = timed(lambda: write_face_pack(folder, images))
        print(f"{arguments.records:,} records of {arguments.payload:,} bytes; load {load()}")
        print(f"written:                 {arguments.records / seconds:12,.0f} records/s")
        pack, seconds = timed(lambda: read_face_pack(folder))
        print(f"opened, with subjects:   {seconds * 1e3:12.1f} ms")
        _, seconds = timed(lambda: pack.reader.first_labels(pack.keys))
        print(f"headers, vectorised:     {arguments.records / seconds:12,.0f} records/s")
        _, seconds = timed(lambda: RecordReader(folder / REC_NAME))
        print(f"index made by scanning:  {arguments.records / seconds:12,.0f} records/s")

        plain = PlainReader(folder)
        keys = rng.permutation(pack.keys).tolist()
        assert all(pack.reader.read(key)[1] == plain.read(key)[1] for key in keys[:1000])  # noqa: S101
        rates = np.array(
            [[rate(read, keys) for read in (pack.reader.read, plain.read)] for _ in range(arguments.rounds)]
        )
        ours, theirs = np.median(rates, axis=0)
        print(f"ours, random reads:      {ours:12,.0f} records/s ({rates[:, 0].min():,.0f} at least)")
        print(f"plain, random reads:     {theirs:12,.0f} records/s ({rates[:, 1].min():,.0f} at least)")
        print(f"ratio:                   {ours / theirs:12.2f}; load {load()}")


class PlainReader:
    """Reads as mxnet.recordio does: an index in a dictionary, seek and read, headers with struct.unpack.

    Its records are whole (no magic number in them), which spares it the joining of parts.
    """

    def __init__(self, folder: Path) -> None:
        self.stream = (folder / REC_NAME).open("rb")
        self.index: dict[int, int] = {}
        for line in (folder / IDX_NAME).read_text().splitlines():
            key, offset = line.strip().split("\t")
            self.index[int(key)] = int(offset)

    def read(self, key: int) -> tuple[np.ndarray | float, bytes]:
        """Label or labels, and payload."""
        self.stream.seek(self.index[key])
        _magic, word = struct.unpack("<II", self.stream.read(8))
        record = self.stream.read(word)
        self.stream.read(-word % 4)
        flag, label, _id, _id2 = struct.unpack("<IfQQ", record[:24])
        payload = record[24:]
        if flag:
            return np.frombuffer(payload, np.float32, flag), payload[flag * 4 :]
        return label, payload


def rate(read: Callable[[int], object], keys: list[int]) -> float:
    """Records a second."""
    started = time.perf_counter()
    for key in keys:
        read(key)
    return len(keys) / (time.perf_counter() - started)


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result of `work` and its seconds."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def load() -> str:
    """The load of the machine over 1, 5 and 15 minutes, and its cores: other work slows both ways."""
    return ", ".join(f"{value:.2f}" for value in os.getloadavg()) + f" on {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
