"""From settings to what the Trainer is given: sources, module and data of a run, and what is said of them.

All that can be refused is refused here, before any training starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.colour_order import check_colour_order, check_skin_colour
from data.datamodule import FaceData, Loading, TemplateData, check_batch_split
from data.pairs import find_pair_sets, read_pair_set
from data.sources import FaceSource, fingerprint, open_source
from data.subsets import hold_out, train_subset
from data.templates import Augmentation, held_out_templates
from errors import InputError
from net import Backbone, BackboneSpec, build_backbone
from run_folder import versions
from settings import Settings
from train_val import FACES_AT_ONCE, BackboneTrainer, FaceCoresetNet, HeadOptions, Recipe, TemperatureSchedule
from weights import load_backbone, read_checkpoint

DEFAULT_ARCH = "ir_18"
_MOST_HELD_OUT = 500
_TEST_RUN_STEPS = 10
# Fewer say nothing of a backbone whose weights are poor.
_FEWEST_PAIRS = 30
_SAVED = ("hparams", "data_fingerprint", "backbone_spec")


@dataclass(frozen=True)
class SavedRun:
    """What a checkpoint of ours says beside its weights."""

    path: Path
    hparams: Mapping[str, Any]
    data_fingerprint: str
    backbone_spec: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A run ready for the Trainer. `what` and `lines` say what will happen; `facts` go into run.json."""

    module: BackboneTrainer | FaceCoresetNet
    data: FaceData | TemplateData
    what: str
    lines: list[str]
    warnings: list[str]
    facts: dict[str, Any]
    validates: bool
    steps_per_epoch: int


def saved_run(path: Path) -> SavedRun:
    """Reads what a run is resumed or evaluated by.

    Raises:
        InputError: no such file, or no checkpoint of main.py.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such checkpoint. A run keeps last.ckpt and best.ckpt in its folder."
        )
    checkpoint = read_checkpoint(path)
    missing = [key for key in _SAVED if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise InputError(
            f"{path}: is no checkpoint of main.py, it has no {' and no '.join(missing)}. To start from the "
            "weights of another project use --start_from_model_statedict."
        )
    return SavedRun(path, *(checkpoint[key] for key in _SAVED))


def build_run(settings: Settings, saved: SavedRun | None, *, processes: int) -> Run:
    """Opens the data, builds module and loaders.

    `saved`: the checkpoint that the Trainer loads afterwards; its backbone is built without reading weights.

    Raises:
        InputError: paths or data that cannot be used, or another data set than that of the resumed run.
    """
    check_batch_split(settings.batch_size, processes)
    backbone, weights_line = _backbone(settings, saved)
    root = Path(settings.data_root)
    source = open_source(root / settings.train_data_path, settings.use_mxrecord, settings.swap_color_channel)
    source, subset = train_subset(source, settings.train_data_subset, settings.seed)
    build = _coreset_run if settings.stage == "coreset" else _backbone_run
    return build(settings, saved, backbone, source, [f"weights  {weights_line}", f"data     {subset}"])


def _backbone(settings: Settings, saved: SavedRun | None) -> tuple[Backbone, str]:
    if saved is not None:
        spec = BackboneSpec.from_dict(dict(saved.backbone_spec))
        backbone = build_backbone(spec.name)
        backbone.spec = spec
        return backbone, f"{spec.name} of {saved.path}"
    start = settings.start_from_model_statedict
    if start is not None:
        backbone = load_backbone(start, settings.arch)
        return backbone, f"{backbone.spec.name} of {start}"
    torch.manual_seed(settings.seed)
    backbone = build_backbone(settings.arch or DEFAULT_ARCH)
    return backbone, f"{backbone.spec.name}, fresh"


def _backbone_run(
    settings: Settings, saved: SavedRun | None, backbone: Backbone, source: FaceSource, lines: list[str]
) -> Run:
    pair_sets = []
    if settings.val_data_path is not None:
        folder = Path(settings.data_root) / settings.val_data_path
        pair_sets = [read_pair_set(path) for path in find_pair_sets(folder)]
        if not pair_sets:
            raise InputError(
                f"--val_data_path {folder}: holds no pair sets (lfw.bin, cfp_fp.bin, ...), which come with "
                "the data of InsightFace. Leave the flag away to train without validation."
            )
    loading = _loading(settings, settings.epoch_items)
    data = FaceData(source, backbone.spec, _augmentation(settings), pair_sets, loading)
    module = BackboneTrainer(
        backbone, _head(settings, backbone, source), _recipe(settings), **_common(settings, saved, source)
    )
    sets = ", ".join(f"{pairs.name} ({len(pairs):,} pairs)" for pairs in pair_sets)
    lines.append(
        f"validate {sets or 'nothing: no --val_data_path was given, so last.ckpt is all there will be'}"
    )
    what = (
        f"trains {backbone.spec.name} and an {settings.head} head of {len(source.subjects):,} classes on "
        "single faces"
    )
    return _run(settings, module, data, source, what, lines, f"{settings.batch_size} faces", bool(pair_sets))


def _coreset_run(
    settings: Settings, saved: SavedRun | None, backbone: Backbone, source: FaceSource, lines: list[str]
) -> Run:
    if settings.val_data_path is None:
        source, others = hold_out(source, settings.held_out, settings.seed)
    else:
        path = Path(settings.data_root) / settings.val_data_path
        others = open_source(path, settings.use_mxrecord, settings.swap_color_channel)
    augmentation = _augmentation(settings)
    held_out = held_out_templates(
        others,
        backbone.spec,
        augmentation,
        seed=settings.seed,
        max_template_size=settings.max_template_size,
        max_subjects=_MOST_HELD_OUT,
    )
    loading = _loading(settings, settings.epoch_items or max(settings.batch_size, len(source) // 10))
    data = TemplateData(
        source,
        backbone.spec,
        augmentation,
        held_out,
        loading,
        max_template_size=settings.max_template_size,
        sample_by=settings.sample_by,
    )
    schedule = None
    if settings.selection_temperature_end is not None:
        schedule = TemperatureSchedule(
            settings.selection_temperature, settings.selection_temperature_end, settings.epochs
        )
    module = FaceCoresetNet(
        backbone,
        _head(settings, backbone, source),
        _recipe(settings),
        aggregator="coreset",
        aggregator_options=aggregator_options(settings, backbone.spec.embedding_size),
        finetune_backbone=settings.finetune_backbone,
        schedule=schedule,
        **_common(settings, saved, source),
    )
    lines += [
        f"classes  {len(source.subjects):,} subjects with {len(source):,} images",
        f"validate {len(np.unique(held_out.labels)):,} of {len(others.subjects):,} held-out subjects: "
        f"{len(held_out):,} templates",
    ]
    state = "fine-tuned" if settings.finetune_backbone else "frozen"
    gamma = "fixed" if settings.gamma_lr == 0 else "learned"
    what = (
        f"trains the aggregator (K {settings.coreset_size}, gamma {settings.gamma:g} {gamma}) and an "
        f"{settings.head} head on templates; the backbone {backbone.spec.name} is {state}"
    )
    each = f"{settings.batch_size} templates of 1 to {settings.max_template_size} faces"
    run = _run(settings, module, data, source, what, lines, each, True)
    if saved is None:
        report = check_colour_order(source, _embedder(backbone), backbone.spec)
        if report.verdict == "swapped" and report.num_pairs >= _FEWEST_PAIRS:
            run.warnings.append(report.sentence)
    return run


def aggregator_options(settings: Settings, embedding_size: int) -> dict[str, Any]:
    """What the checkpoint stores to build the aggregator again."""
    return {
        "embedding_size": embedding_size,
        "coreset_size": settings.coreset_size,
        "gamma": settings.gamma,
        # With one pick gamma chooses nothing; a parameter without gradient would stop distributed training.
        "learn_gamma": settings.gamma_lr > 0 and settings.coreset_size > 1,
        "selection_temperature": settings.selection_temperature,
        "learn_temperature": settings.learn_temperature,
    }


def _run(
    settings: Settings,
    module: BackboneTrainer | FaceCoresetNet,
    data: FaceData | TemplateData,
    source: FaceSource,
    what: str,
    lines: list[str],
    each: str,
    validates: bool,
) -> Run:
    batches = len(data.sampler())
    steps = -(-batches // settings.accumulate_grad_batches)
    accumulated = settings.accumulate_grad_batches
    lines.append(
        f"batches  {each} in all"
        + (f", {accumulated} batches a step" if accumulated > 1 else "")
        + f"; {steps:,} steps an epoch, {settings.epochs} epochs"
    )
    skin = check_skin_colour(source, seed=settings.seed)
    facts = {"classes": len(source.subjects), "images": len(source), **module.identity}
    del facts["hparams"]
    return Run(module, data, what, lines, [skin.warning] if skin.warning else [], facts, validates, steps)


def _common(settings: Settings, saved: SavedRun | None, source: FaceSource) -> dict[str, Any]:
    data = fingerprint(source)
    if saved is not None and data != saved.data_fingerprint:
        raise InputError(
            f"{saved.path}: was trained on other data than {source.name} as it is now (other subjects, "
            "images or subset). A run is resumed or evaluated on its own data."
        )
    hparams = settings.to_dict()
    identity = {"hparams": hparams, "data_fingerprint": data, "versions": versions()}
    return {"seed": settings.seed, "identity": identity, "subjects": source.subjects}


def _head(settings: Settings, backbone: Backbone, source: FaceSource) -> torch.nn.Module:
    torch.manual_seed(settings.seed)
    options = HeadOptions(settings.head, settings.m, settings.h, settings.s, settings.t_alpha)
    return options.build(backbone.spec.embedding_size, len(source.subjects))


def _recipe(settings: Settings) -> Recipe:
    return Recipe(
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        lr_milestones=settings.lr_milestones,
        lr_gamma=settings.lr_gamma,
        momentum=settings.momentum,
        gamma_lr=settings.gamma_lr,
        backbone_lr=settings.backbone_lr,
    )


def _loading(settings: Settings, epoch_items: int | None) -> Loading:
    if settings.test_run:
        epoch_items = _TEST_RUN_STEPS * settings.accumulate_grad_batches * settings.batch_size
    return Loading(
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        seed=settings.seed,
        accumulate=settings.accumulate_grad_batches,
        epoch_items=epoch_items,
    )


def _augmentation(settings: Settings) -> Augmentation:
    return Augmentation(
        crop_prob=settings.crop_augmentation_prob,
        low_res_prob=settings.low_res_augmentation_prob,
        photometric_prob=settings.photometric_augmentation_prob,
    )


def _embedder(backbone: Backbone) -> Any:
    @torch.no_grad()
    def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(backbone.spec.from_rgb(images))
        backbone.eval()
        at_once = torch.split(pixels, FACES_AT_ONCE["cpu"])
        parts = [backbone(backbone.spec.normalise(part))[0] for part in at_once]
        return torch.cat(parts).numpy()

    return embed
