"""Metadata of a checkpoint, and whether a run may continue from it."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.sources.fingerprint import PIXEL_LIBRARIES
from runs.config import config_fields
from runtime.errors import InputError, InputWarning
from runtime.json_files import check_type
from runtime.text import listed
from train_val import UNUSABLE_SUBJECTS, BackboneTrainer, FaceCoresetNet
from weights import read_checkpoint

IMAGES_BY_SUBJECT, EPOCH_ITEMS = "images_by_subject", "epoch_items"
# Parts of a fingerprint that change with the images of a run.
_OF_IMAGES = {"subjects", "labels", "images", *PIXEL_LIBRARIES}
_REQUIRED = ("hparams", "data_fingerprint")
_SHOWN = 5


@dataclass(frozen=True)
class SavedRun:
    """Metadata of a checkpoint of main.py.

    Attributes:
        path: of the checkpoint.
        step: optimiser steps done.
        hparams: flags of the run; `out` and `prefix` are those of the folder that the checkpoint is in.
        data_fingerprint: digests by part.
        backbone_spec: None where the run had features and no backbone.
        epochs_done: complete epochs.
        images_by_subject: see `images_by_subject`; None for features.
        epoch_items: items per epoch.
        unusable: subjects with images that could not be used.
        aggregator_options: arguments of its aggregator.
        cache_is_given: False where only the checkpoint names the folder of cached features.
        missing_states: states of the Trainer that resuming needs and the file lacks.
        shapes: shape of each tensor of the state dict.
        group_sizes: parameters in each group of the optimiser.
    """

    path: Path
    step: int
    hparams: Mapping[str, Any]
    data_fingerprint: Mapping[str, str]
    backbone_spec: Mapping[str, Any] | None
    epochs_done: int
    images_by_subject: Tensor | None
    epoch_items: int | None
    unusable: Sequence[int]
    aggregator_options: Mapping[str, Any] = field(default_factory=dict)
    cache_is_given: bool = True
    missing_states: Sequence[str] = ()
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    group_sizes: Sequence[int] = ()

    def may_write_to(self, cache: Path) -> bool:
        """Whether a folder of features was given, is the default one, or is in the checkpoint's folder."""
        folder, run = Path(os.path.abspath(cache)), Path(os.path.abspath(self.path)).parent
        return self.cache_is_given or folder == run.parent / "features" or folder.is_relative_to(run)

    def check_epochs(self, epochs: int) -> None:
        """Check that the run can be resumed for `epochs` epochs in all.

        Raises:
            InputError: more are done, or states of the Trainer are missing.
        """
        if self.missing_states:
            raise InputError(
                f"{self.path}: has no {' and no '.join(self.missing_states)}, so its run cannot be resumed. "
                "Use the last.ckpt of the run, or start a new run."
            )
        if epochs < self.epochs_done:
            raise InputError(
                f"--epochs {epochs}: {self.path} has done {self.epochs_done} epochs. Give more to continue "
                "training, or --evaluate to validate it."
            )

    def check_fits(self, module: BackboneTrainer | FaceCoresetNet, *, resumes: bool) -> None:
        """Check that the module built from `hparams` takes the weights and the optimiser state.

        Raises:
            InputError: it does not, as when hparams were edited.
        """
        hint = (
            "Its hparams describe another run than its weights; restore the file from a copy, or start a "
            "new run."
        )
        built = {name: _shape(value) for name, value in module.state_dict().items()}
        names = sorted(self.shapes.keys() | built.keys())
        differ = [name for name in names if self.shapes.get(name) != built.get(name)]
        if self.shapes and differ:
            raise InputError(
                f"{self.path}: {len(differ)} tensors do not fit the run, such as "
                f"{listed(differ, _SHOWN)}. {hint}"
            )
        sizes = [len(group["params"]) for group in module.parameter_groups()]
        if resumes and self.group_sizes and list(self.group_sizes) != sizes:
            raise InputError(
                f"{self.path}: the optimiser has {list(self.group_sizes)} parameters in its groups, and the "
                f"run trains {sizes}: another set of parameters, or a file of an earlier release. {hint}"
            )


class _Group(TypedDict):
    params: list[int]


class _OptimiserState(TypedDict):
    param_groups: list[_Group]


# The Trainer reads these only after files of the run are written.
_TRAINER_STATES: dict[str, Any] = {
    "pytorch-lightning_version": str,
    "loops": dict[str, dict[str, Any]],
    "callbacks": dict[str, dict[str, Any]],
    "optimizer_states": list[_OptimiserState],
    "lr_schedulers": list[dict[str, Any]],
}
# What is read here of a checkpoint.
_PARTS: dict[str, Any] = {
    "hparams": dict[str, Any],
    "data_fingerprint": dict[str, str],
    "backbone_spec": dict[str, Any] | None,
    "aggregator_options": dict[str, Any] | None,
    "state_dict": dict[str, Any],
    IMAGES_BY_SUBJECT: Tensor | None,
    EPOCH_ITEMS: int | None,
    UNUSABLE_SUBJECTS: list[int] | None,
    **_TRAINER_STATES,
}


def read_saved_run(path: Path) -> SavedRun:
    """Read what a run is resumed or evaluated from.

    Raises:
        InputError: no such file, or not a checkpoint of main.py.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such checkpoint. A run keeps last.ckpt and best.ckpt in its folder."
        )
    checkpoint = read_checkpoint(path)
    missing = [key for key in _REQUIRED if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise InputError(
            f"{path}: is no checkpoint of main.py, it has no {' and no '.join(missing)}. To start from the "
            "weights of another project use --start_from_model_statedict."
        )
    for name, kind in _PARTS.items():
        if name in checkpoint:
            check_type(checkpoint[name], kind, f"{path}: {name}")
    version = checkpoint.get("pytorch-lightning_version", "0")
    if re.match(r"\d+(\.\d+)*", version) is None:
        raise InputError(f"{path}: pytorch-lightning_version: expected one such as 2.5.0, found {version!r}.")
    hparams = checkpoint["hparams"]
    if differ := sorted(hparams.keys() ^ config_fields().keys()):
        raise InputError(
            f"{path}: hparams: another version with other flags wrote it ({listed(differ, 10)}). Start a new "
            "run; --start_from_model_statedict takes the weights of its backbone."
        )
    for name, each in config_fields().items():
        check_type(hparams[name], each.kind, f"{path}: hparams, {name}")
    try:
        epochs = int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{path}: does not say how many epochs are done. Is it a last.ckpt of main.py?"
        ) from None
    # A file does not decide where its run writes.
    root, prefix = place_of(path)
    state = checkpoint.get("state_dict", {})
    optimisers = checkpoint.get("optimizer_states", [])
    return SavedRun(
        path,
        step_of(path, checkpoint),
        hparams | {"out": root, "prefix": prefix},
        checkpoint["data_fingerprint"],
        checkpoint.get("backbone_spec"),
        epochs,
        checkpoint.get(IMAGES_BY_SUBJECT),
        checkpoint.get(EPOCH_ITEMS),
        checkpoint.get(UNUSABLE_SUBJECTS) or (),
        checkpoint.get("aggregator_options") or {},
        missing_states=[name for name in _TRAINER_STATES if checkpoint.get(name, []) == []],
        shapes={name: _shape(value) for name, value in state.items() if isinstance(value, Tensor)},
        group_sizes=[len(group["params"]) for group in optimisers[0]["param_groups"]] if optimisers else [],
    )


def _shape(value: Tensor) -> tuple[int, ...]:
    # The bytes of an ONNX graph are sized when they are loaded.
    return () if value.dtype == torch.uint8 else tuple(value.shape)


def check_same_data(
    saved: SavedRun, name: str, data: Mapping[str, str], subjects: Sequence[str], images: Tensor | None
) -> None:
    """Check that a run was trained on this data.

    Another version of the image decoder changes pixels slightly and is a warning, as are removed images.

    Raises:
        InputError: other data; the message says what differs.
    """
    before = saved.data_fingerprint
    differ = [part for part in {**before, **data} if before.get(part) != data.get(part)]
    lines = [
        f"  {part}: {before.get(part, 'unknown')} then, {data.get(part, 'unknown')} now" for part in differ
    ]
    if differ and set(differ) <= PIXEL_LIBRARIES.keys():
        warnings.warn(
            "\n".join([f"{saved.path}: other versions may change pixels slightly:", *lines]),
            InputWarning,
            stacklevel=2,
        )
    elif differ and images is not None and saved.images_by_subject is not None and set(differ) <= _OF_IMAGES:
        note = _removed_note(saved, saved.images_by_subject, name, subjects, images)
        warnings.warn(note, InputWarning, stacklevel=2)
    elif differ:
        raise InputError.from_faults(
            [
                f"{saved.path}: was trained on other data than {name} has now. A run is resumed and "
                "evaluated on the same data. These differ (number, digest):",
                *lines,
            ]
        )


def images_by_subject(
    subjects: Sequence[str], labels: NDArray[np.int64], stamps: NDArray[np.uint64]
) -> Tensor:
    """Describe the images of each subject, so that a resumed run notices removed ones.

    Args:
        subjects: S names.
        labels: (N,) subject of each image.
        stamps: (N,) stamps of their content (`data.sources.image_stamps`).

    Returns:
        (S, 3) int64: digest of the name, number of images, sum of their stamps modulo 2^64.
    """
    digests = [
        int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little", signed=True)
        for name in subjects
    ]
    contents = np.zeros(len(subjects), np.int64)
    np.add.at(contents, labels, stamps.view(np.int64))
    counts = np.bincount(labels, minlength=len(subjects)).astype(np.int64)
    return torch.from_numpy(np.stack([np.array(digests, np.int64), counts, contents], axis=1))


def _removed_note(saved: SavedRun, before: Tensor, name: str, subjects: Sequence[str], now: Tensor) -> str:
    """The warning where images of the data `name` were removed since a checkpoint was written.

    `before`, `now`: `images_by_subject` then and of `subjects`. Images that could not be used may have been
    repaired. InputError where the data differ in another way; the message names the subjects.
    """
    path, unusable = saved.path, saved.unusable
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
            f"{name}: has other images than {path} was trained on, of {listed(changed, _SHOWN)}. The run "
            "continues with the present ones."
        )
    differences = [
        f"{gone:,} of its {len(known):,} subjects have no image now" if gone else "",
        f"{len(new):,} subjects are new: {listed(new, _SHOWN)}" if new else "",
        f"{len(changed):,} subjects have other images: {listed(changed, _SHOWN)}" if changed else "",
        "" if new or gone or changed else "the same images are in another order",
    ]
    classes = " The head has one class per subject, so these must remain." if new or gone else ""
    raise InputError(
        f"{path}: was trained on other data than {name} has now: "
        f"{'; '.join(each for each in differences if each)}.{classes} A run is resumed and evaluated on the "
        "same data; only single images may be removed, and unreadable ones repaired."
    )


def step_of(path: Path, checkpoint: object) -> int:
    """Optimiser steps that a checkpoint has done; InputError if it does not say."""
    step = checkpoint.get("global_step") if isinstance(checkpoint, Mapping) else None
    if type(step) is not int or not 0 <= step < 1 << 63:
        raise InputError(f"{path}: is no checkpoint of main.py: its global_step is {step!r}.")
    return step


def place_of(checkpoint: Path) -> tuple[str, str]:
    """`root` and `prefix`, as `run_folder` takes them, of the folder that a checkpoint is in."""
    folder = Path(os.path.abspath(checkpoint)).parent
    return str(folder.parent), folder.name.rpartition("_")[0] or folder.name
