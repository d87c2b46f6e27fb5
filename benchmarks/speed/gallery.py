"""Time of gallery operations: the SQLite file against the .npz file of older versions, which is rewritten.

python benchmarks/speed/gallery.py --folder /tmp --counts 100000 1000000 --out benchmarks/results/gallery.md

Descriptors are drawn. Both ways run one after the other in one process, so that their ratio holds on a busy
machine too; changes are medians of `--repeats`. The .npz way holds the gallery in memory three times: a
million of 512 values takes about 8 GB.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from recognition.gallery.contents import Gallery
from recognition.gallery.exchange import NPZ, export_gallery, members_of, read_gallery
from recognition.gallery.search import search
from recognition.gallery.store import enroll, gallery_info, list_subjects, open_gallery, remove, rename
from runtime.array_files import write_npz

AT_ONCE = 50_000


def main() -> None:
    """Measure each size, print a table, and write it with --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="of scratch files")
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000], help="subjects of each gallery")
    parser.add_argument("--dimension", type=int, default=512, help="values of a descriptor")
    parser.add_argument("--repeats", type=int, default=9, help="of each change, of which the median counts")
    parser.add_argument("--without_npz", action="store_true", help="measure the SQLite file alone")
    parser.add_argument("--out", type=Path, help="file of the table")
    args = parser.parse_args()
    lines = [
        f"Seconds, {args.dimension} values a descriptor. `python {' '.join(sys.argv)}`\n",
        "| subjects | operation | SQLite | .npz | ratio |",
        "|---:|---|---:|---:|---:|",
    ]
    print("\n".join(lines))
    for count in args.counts:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            for operation, new, old in measure(Path(folder), count, args):
                ratio = "" if old is None else f"{old / new:,.1f}"
                lines.append(
                    f"| {count:,} | {operation} | {new:.4f} | {'' if old is None else f'{old:.3f}'} | "
                    f"{ratio} |"
                )
                print(lines[-1], flush=True)
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(folder: Path, count: int, args: argparse.Namespace) -> list[tuple[str, float, float | None]]:
    """Operations with the seconds of either way."""
    path, old = folder / "g.db", folder / "g.npz"
    found: list[tuple[str, float, float | None]] = []
    seconds = 0.0
    for start in range(0, count, AT_ONCE):
        part = drawn(start, min(AT_ONCE, count - start), args.dimension)
        seconds += timed(lambda part=part: enroll(path, part))  # type: ignore[misc]
    found.append(("enroll all, 50,000 at a time", seconds, None))
    times: dict[str, list[float]] = {"enroll": [], "replace": [], "rename": [], "remove": [], "settings": []}
    for number in range(args.repeats):
        one = drawn(count + number, 1, args.dimension)
        (name,) = one.names
        times["enroll"].append(timed(lambda one=one: enroll(path, one)))  # type: ignore[misc]
        times["replace"].append(timed(lambda one=one: enroll(path, one, replace=True)))  # type: ignore[misc]
        times["rename"].append(timed(lambda name=name: rename(path, name, f"{name}b")))  # type: ignore[misc]
        times["remove"].append(timed(lambda name=name: remove(path, [f"{name}b"])))  # type: ignore[misc]
        times["settings"].append(timed(lambda: gallery_info(path)))
    old_enroll = old_load = None
    if not args.without_npz:
        export_gallery(path, old)
        old_enroll = timed(lambda: enroll_npz(old, drawn(count, 1, args.dimension)))
        old_load = timed(lambda: read_gallery(old))
        found.append(("file, GB", path.stat().st_size / 1e9, old.stat().st_size / 1e9))
    for name, values in times.items():
        change = old_enroll if name in ("enroll", "replace", "remove") else None
        found.append((f"{name} one", float(np.median(values)), change))
    found.append(("list subjects", timed(lambda: list_subjects(path)), old_load))
    found.append(("load for search", timed(lambda: open_gallery(path)), old_load))
    gallery = open_gallery(path)
    for probes in (1, 100):
        rows = drawn(count, probes, args.dimension).descriptors
        taken = timed(lambda rows=rows: search(rows, gallery.descriptors, 5))  # type: ignore[misc]
        found.append((f"search {probes} of them, top 5", taken, None))
    return found


def drawn(start: int, count: int, dimension: int) -> Gallery:
    """Subjects of the numbers from `start` on, with random descriptors."""
    rows = np.random.default_rng(start).standard_normal((count, dimension), np.float32)
    norms = np.linalg.norm(rows, axis=1)
    names = tuple(f"subject {number:08}" for number in range(start, start + count))
    files = tuple((f"{name}/1.jpg", f"{name}/2.jpg", f"{name}/3.jpg") for name in names)
    return Gallery(names, rows / norms[:, None], norms, files, "f" * 64, {"alignment": "as stored"})


def enroll_npz(path: Path, added: Gallery) -> None:
    """What older versions did for each change: read the file, and write it anew."""
    there = read_gallery(path)
    after = Gallery(
        there.names + added.names,
        np.concatenate([there.descriptors, added.descriptors]),
        np.concatenate([there.norms, added.norms]),
        there.files + added.files,
        there.fingerprint,
        there.reading,
    )
    written = path.with_name(f"new{NPZ}")
    write_npz(written, members_of(after))
    shutil.move(written, path)


def timed(work: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
