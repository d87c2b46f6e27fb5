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
        is_baseline: re-created for comparison, listed by `--list_aggregators` alone.
    """

    summary: str
    paper: str = ""
    is_trained: bool = False
    is_baseline: bool = False


AGGREGATOR_ENTRIES: dict[str, AggregatorEntry] = {
    "coreset": AggregatorEntry(
        "selected faces refined by attention over the set",
        "FaceCoresetNet, AAAI 2024, arXiv 2308.14075",
        is_trained=True,
    ),
    "mean": AggregatorEntry("mean of the unit features"),
    "norm_weighted": AggregatorEntry("mean of the features weighted by their norms"),
    "media_mean": AggregatorEntry(
        "norm-weighted mean of each photo or video, then their sum", "IJB protocols, as AdaFace evaluates"
    ),
    "best_norm": AggregatorEntry("the face of largest norm", is_baseline=True),
    "top_k": AggregatorEntry("mean of the K faces of largest norm", is_baseline=True),
    "fps_mean": AggregatorEntry(
        "mean of K faces selected by quality-weighted farthest-point sampling",
        "selection of arXiv 2308.14075 without attention",
        is_baseline=True,
    ),
    "random_k": AggregatorEntry("mean of K random faces", is_baseline=True),
    "learned_map": AggregatorEntry(
        "norm-weighted mean and one hidden layer, no selection", is_trained=True, is_baseline=True
    ),
    "weighted_coreset": AggregatorEntry(
        "K weighted clusters with an inlier gate, refined by a small transformer",
        "this project",
        is_trained=True,
    ),
    "nan": AggregatorEntry(
        "two cascaded attention blocks",
        "Neural Aggregation Network, CVPR 2017, arXiv 1603.05474",
        is_trained=True,
        is_baseline=True,
    ),
    "context_attention": AggregatorEntry(
        "attention with a context vector from the set's mean and variance",
        "idea of CoNAN, IJCB 2023, arXiv 2307.10237; not a re-creation",
        is_trained=True,
        is_baseline=True,
    ),
    "inverse_variance": AggregatorEntry(
        "each value weighted by its predicted inverse variance",
        "after Probabilistic Face Embeddings, ICCV 2019, arXiv 1904.09658",
        is_trained=True,
        is_baseline=True,
    ),
    "proxy_fusion": AggregatorEntry(
        "experts chosen by learned proxies weight the faces",
        "after ProxyFusion, NeurIPS 2024",
        is_trained=True,
        is_baseline=True,
    ),
    "caface": AggregatorEntry(
        "soft assignment to learned centres, then weights per value",
        "after CAFace, NeurIPS 2022, arXiv 2210.10864",
        is_trained=True,
        is_baseline=True,
    ),
    "set_transformer": AggregatorEntry(
        "induced self-attention, pooled by attention",
        "after Set Transformer, ICML 2019, arXiv 1810.00825",
        is_trained=True,
        is_baseline=True,
    ),
}
# A view: names that `registry.register_aggregator` adds appear in it.
AGGREGATOR_NAMES: KeysView[str] = AGGREGATOR_ENTRIES.keys()
# Those that `--aggregator` shows in its help.
MAIN_AGGREGATORS = ("mean", "norm_weighted", "media_mean", "coreset", "weighted_coreset")


def requires_training(name: str) -> bool:
    """Whether the aggregator of that name has weights, and not options alone."""
    return AGGREGATOR_ENTRIES[name].is_trained


def describe_aggregators() -> str:
    """Table for `--list_aggregators`: name, kind, summary and paper, a line each."""
    width = max(map(len, AGGREGATOR_NAMES))
    order = sorted(AGGREGATOR_NAMES, key=lambda name: AGGREGATOR_ENTRIES[name].is_baseline)
    lines = []
    for name in order:
        entry = AGGREGATOR_ENTRIES[name]
        kind = "trained" if entry.is_trained else "pooling"
        paper = f" ({entry.paper})" if entry.paper else ""
        lines.append(f"{name:<{width}}  {kind}  {entry.summary}{paper}")
    return "\n".join(lines)
