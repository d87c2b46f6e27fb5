"""What a checkpoint says beside its weights, and whether a run may continue from it."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.spec import with_current_names
from coreset.catalogue import LEARNED_GAMMA
from data.sources.fingerprint import PIXEL_LIBRARIES
from runs.settings import Settings
from runtime.errors import InputError, InputWarning
from runtime.json_files import check_type
from train_val import UNUSABLE_SUBJECTS
from weights import read_checkpoint

IMAGES_BY_SUBJECT, EPOCH_ITEMS = "images_by_subject", "epoch_items"


# Parts of a fingerprint that change with the images of a run.
_OF_IMAGES = {"subjects", "labels", "images", *PIXEL_LIBRARIES}


# Flags in checkpoints of earlier versions.
_FORMER_FLAGS = {
    "share_foreign_faces": "impostor_face_prob",
    "share_wrong_media": "impostor_media_prob",
    "share_virtual_subjects": "identity_mixup_prob",
    "fewest_images": "min_images_per_subject",
    "without_subjects": "exclude_subjects",
}


_SAVED = ("hparams", "data_fingerprint")


@dataclass(frozen=True)
class SavedRun:
    """What a checkpoint of ours says beside its weights; no spec where there was no backbone.

    `step`: optimiser steps done; `epochs_done`: whole epochs, without the one that is under way;
    `data_fingerprint`: its parts, a string in checkpoints of before. None in older ones are:
    `images_by_subject` (`runs.trained_images`; and where features are trained from), `epoch_items`, items of
    an epoch. `unusable`: subjects with images that could not be used; `aggregator_options`: what built its
    aggregator; `cache_is_given`: False where the checkpoint alone names the folder of cached features. Of
    `hparams`, `out` and `prefix` are those of the folder that it lies in. `missing_states`: of the Trainer,
    which it needs to go on.
    """

    path: Path
    step: int
    hparams: Mapping[str, Any]
    data_fingerprint: Mapping[str, str] | str
    backbone_spec: Mapping[str, Any] | None
    epochs_done: int
    images_by_subject: Tensor | None
    epoch_items: int | None
    unusable: Sequence[int]
    aggregator_options: Mapping[str, Any] = field(default_factory=dict)
    cache_is_given: bool = True
    missing_states: Sequence[str] = ()

    def may_write_to(self, cache: Path) -> bool:
        """Whether a folder of features was given, is the default one, or lies in the checkpoint's folder."""
        folder, run = Path(os.path.abspath(cache)), Path(os.path.abspath(self.path)).parent
        return self.cache_is_given or folder == run.parent / "features" or folder.is_relative_to(run)


class _SavedParts(TypedDict):
    """What a checkpoint holds beside tensors, as far as it is read here."""

    hparams: dict[str, Any]
    data_fingerprint: dict[str, str] | str
    backbone_spec: dict[str, Any] | None
    aggregator_options: dict[str, Any] | None
    epoch_items: int | None
    unusable_subjects: list[int] | None


# What the Trainer goes on from, which it reads when the run's files are written already.
_TRAINER_STATES = {
    "pytorch-lightning_version": str,
    "loops": dict[str, dict[str, Any]],
    "callbacks": dict[str, dict[str, Any]],
    "optimizer_states": list[dict[str, Any]],
    "lr_schedulers": list[dict[str, Any]],
}


def _check_trainer_states(path: Path, checkpoint: Mapping[str, Any]) -> None:
    for name, kind in _TRAINER_STATES.items():
        if name in checkpoint:
            check_type(checkpoint[name], kind, f"{path}: {name}")
    version = checkpoint.get("pytorch-lightning_version", "0")
    if re.match(r"\d+(\.\d+)*", version) is None:
        raise InputError(f"{path}: pytorch-lightning_version: expected one such as 2.5.0, found {version!r}.")


def read_saved_run(path: Path) -> SavedRun:
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
    parts = {key: checkpoint.get(key) for key in _SavedParts.__annotations__}
    check_type(parts, _SavedParts, str(path))
    parts["hparams"] = {_FORMER_FLAGS.get(name, name): value for name, value in parts["hparams"].items()}
    options = with_current_names(parts["aggregator_options"] or {})
    for name, kind in get_type_hints(Settings).items():
        if name in parts["hparams"]:
            check_type(parts["hparams"][name], kind, f"{path}: hparams, {name}")
    hparams = _with_gamma_of_today(parts["hparams"], options)
    # Where it writes is not for a file to say.
    hparams["out"], hparams["prefix"] = place_of(path)
    images = checkpoint.get(IMAGES_BY_SUBJECT)
    if images is not None and not isinstance(images, Tensor):
        raise InputError(f"{path}: {IMAGES_BY_SUBJECT}: expected a tensor, found {type(images).__name__}.")
    try:
        epochs = int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path}: does not say how many epochs are done. Is it a last.ckpt of main.py?"
        ) from None
    _check_trainer_states(path, checkpoint)
    return SavedRun(
        path,
        step_of(path, checkpoint),
        hparams,
        parts["data_fingerprint"],
        parts["backbone_spec"],
        epochs,
        images,
        parts[EPOCH_ITEMS],
        parts[UNUSABLE_SUBJECTS] or (),
        options,
        missing_states=[name for name in _TRAINER_STATES if checkpoint.get(name, []) == []],
    )


def _with_gamma_of_today(hparams: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Flags of a checkpoint, where those of before said by `gamma_lr` 0 that gamma is fixed."""
    today = dict(hparams)
    if options.get("learn_gamma") and today.get("gamma", LEARNED_GAMMA) != LEARNED_GAMMA:
        start = {"gamma": today["gamma"]}
        today |= {
            "gamma": LEARNED_GAMMA,
            "aggregator_options": start | (today.get("aggregator_options") or {}),
        }
    if today.get("gamma_lr") == 0:
        del today["gamma_lr"]
    return today


def check_epochs(saved: SavedRun, epochs: int) -> None:
    """Raises InputError where the run that is to go on for `epochs` in all has done more, or lacks states."""
    if saved.missing_states:
        raise InputError(
            f"{saved.path}: has no {' and no '.join(saved.missing_states)}, so that its run cannot be "
            "resumed. Take the last.ckpt of the run, or start a new run."
        )
    if epochs < saved.epochs_done:
        raise InputError(
            f"--epochs {epochs}: are the epochs in all, and {saved.path} has done {saved.epochs_done}. Give "
            "more to train on, or --evaluate to validate it."
        )


def check_same_data(
    saved: SavedRun, name: str, data: Mapping[str, str], subjects: Sequence[str], images: Tensor | None
) -> None:
    """Raises InputError, which says what differs, unless a run was trained on this data.

    Another decoder changes pixels by little, and nobody can go back to an older one everywhere: a warning,
    as for images that were removed.
    """
    before = saved.data_fingerprint
    if isinstance(before, str):
        raise InputError(
            f"{saved.path}: was written by an earlier version, which recorded the names of images and not "
            "their content, so that it is unknown whether this is its own data. Start a new "
            "run."
        )
    differ = [part for part in {**before, **data} if before.get(part) != data.get(part)]
    lines = [
        f"  {part}: {before.get(part, 'unknown')} then, {data.get(part, 'unknown')} now" for part in differ
    ]
    if differ and set(differ) <= PIXEL_LIBRARIES.keys():
        warnings.warn(
            "\n".join([f"{saved.path}: other versions may change pixels a little:", *lines]),
            InputWarning,
            stacklevel=2,
        )
    elif differ and images is not None and saved.images_by_subject is not None and set(differ) <= _OF_IMAGES:
        before_and_now = (saved.images_by_subject, subjects, images, saved.unusable)
        warnings.warn(removed_note(saved.path, name, *before_and_now), InputWarning, stacklevel=2)
    elif differ:
        raise InputError.from_faults(
            [
                f"{saved.path}: was trained on other data than {name} as it is now. A run is resumed or "
                "evaluated on its own data. These differ (number, digest):",
                *lines,
            ]
        )


_SHOWN = 5


def images_by_subject(
    subjects: Sequence[str], labels: NDArray[np.int64], stamps: NDArray[np.uint64]
) -> Tensor:
    """(S, 3) int64: a digest of each subject's name, the number of its images, and the sum of their stamps.

    Args:
        subjects: S names.
        labels: (N,) of the images.
        stamps: (N,) of their content (`data.sources.image_stamps`); the sum is that of 64-bit numbers,
        wrapped round.
    """
    digests = [
        int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little", signed=True)
        for name in subjects
    ]
    contents = np.zeros(len(subjects), np.int64)
    np.add.at(contents, labels, stamps.view(np.int64))
    counts = np.bincount(labels, minlength=len(subjects)).astype(np.int64)
    return torch.from_numpy(np.stack([np.array(digests, np.int64), counts, contents], axis=1))


def removed_note(
    path: Path,
    name: str,
    before: Tensor,
    subjects: Sequence[str],
    now: Tensor,
    unusable: Collection[int] = (),
) -> str:
    """The warning where images of `name` were removed since checkpoint `path` was
    written.

    `before`, `now`: `images_by_subject`, the latter of `subjects`; `unusable`: those of `before` with images
    that could not be used, which may have been mended.

    Raises:
        InputError: the difference is another one; it says which, by subjects.
    """
    known = {digest: (place, *rest) for place, (digest, *rest) in enumerate(before.tolist())}
    there = {digest: (name, *rest) for name, (digest, *rest) in zip(subjects, now.tolist(), strict=True)}
    new = [there[digest][0] for digest in there if digest not in known]
    gone = len(known.keys() - there.keys())
    changed: list[str] = []
    refused = bool(new or gone)
    for digest in known.keys() & there.keys():
        place, was, content = known[digest]
        subject, count, other = there[digest]
        if (was, content) != (count, other):
            changed.append(f"{subject} ({was:,} images then, {count:,} now)")
            refused |= count > was or (count == was and place not in unusable)
    changed.sort()
    if changed and not refused:
        return (
            f"{name}: has other images than {path} was trained on, of {_first(changed)}. The run goes on "
            "with those that are there."
        )
    differences = [
        f"{gone:,} of its {len(known):,} subjects have no image now" if gone else "",
        f"{len(new):,} subjects are new: {_first(new)}" if new else "",
        f"{len(changed):,} subjects have other images: {_first(changed)}" if changed else "",
        "" if new or gone or changed else "the same images are in another order",
    ]
    classes = " The head has one class a subject, so that these must stay." if new or gone else ""
    raise InputError(
        f"{path}: was trained on other data than {name} as it is now: "
        f"{'; '.join(each for each in differences if each)}.{classes} A run is resumed or evaluated on its "
        "own data, of which single images may be removed, and those that could not be read mended."
    )


def _first(texts: Sequence[str]) -> str:
    more = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def step_of(path: Path, checkpoint: object) -> int:
    """Optimiser steps done, as a checkpoint of ours says it; InputError where it does not."""
    step = checkpoint.get("global_step") if isinstance(checkpoint, Mapping) else None
    if type(step) is not int or not 0 <= step < 1 << 63:
        raise InputError(f"{path}: is no checkpoint of main.py: its global_step is {step!r}.")
    return step


def place_of(checkpoint: Path) -> tuple[str, str]:
    """`root` and `prefix`, as `run_folder` takes them, of the run folder that a checkpoint lies in.

    Nothing that the checkpoint says has a part in it: a run folder is where its checkpoint lies.
    """
    folder = Path(os.path.abspath(checkpoint)).parent
    return str(folder.parent), folder.name.rpartition("_")[0] or folder.name
