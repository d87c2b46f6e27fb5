"""Build a set benchmark from a folder of subjects, a pack or features.

Media are collected and checked (`media`), assigned to templates (`plan`) and written (`writer`) according to
a protocol (`protocol`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.sampling.views import Kind
from features.bank import read_feature_bank
from features.store import MANIFEST as STORE_MANIFEST
from runtime.errors import InputError
from runtime.files import temporary_folder
from runtime.output_checks import require_free_space
from runtime.text import first_lines
from set_benchmark.media import Choice, MediaPool, collect_media, media_of_bank
from set_benchmark.plan import plan_benchmark
from set_benchmark.protocol import BenchmarkProtocol
from set_benchmark.writer import FEATURES, write_benchmark

_NAME = re.compile(r"[A-Za-z0-9_-]+")
# Published data sets, whose sizes the evaluation checks.
_TAKEN = ("IJBB", "IJBC")
_SHOWN = 5
_BYTES_OF_FACE = 30_000
# More subjects than required are read, because duplicates leave some with too few media.
_SPARE = 1.2


@dataclass(frozen=True)
class BuiltBenchmark:
    """`folder`: of the benchmark; `manifest`: content of manifest.json; `text`: a summary."""

    folder: Path
    manifest: dict[str, Any]
    text: str


def build_set_benchmark(
    source: Path,
    out: Path,
    *,
    name: str,
    protocol: BenchmarkProtocol,
    seed: int,
    detector: Path | None = None,
    exclude: frozenset[str] = frozenset(),
) -> BuiltBenchmark:
    """Build `<out>/<name>` atomically.

    Args:
        source: a folder of subjects, one with train.rec, a store of views, or an npz of features.
        out: data root for evaluations.
        name: of the data set.
        protocol: from `read_benchmark_protocol`.
        seed: the same seed gives the same bytes.
        detector: YuNet's file, for images that are not aligned; None means the cached one.
        exclude: subjects to exclude, such as those used for training.

    Raises:
        InputError: invalid flags, or data that do not suffice for the protocol.
    """
    _check_target(source, out, name)
    # Faces are small, so OpenCV's threads would mostly wait for each other.
    cv2.setNumThreads(0)
    with temporary_folder(out / name) as partial:
        pool = _pool(source, protocol, partial / ".faces", detector, exclude, seed)
        plan = plan_benchmark(pool, protocol, seed)
        faces = sum(each.frames * each.times for each in plan.media)
        require_free_space(out, faces * _BYTES_OF_FACE)
        manifest = write_benchmark(partial / name, name, pool, plan, protocol, seed)
        (partial / name).replace(out / name)
    text = _text(out / name, pool, manifest)
    if pool.named_out:
        text += f"\n  {pool.named_out}"
    return BuiltBenchmark(out / name, manifest, text)


def _check_target(source: Path, out: Path, name: str) -> None:
    faults = []
    if not _NAME.fullmatch(name):
        faults.append(f"--name {name}: expected letters, digits, '_' and '-', because it names files.")
    if name.upper() in _TAKEN:
        faults.append(f"--name {name}: is the name of a published data set. Choose another one.")
    if (out / name).exists():
        faults.append(f"{out / name}: already exists. Choose another --name or --out, or remove it.")
    if not source.exists():
        faults.append(f"{source}: no such folder. Expected <folder>/<subject>/<image>.")
    elif (out / name).resolve().is_relative_to(source.resolve()) and source.is_dir():
        faults.append(f"--out {out}: is inside {source}, so the benchmark would become a subject of itself.")
    if faults:
        raise InputError.from_faults(faults)


def _pool(
    source: Path,
    protocol: BenchmarkProtocol,
    work: Path,
    detector: Path | None,
    exclude: frozenset[str],
    seed: int,
) -> MediaPool:
    chosen = _choice(protocol, seed)
    if source.suffix != ".npz" and not (source / STORE_MANIFEST).is_file():
        return collect_media(source, protocol, work, detector=detector, exclude=exclude, chosen=chosen)
    bank = read_feature_bank(source)
    stress = protocol.stress
    faults = []
    if detector is not None:
        faults.append("--detector has no effect with features. Remove it.")
    if stress.template_sizes or (stress.needs_pixels and bank.plan is None):
        faults.append(
            f"{source}: stress {', '.join(stress.needs_pixels)} changes pixels and cannot be applied to "
            "features. Build the benchmark from the images."
        )
    elif bank.plan is not None and stress.simulated_clips and Kind.CLIP not in bank.plan.kinds:
        faults.append(f"{source}: has no views of clips, which stress simulated_clips needs.")
    if faults:
        raise InputError.from_faults(faults)
    return media_of_bank(bank, exclude, chosen)


def _choice(protocol: BenchmarkProtocol, seed: int) -> Choice:
    """A choice of all subjects; if the protocol limits them, of these, a reserve, and impostors."""

    def chosen(counts: dict[str, int]) -> list[str]:
        if not counts:
            raise InputError("all subjects are excluded by name.")
        if not protocol.subjects:
            return sorted(counts)
        order = np.random.default_rng([seed, 0]).permutation(sorted(counts)).tolist()
        able = [name for name in order if counts[name] >= protocol.min_media]
        others = [name for name in order if counts[name] < protocol.min_media]
        wanted = int(_SPARE * protocol.subjects) + 2
        impostors = (others + able[wanted:])[:wanted] if protocol.stress.foreign else []
        return sorted([*able[:wanted], *impostors])

    return chosen


def _text(folder: Path, pool: MediaPool, manifest: dict[str, Any]) -> str:
    counts = ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in manifest["counts"].items())
    lines = [f"{folder}: {counts}"]
    stress = manifest["stress"]
    if done := [f"{value:,} {key}" for key, value in stress.items() if value and key != "probe_media"]:
        lines.append(f"  stress: of {stress['probe_media']:,} probe media {', '.join(done)}")
    left = manifest["left_out"]
    if few := left["subjects_with_too_few_media"]:
        lines.append(f"  {few:,} subjects have too few media for the protocol and get no templates")
    lines += _examples(
        "are near-duplicates of another of their subject and are left out", pool.duplicates, "of"
    )
    lines += _examples("are near-duplicates across subjects and are both left out", pool.two_names, "and")
    lines += _examples("cannot be used", pool.rejected, ":")
    if pool.bank is not None:
        lines.append(f"  evaluate with validate_ijb.py --features {folder / FEATURES}")
    lines.append(f"  protocol {manifest['protocol']['name']}, seed {manifest['seed']}")
    lines.append(f"  sha256 {manifest['sha256']}: identifies the benchmark")
    return "\n".join(lines)


def _examples(what: str, pairs: list[tuple[str, str]], word: str) -> list[str]:
    if not pairs:
        return []
    joint = f"{word} " if word == ":" else f" {word} "
    lines = [f"    {first}{joint}{second}" for first, second in pairs]
    shown = first_lines(lines, _SHOWN, "    and {} more, in manifest.json")
    return [f"  {len(pairs):,} media {what}:", *shown]
