"""Faults of validation data: found before the first epoch, and none of them costs training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import main
import train_val
from data.sources.pair_files import read_pair_set, write_pair_set
from runtime.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize(("stage", "workers"), [("backbone_stage", 0), ("coreset_stage", 2)])
def test_a_run_that_died_in_validation_goes_on_exactly(
    stage: str,
    workers: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = request.getfixturevalue(stage) | {"epochs": 3, "epoch_items": 16, "num_workers": workers}
    main.train(flags | {"prefix": "whole", "save_all_models": True})
    kind = train_val.FaceCoresetNet if stage == "coreset_stage" else train_val.BackboneTrainer
    original = kind.validation_step

    def validation_step(self: Any, *batch: Any) -> None:
        if self.current_epoch == 1:
            raise InputError("a broken image")
        original(self, *batch)

    monkeypatch.setattr(kind, "validation_step", validation_step)
    with pytest.raises(InputError, match="a broken image"):
        main.train(flags | {"prefix": "broken", "save_all_models": True})
    monkeypatch.setattr(kind, "validation_step", original)
    broken, whole = tmp_path / "experiments" / "broken_0", tmp_path / "experiments" / "whole_0"
    assert torch.load(broken / "last.ckpt", weights_only=True)["global_step"] == 4
    main.train({"resume_from_checkpoint": str(broken / "last.ckpt")})
    for name in ("last.ckpt", "best.ckpt", "epoch_0.ckpt", "epoch_1.ckpt", "epoch_2.ckpt"):
        one, other = (torch.load(run / name, weights_only=True) for run in (broken, whole))
        torch.testing.assert_close(one["state_dict"], other["state_dict"], rtol=0, atol=0)
        assert one["global_step"] == other["global_step"]
        # What marks a checkpoint as written before validation is in none that is written after it.
        progress = "epoch_loop.val_loop.batch_progress"
        assert one["loops"]["fit_loop"][progress] == other["loops"]["fit_loop"][progress]


def broken_pair_set(folder: Path) -> Path:
    """mixed.bin with image 3 cut short, image 9 of another size, and image 5 equal to image 3."""
    path = folder / "val" / "mixed.bin"
    pairs = read_pair_set(path)
    images = list(pairs.images)
    images[3] = images[5] = images[3][:400]
    images[9] = cv2.imencode(".png", np.zeros((96, 112, 3), np.uint8))[1].tobytes()
    write_pair_set(path, images, pairs.is_mated)
    return path


def test_broken_images_of_a_pair_set_are_found_before_training(
    backbone_stage: dict[str, Any], tmp_path: Path
) -> None:
    broken_pair_set(tmp_path)
    with pytest.raises(InputError) as fault:
        main.train(backbone_stage)
    said = str(fault.value)
    assert "mixed: 2 of its images" in said
    assert "image 3 (pair 1)" in said
    assert "image 9 (pair 4): the image is 112 x 96 pixels" in said
    assert not (tmp_path / "experiments").exists()


@pytest.mark.parametrize(
    ("mated", "facts"),
    [
        ([True] * 12, "12 mated and 0 non-mated"),
        ([False] * 12, "0 mated and 12 non-mated"),
        ([True, False] * 4, "4 mated and 4 non-mated"),
    ],
)
def test_a_pair_set_that_cannot_carry_ten_folds_is_refused_in_training(
    backbone_stage: dict[str, Any], tmp_path: Path, mated: list[bool], facts: str
) -> None:
    pairs = read_pair_set(tmp_path / "val" / "mixed.bin")
    path = tmp_path / "val" / "odd.bin"
    write_pair_set(path, pairs.images[: 2 * len(mated)], mated)
    with pytest.raises(InputError, match=rf"{path}: {facts}"):
        main.train(backbone_stage)


@pytest.mark.parametrize("separate", [False, True])
def test_broken_images_of_held_out_subjects_are_found_before_training(
    coreset_stage: dict[str, Any], tmp_path: Path, separate: bool
) -> None:
    flags = dict(coreset_stage)
    if separate:
        del flags["held_out"]
        folder = tmp_path / "others"
        for subject in ("s000", "s001"):
            (tmp_path / "imgs" / subject).rename(folder.parent / subject)
        folder.mkdir()
        for subject in ("s000", "s001"):
            (tmp_path / subject).rename(folder / subject)
        flags["val_data_path"] = str(folder)
        broken = [folder / "s001" / "2.png"]
    else:
        broken = [tmp_path / "imgs" / f"s{subject:03}" / "2.png" for subject in range(8)]
    for path in broken:
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError) as fault:
        main.train(flags)
    # Of those that are trained on nothing is known yet.
    named = [path for path in broken if str(path) in str(fault.value)]
    assert len(named) == (1 if separate else 3)
    assert not (tmp_path / "experiments").exists()
