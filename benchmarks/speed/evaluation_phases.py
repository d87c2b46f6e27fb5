"""The phases of `evaluation.py`: each is prepared, then measured; results are kept for later phases."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

# Modules are imported by the phases themselves, so that the memory of each is its own.
from benchmarks.speed.usage import Usage, measured

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
DIMENSIONS, CORESET_SIZE = 512, 3
Array = NDArray[Any]


class Data:
    """What phases start from; `work` holds what an earlier phase hands over."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder, self.work = folder, work

    def meta(self, part: str) -> Path:
        """A meta file by the end of its name."""
        return self.folder / "meta" / f"{self.folder.name.lower()}_{part}"

    def lists(self) -> list[Path]:
        """Both galleries and the probes."""
        return [
            *sorted((self.folder / "meta").glob("*_1N_gallery_*.csv")),
            self.meta("1N_probe_mixed.csv"),
        ]

    def faces(self) -> tuple[Array, Array, Array, Array]:
        """Features and norms in memory, templates and media."""
        import pandas as pd

        table = pd.read_csv(self.meta("face_tid_mid.txt"), sep=" ", header=None)
        features = np.load(self.folder / "features.npy")
        return features, np.load(self.folder / "norms.npy"), table[1].to_numpy(), table[2].to_numpy()

    def handed(self, *names: str) -> list[Array]:
        """Arrays that the phase 'prepare' or a plain phase left."""
        return [np.load(self.work / f"{name}.npy") for name in names]

    def keep(self, **arrays: Array) -> None:
        """Leave arrays for later phases."""
        for name, array in arrays.items():
            np.save(self.work / f"{name}.npy", array)


# ------------------------------------------------------------------------------------- the plain way


def pairs(data: Data) -> Usage:
    """The pair file with pandas."""
    import published_evaluation as published

    with measured() as usage:
        found = published.read_pairs(data.meta("template_pair_label.txt"))
    usage.remark = f"{len(found[0]):,} pairs"
    return usage


def aggregation(data: Data) -> Usage:
    """One template at a time."""
    import published_evaluation as published

    faces, aggregator = data.faces(), _aggregator()
    published.aggregate(aggregator, *(part[:8] for part in faces))  # Libraries start up.
    with measured() as usage:
        found = published.aggregate(aggregator, *faces)
    data.keep(plain_aggregation=found)
    usage.remark = f"{len(found):,} templates"
    return usage


def media_mean(data: Data) -> Usage:
    """Media mean in loops."""
    import published_evaluation as published

    faces = data.faces()
    with measured() as usage:
        found = published.media_mean(*faces)
    data.keep(plain_media_mean=found)
    return usage


def scores(data: Data) -> Usage:
    """All pairs gathered, 100,000 at a time."""
    import published_evaluation as published

    inputs = data.handed("descriptors", "unique", "first", "second")
    with measured() as usage:
        found = published.pair_scores(*inputs, at_once=100_000, as_list=False)
    data.keep(scores=found)
    return usage


def insightface_scores(data: Data) -> Usage:
    """All pairs gathered, 10,000 at a time, into a list."""
    import published_evaluation as published

    inputs = data.handed("descriptors", "unique", "first", "second")
    with measured() as usage:
        published.pair_scores(*inputs, at_once=10_000, as_list=True)
    return usage


def rates(data: Data) -> Usage:
    """scikit-learn's curve, six TAR@FAR."""
    import published_evaluation as published

    found, labels = data.handed("scores", "label")
    with measured() as usage:
        tar = published.tar_at_fars(found, labels, FARS)
    data.keep(plain_rates=np.array(tar))
    return usage


def lists(data: Data) -> Usage:
    """1:N lists and faces with np.loadtxt."""
    import published_evaluation as published

    with measured() as usage:
        published.read_lists(data.lists())
        published.read_faces(data.meta("face_tid_mid.txt"))
    return usage


def identification(data: Data) -> Usage:
    """Every row sorted, both galleries joined."""
    import published_evaluation as published

    gallery, other, probes = _one_to_many(data)
    with measured() as usage:
        joined = [np.concatenate(column) for column in zip(gallery, other, strict=True)]
        found = published.identify(*probes, *joined)
    data.keep(plain_identification=np.array(found))
    return usage


def insightface_identification(data: Data) -> Usage:
    """InsightFace's evaluation_1N, gallery by gallery."""
    import published_evaluation as published

    *galleries, probes = _one_to_many(data)
    with measured() as usage:
        found = [published.insightface_identify(*probes, *gallery) for gallery in galleries]
    data.keep(insightface_identification=np.array(found))
    return usage


def _one_to_many(data: Data) -> list[tuple[Array, Array]]:
    """Descriptors and subjects of both galleries and of the probes; reading is timed in `lists`."""
    import published_evaluation as published

    descriptors, unique = data.handed("descriptors", "unique")
    return [
        (descriptors[np.searchsorted(unique, templates)], subjects)
        for templates, subjects in published.read_lists(data.lists())
    ]


# --------------------------------------------------------------------------------------------- ours


def our_pairs(data: Data) -> Usage:
    """The pair file, checked and looked up."""
    from evaluation.protocols.ijb_layout import read_pairs

    (unique,) = data.handed("unique")
    with measured() as usage:
        read_pairs(data.meta("template_pair_label.txt"), unique)
    return usage


def our_aggregation(data: Data) -> Usage:
    """Ragged batches by size."""
    from evaluation.protocols.templates import aggregate_templates, group_faces

    features, norms, templates, media = data.faces()
    aggregator = _aggregator()
    few = group_faces(np.arange(64) // 4, media[:64], 16)
    aggregate_templates(aggregator, features[:64], norms[:64], few)  # Libraries start up.
    with measured() as usage:
        unique, rows = np.unique(templates, return_inverse=True)
        groups = group_faces(rows, media, len(unique))
        found = aggregate_templates(aggregator, features, norms, groups).embedding
    (plain,) = data.handed("plain_aggregation")
    differ = np.abs(found - plain).max(axis=1)
    near = differ <= 1e-4
    usage.remark = f"{usage.extra_mib:.0f} MiB extra; {differ[near].max():.0e} from the plain way, but for "
    usage.remark += f"{np.count_nonzero(~near)} templates (near ties, decided there by noise)"
    return usage


def our_media_mean(data: Data) -> Usage:
    """One weighted sum."""
    from coreset import build_aggregator
    from evaluation.protocols.templates import aggregate_templates, group_faces

    features, norms, templates, media = data.faces()
    aggregator = build_aggregator("media_mean", {})
    with measured() as usage:
        unique, rows = np.unique(templates, return_inverse=True)
        groups = group_faces(rows, media, len(unique))
        found = aggregate_templates(aggregator, features, norms, groups).embedding
    (plain,) = data.handed("plain_media_mean")
    usage.remark = f"{np.abs(found - plain).max():.0e} from the plain way"
    return usage


def our_scores(data: Data) -> Usage:
    """Blocked products, ROC corners, ties decided in float64."""
    from evaluation.metrics.template_pairs import verify

    descriptors, rows, other, labels = data.handed("descriptors", "first_row", "second_row", "label")
    # As `aggregate_templates` and `read_pairs` hand them over.
    inputs = descriptors.astype(np.float32), rows, other, labels.astype(bool)
    with measured() as usage:
        found = verify(*inputs, FARS)
    (plain,) = data.handed("plain_rates")
    nearest = np.array([rate.nearest for rate in found.rates.values()])
    usage.remark = f"TAR differ by {np.abs(nearest - plain).max():.0e}"
    return usage


def our_identification(data: Data) -> Usage:
    """Lists, media mean, both galleries searched apart."""
    from coreset import build_aggregator
    from evaluation.metrics.identification import cmc, tpir_at_fpir
    from evaluation.metrics.search import search
    from evaluation.protocols.ijb_layout import read_one_to_many
    from evaluation.protocols.templates import aggregate_templates, group_faces
    from evaluation.protocols.text_tables import read_table

    features, norms = data.faces()[:2]
    rates = []
    columns = {"FILE": str, "TEMPLATE": np.int64, "MEDIA": np.int64}
    with measured() as usage:
        table = read_table(data.meta("face_tid_mid.txt"), columns)
        unique, rows = np.unique(table["TEMPLATE"].to_numpy(), return_inverse=True)
        galleries, probes = read_one_to_many(data.folder, unique)
        if probes is None:
            raise RuntimeError("no 1:N lists")
        groups = group_faces(rows, table["MEDIA"].to_numpy(), len(unique))
        found = aggregate_templates(build_aggregator("media_mean", {}), features, norms, groups).embedding
        for gallery in galleries:
            result = search(
                found[probes.templates], found[gallery.templates], probes.subjects, gallery.subjects
            )
            tpir = tpir_at_fpir(result, (0.01, 0.1))
            rates.append([*cmc(result, (1, 5, 10)).values(), *(rate.tpir for rate in tpir.values())])
    (plain,) = data.handed("insightface_identification")
    differ = np.abs(np.array(rates) - plain).max(axis=0)
    usage.remark = f"from InsightFace's: CMC {differ[:3].max():.0e}, TPIR {differ[3:].max():.0e}"
    return usage


def our_command(data: Data) -> Usage:
    """validate_ijb.py from features to result.json, its start, intervals and plots included."""
    import torch

    checkpoint, out = data.work / "aggregator.ckpt", data.work / "out"
    state = {f"aggregator.{key}": value for key, value in _aggregator().state_dict().items()}
    options = {"embedding_size": DIMENSIONS, "coreset_size": CORESET_SIZE}
    torch.save({"state_dict": state, "aggregator_name": "coreset", "aggregator_options": options}, checkpoint)
    command = [
        sys.executable,
        str(Path(__file__).resolve().parents[2] / "validation_mixed" / "validate_ijb.py"),
    ]
    command += ["--data_root", str(data.folder.parent), "--dataset_name", data.folder.name]
    command += ["--features", str(data.folder), "--out", str(out)]
    command += ["--aggregator", "coreset", "media_mean", "--aggregator_weights", str(checkpoint)]
    with measured() as usage:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    usage.extra_mib = usage.peak_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    seconds = json.loads((out / "result.json").read_text())["seconds"]
    usage.remark = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items())
    return usage


def _aggregator() -> Any:
    import torch

    from coreset.aggregator import CoresetAggregator

    torch.manual_seed(0)
    return CoresetAggregator(embedding_size=DIMENSIONS, coreset_size=CORESET_SIZE).eval()


def prepare(data: Data) -> Usage:
    """Not compared: descriptors, pairs as ids and as rows, for the phases that start from them."""
    import published_evaluation as published

    from coreset import build_aggregator
    from evaluation.protocols.ijb_layout import read_pairs
    from evaluation.protocols.templates import aggregate_templates, group_faces

    features, norms, templates, media = data.faces()
    path = data.meta("template_pair_label.txt")
    with measured() as usage:
        unique, rows = np.unique(templates, return_inverse=True)
        groups = group_faces(rows, media, len(unique))
        found = aggregate_templates(build_aggregator("media_mean", {}), features, norms, groups).embedding
        # The published code holds float64.
        descriptors = found.astype(np.float64)
        first, second, labels = published.read_pairs(path)
        ours = read_pairs(path, unique)
        data.keep(descriptors=descriptors, unique=unique, first=first, second=second, label=labels)
        data.keep(first_row=ours.first, second_row=ours.second)
    return usage


PHASES: dict[str, Callable[[Data], Usage]] = {
    phase.__name__: phase
    for phase in (
        *(prepare, pairs, our_pairs, media_mean, our_media_mean),
        *(scores, rates, insightface_scores, our_scores),
        *(lists, identification, insightface_identification, our_identification),
        *(aggregation, our_aggregation, our_command),
    )
}
