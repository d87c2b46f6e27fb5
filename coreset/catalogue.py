"""Names of aggregators and of their options that command lines list; importable without torch."""

from __future__ import annotations

from collections.abc import KeysView
from dataclasses import dataclass

# What faces can be weighted by, see `coreset.quality`.
QUALITIES = ("norm", "detector", "learned", "none")
# Value of `--gamma`, as in the published code, for a gamma that is learned; any other value is fixed.
LEARNED_GAMMA = -1.0
# Cosine of two parts of a set below which the two-identity split keeps both descriptors.
DEFAULT_SPLIT_LIMIT = 0.15


@dataclass(frozen=True)
class AggregatorEntry:
    """One aggregator of the registry.

    Attributes:
        summary: one line.
        paper: where it comes from; empty for common poolings.
        is_trained: it has weights; otherwise it is a pooling that needs none.
    """

    summary: str
    paper: str = ""
    is_trained: bool = False


def _trained(summary: str, paper: str = "") -> AggregatorEntry:
    return AggregatorEntry(summary, paper, is_trained=True)


AGGREGATOR_ENTRIES: dict[str, AggregatorEntry] = {
    "coreset": _trained("selected faces refined by attention", "FaceCoresetNet, AAAI 2024, arXiv 2308.14075"),
    "mean": AggregatorEntry("mean of the unit features"),
    "norm_weighted": AggregatorEntry("mean of the features weighted by their norms"),
    "media_mean": AggregatorEntry(
        "norm-weighted mean of each photo or video, then their sum", "IJB protocols"
    ),
    "best_norm": AggregatorEntry("the face of largest norm"),
    "top_k": AggregatorEntry("mean of the K faces of largest norm"),
    "fps_mean": AggregatorEntry("mean of K faces selected by farthest-point sampling"),
    "random_k": AggregatorEntry("mean of K random faces"),
    "learned_map": _trained("norm-weighted mean and one hidden layer, no selection"),
    "weighted_coreset": _trained("K clusters with an inlier gate and a small transformer", "this project"),
    "nan": _trained("two cascaded attention blocks", "NAN, CVPR 2017, arXiv 1603.05474"),
    "context_attention": _trained(
        "attention with a context vector of the set", "idea of CoNAN, arXiv 2307.10237; not a re-creation"
    ),
    "inverse_variance": _trained("values weighted by inverse variance", "PFE, ICCV 2019, arXiv 1904.09658"),
    "proxy_fusion": _trained("experts chosen by proxies weight the faces", "ProxyFusion, NeurIPS 2024"),
    "caface": _trained("soft assignment to learned centres", "CAFace, NeurIPS 2022, arXiv 2210.10864"),
    "set_transformer": _trained("induced self-attention and pooling", "ICML 2019, arXiv 1810.00825"),
}
# Those that `--aggregator` shows in its help; the others are baselines.
MAIN_AGGREGATORS = ("mean", "norm_weighted", "media_mean", "coreset", "weighted_coreset")
# A view: names that `registry.register_aggregator` adds appear in it.
AGGREGATOR_NAMES: KeysView[str] = AGGREGATOR_ENTRIES.keys()


def requires_training(name: str) -> bool:
    """Whether the aggregator of that name has weights, and not options alone."""
    return AGGREGATOR_ENTRIES[name].is_trained


def describe_aggregators() -> str:
    """Table for `--list_aggregators`: name, kind, summary and paper, one line per aggregator."""
    width = max(map(len, AGGREGATOR_NAMES))
    order = sorted(AGGREGATOR_NAMES, key=lambda name: name not in MAIN_AGGREGATORS)
    lines = []
    for name in order:
        entry = AGGREGATOR_ENTRIES[name]
        kind = "trained" if entry.is_trained else "pooling"
        paper = f" ({entry.paper})" if entry.paper else ""
        lines.append(f"{name:<{width}}  {kind}  {entry.summary}{paper}")
    return "\n".join(lines)
