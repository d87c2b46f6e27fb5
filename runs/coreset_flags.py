"""Flags of main.py about the coreset stage: the aggregator, cached features and their recipe."""

from __future__ import annotations

import json
from argparse import Action, ArgumentParser, ArgumentTypeError, Namespace, _ArgumentGroup
from typing import Any

from coreset import AGGREGATORS
from coreset.catalogue import QUALITIES
from data.sampling.templates import SAMPLE_BY
from features.templates import STYLES
from runs.settings import PRESETS, Settings
from training.optimisers import LR_SCHEDULES

HEAD_INITS = ("random", "centroids")


def add_coreset_flags(group: _ArgumentGroup) -> None:
    """How faces are chosen, of what templates, over which backbone."""
    group.add_argument("--coreset_size", type=int, help="K, faces chosen of a set" + _default("coreset_size"))
    group.add_argument(
        "--gamma",
        type=float,
        help="exponent of the norm in the selection: -1 learns it, any other value fixes it"
        + _default("gamma"),
    )
    group.add_argument("--gamma_lr", type=float, help="learning rate of gamma" + _default("gamma_lr"))
    group.add_argument(
        "--selection_temperature",
        type=float,
        help="divides the selection's scores in training" + _default("selection_temperature"),
    )
    group.add_argument(
        "--selection_temperature_end", type=float, help="the temperature falls to this until the last epoch"
    )
    group.add_argument(
        "--learn_temperature", action="store_true", help="the temperature is learned, at gamma's rate"
    )
    group.add_argument(
        "--max_template_size", type=int, help="most faces of a template" + _default("max_template_size")
    )
    group.add_argument("--sample_by", choices=SAMPLE_BY, help="what an epoch counts" + _default("sample_by"))
    group.add_argument(
        "--held_out",
        type=float,
        help="subjects that are validated on and never trained on, a share below 1 or a number"
        + _default("held_out"),
    )
    group.add_argument("--finetune_backbone", action="store_true", help="train the backbone too")
    group.add_argument("--backbone_lr", type=float, help="its learning rate" + _default("backbone_lr"))


def add_feature_flags(group: _ArgumentGroup) -> None:
    """Where features come from, and what templates are made of them."""
    group.add_argument(
        "--cache_features",
        nargs="?",
        const="",
        metavar="DIR",
        help="embed each image once in several views and train from the features, a hundred times as fast; "
        "without a value they are kept in <out>/features",
    )
    group.add_argument("--views", type=int, help="views of an image" + _default("views"))
    group.add_argument(
        "--cache_dtype", choices=("float32", "float16"), help="how they are kept" + _default("cache_dtype")
    )
    group.add_argument(
        "--features",
        metavar="DIR_OR_NPZ",
        help="train from features that are there: a folder of --cache_features, or an npz with 'features', "
        "'norms', 'labels' and, if known, 'media'",
    )
    group.add_argument(
        "--template_style",
        choices=STYLES,
        help="templates from features: published clips, or media (moderate stills, poor stills, poor clips)"
        + _default("template_style"),
    )
    group.add_argument(
        "--longest_clip",
        type=int,
        help="frames of such a clip, log-uniform from 2 to this" + _default("longest_clip"),
    )
    group.add_argument(
        "--impostor_media_prob",
        type=float,
        help="share of templates with a medium of somebody else" + _default("impostor_media_prob"),
    )
    group.add_argument(
        "--impostor_face_prob",
        type=float,
        help="share of templates with single faces of other people scattered in"
        + _default("impostor_face_prob"),
    )
    group.add_argument(
        "--identity_mixup_prob",
        type=float,
        help="share of pairs of templates that get the identity of somebody who does not exist"
        + _default("identity_mixup_prob"),
    )


def add_label_flags(group: _ArgumentGroup) -> None:
    """What is wrong with the names of one's own people, and which of them are trained on."""
    group.add_argument(
        "--dry_run",
        action="store_true",
        help="show what would be trained, list images under a wrong name, people under two names and "
        "duplicates in <out>/label_check, and stop",
    )
    group.add_argument(
        "--skip_bad_images",
        action="store_true",
        help="decode all images first and leave out those that cannot be used; run.json counts them",
    )
    group.add_argument(
        "--min_images_per_subject",
        type=int,
        help="leave out subjects with fewer" + _default("min_images_per_subject"),
    )
    group.add_argument(
        "--exclude_subjects",
        metavar="FILE",
        help="leave out the subjects of these names, one a line, such as those that will be judged",
    )


def add_recipe_flags(group: _ArgumentGroup) -> None:
    """Presets, and what they are made of."""
    group.add_argument(
        "--preset",
        choices=PRESETS,
        help="good: what learns best from cached features; published: the paper's recipe. Other flags win",
    )
    group.add_argument(
        "--aggregator", choices=AGGREGATORS, help="what is trained, coreset stage" + _default("aggregator")
    )
    group.add_argument(
        "--aggregator_options",
        nargs="+",
        type=_option,
        action=_Options,
        metavar="NAME=VALUE",
        help="options of its constructor beside those that have flags",
    )
    group.add_argument(
        "--quality",
        choices=QUALITIES,
        help="what the aggregator weighs faces by (default: the norm, or learned where the weights say that "
        "it is no quality; see convert.py --check-quality)",
    )
    group.add_argument(
        "--head_init",
        choices=HEAD_INITS,
        help="the head's columns at the start: random, or the subjects' mean clean features"
        + _default("head_init"),
    )
    group.add_argument(
        "--contrast_weight",
        type=float,
        help="weight of a contrast of two templates of a subject against all others of the batch; above 0 "
        "each subject comes twice in a row" + _default("contrast_weight"),
    )
    group.add_argument(
        "--lr_schedule", choices=LR_SCHEDULES, help="course of the rates" + _default("lr_schedule")
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile the aggregator: half a minute first, then shorter steps on a GPU; for long runs "
        "(on a CPU two minutes, and little gained)",
    )


class _Options(Action):
    """Gathers NAME=VALUE to a dictionary."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, dict(values))


def _option(text: str) -> tuple[str, Any]:
    name, given, value = text.partition("=")
    if not name or not given:
        raise ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def _default(name: str) -> str:
    return f" (default: {Settings.__dataclass_fields__[name].default})"
