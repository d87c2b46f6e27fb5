"""Published figures, and a run beside one of them or beside another run: what differs, and what may be why.

The figures are those of AdaFace's repository (arXiv 2204.00964) for its weights, IJB by media mean.
FaceCoresetNet publishes none per weight file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.reporting.report import figures_of, markdown_table, percent, read_result
from runtime.errors import InputError, valid_names

# Value of a switch that is off, in result.json too.
NOT_USED = "not used"
# Protocol switches as the papers set them; the names of `protocol.rules` in result.json.
PAPER_RULES: dict[str, dict[str, str]] = {
    "adaface": {
        "flip": "pre_norm_vector_add",
        "media": "mean",
        "detector_score": NOT_USED,
        "norm": "multiplied",
    },
    "facecoresetnet": {
        "flip": NOT_USED,
        "media": NOT_USED,
        "detector_score": NOT_USED,
        "norm": "multiplied",
    },
    "insightface": {
        "flip": "pre_norm_vector_add",
        "media": "mean",
        "detector_score": "multiplied",
        "norm": "multiplied",
    },
}

# Keys are those of `SetProtocol.sizes`.
IJB_SIZES = {
    "IJBB": {"images": 227_630, "templates": 12_115, "pairs": 8_010_270, "mated pairs": 10_270},
    "IJBC": {"images": 469_375, "templates": 23_124, "pairs": 15_658_489, "mated pairs": 19_557},
}
_IJB = "TAR@FAR 1e-04, nearest"
# Training data by backbone: per cent on IJB-B, IJB-C and the mean of the five pair sets, None where unknown.
_ADAFACE: dict[tuple[str, str], tuple[float | None, float | None, float | None]] = {
    ("ir_18", "CASIA"): (None, None, 92.82),
    ("ir_18", "VGGFace2"): (90.67, 92.95, 95.26),
    ("ir_18", "WebFace4M"): (93.03, 94.99, 96.21),
    ("ir_50", "CASIA"): (None, None, 94.68),
    ("ir_50", "MS1MV2"): (94.82, 96.27, 96.88),
    ("ir_50", "WebFace4M"): (95.44, 96.98, 97.34),
    ("ir_101", "MS1MV2"): (95.67, 96.89, 97.19),
    ("ir_101", "MS1MV3"): (95.84, 97.09, 97.36),
    ("ir_101", "WebFace4M"): (96.03, 97.39, 97.51),
    ("ir_101", "WebFace12M"): (96.41, 97.66, 97.55),
}
_LOW_QUALITY: dict[str, dict[str, dict[str, float]]] = {
    "WebFace4M": {
        "surveillance_to_single": {"rank 1": 70.42, "rank 5": 75.29, "TPIR@FPIR 0.01": 58.27},
        "surveillance_to_booking": {"rank 1": 70.93, "rank 5": 76.11, "TPIR@FPIR 0.01": 58.02},
        "surveillance_to_surveillance": {"rank 1": 35.05, "rank 5": 48.22, "TPIR@FPIR 0.01": 4.96},
        "TinyFace": {"rank 1": 72.02, "rank 5": 74.52},
    },
    "MS1MV2": {"surveillance_to_single": {"rank 1": 65.26, "rank 5": 70.53, "TPIR@FPIR 0.01": 51.66}},
}

# Settings by how often and how much they change figures; unlisted ones come last.
_CAUSES: dict[str, str] = {
    "protocol": "another protocol: the figures cannot be compared",
    "images": "not the same data; a part may be missing",
    "templates": "not the same data; a part may be missing",
    "pairs": "not the same data; a part may be missing",
    "genuine": "not the same data; a part may be missing",
    "backbone": "another network",
    "training_data": "between published training sets lie up to 2 points",
    "weights_sha256": "other weights",
    "colour_order": "a wrong order of colours costs 1 to 5 points without an error; the most frequent fault",
    "alignment": "weights expect faces cut as they were in training",
    "pixel_scale": "weights expect pixel values scaled as they were in training",
    "illumination_normalisation": "aggregators expect faces in the light that they were trained with",
    "aggregator": "another way from faces to a descriptor",
    "media": "many frames of one clip outweigh a photo, or not; on LFWS 16 points at FAR 1e-03",
    "norm": "poor faces count less, or not; on LFWS 7 points at FAR 1e-03",
    "flip": "features of the horizontal flip are added, or not",
    "detector_score": "faces count by the detector's score, or not",
    "interpolation": "aligned faces are a little sharper or softer",
}
_VERSION = "rarely changes more than the last digits"


@dataclass(frozen=True)
class Reference:
    """What a run is put beside: figures (fractions) by name, and all settings that are known of it."""

    name: str
    figures: dict[str, float]
    settings: dict[str, str]


@dataclass(frozen=True)
class Difference:
    """One setting that differs, and what it is known to do."""

    setting: str
    ours: str
    theirs: str
    why: str


def published_names() -> list[str]:
    """Names that `--compare` takes, as 'adaface_ir_101_webface4m'."""
    return [_name(*key) for key in _ADAFACE]


def find_reference(wanted: str, protocol: str) -> Reference:
    """A published row by its name, or a result.json or its folder.

    Args:
        wanted: one of `published_names`, or a path.
        protocol: as `protocol.name` in result.json; 'pair_sets' for the mean of the five.

    Raises:
        InputError: no such row or file; the row has no figure of the protocol.
    """
    if Path(wanted).exists():
        result = read_result(Path(wanted))
        return Reference(wanted, figures_of(result), settings_of(result))
    rows = {_name(*key): key for key in _ADAFACE}
    if wanted not in rows:
        raise InputError(f"{wanted!r} is neither a file nor a published row. {valid_names(wanted, rows)}")
    backbone, data = rows[wanted]
    ijb_b, ijb_c, pair_sets = _ADAFACE[rows[wanted]]
    published: Mapping[str, float | None] = {
        "IJBB": {_IJB: ijb_b},
        "IJBC": {_IJB: ijb_c},
        "pair_sets": {"mean accuracy": pair_sets},
    }.get(protocol, _LOW_QUALITY.get(data, {}).get(protocol, {}) if backbone == "ir_101" else {})
    figures = {name: value / 100 for name, value in published.items() if value is not None}
    if not figures:
        raise InputError(f"{wanted} has no published figure of {protocol}.")
    settings = {"protocol": protocol, "backbone": backbone, "training_data": data, "colour_order": "BGR"}
    if protocol in IJB_SIZES:
        settings |= PAPER_RULES["adaface"] | {"aggregator": "media_mean"}
        sizes = sizes_in_results(IJB_SIZES[protocol])
        settings |= {name: str(size) for name, size in sizes.items()}
    return Reference(wanted, figures, settings)


def sizes_in_results(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of a protocol by their names in result.json, where mated pairs are called genuine."""
    return {"genuine" if name == "mated pairs" else name: size for name, size in sizes.items()}


def compare(result: Mapping[str, Any], reference: Reference) -> str:
    """Markdown: the figures side by side, then all settings that differ, most likely cause first."""
    ours = figures_of(result)
    rows = [
        [name, percent(ours[name]), percent(theirs), f"{100 * (ours[name] - theirs):+.2f}"]
        for name, theirs in reference.figures.items()
        if name in ours
    ]
    lines = [f"Compared with {reference.name}, per cent:", ""]
    lines += [markdown_table(["figure", "this run", "reference", "difference"], rows), ""] if rows else []
    if absent := [name for name in reference.figures if name not in ours]:
        lines += [f"This run does not give: {', '.join(absent)}.", ""]
    settings = settings_of(result)
    found = differences(settings, reference.settings)
    lines.append("What differs, most likely cause first:" if found else "No setting differs that both state.")
    for number, each in enumerate(found, 1):
        reason = f" ({each.why})" if each.why else ""
        lines.append(f"{number}. {each.setting}: {each.ours} here, {each.theirs} there{reason}")
    if unknown := [name for name in _ordered(settings) if name not in reference.settings]:
        lines += ["", f"Not known of the reference: {', '.join(unknown)}."]
    return "\n".join(lines)


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[Difference]:
    """Settings that both state and that differ, most likely cause first."""
    return [
        Difference(name, ours[name], theirs[name], _CAUSES.get(name, _VERSION if "version" in name else ""))
        for name in _ordered(ours)
        if name in theirs and ours[name] != theirs[name]
    ]


def settings_of(result: Mapping[str, Any]) -> dict[str, str]:
    """All that can make figures differ, as text: protocol and its rules, model, data, versions."""
    return {
        "protocol": str(result["protocol"]["name"]),
        **{name: str(value) for name, value in result["protocol"]["rules"].items()},
        **{name: str(value) for name, value in result["model"].items()},
        **{name: str(value) for name, value in result["data"].items()},
        **{f"version of {name}": str(value) for name, value in result["versions"].items()},
    }


def _ordered(settings: Mapping[str, str]) -> list[str]:
    known = list(_CAUSES)
    unlisted = {name: len(known) + ("version" in name) for name in settings}
    return sorted(settings, key=lambda name: known.index(name) if name in _CAUSES else unlisted[name])


def _name(backbone: str, data: str) -> str:
    return f"adaface_{backbone}_{data.lower()}"
