"""Training images that cannot be read: one sentence, nothing lost, and the ways to go on."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from data.sampling.positions import PositionSampler
from runs.components import RunRequest
from runtime.errors import InputError, InputWarning

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PER_SUBJECT = 6


@pytest.fixture(autouse=True)
def _not_found_by_the_colour_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads a sample of large sets, and all of these."""
    monkeypatch.setattr(RunRequest, "colour_warnings", lambda *_: [])


@pytest.fixture
def templates(coreset_stage: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The coreset stage with the last three subjects in a folder of their own."""
    flags = {name: value for name, value in coreset_stage.items() if name != "held_out"}
    for subject in ("s005", "s006", "s007"):
        (tmp_path / "others" / subject).parent.mkdir(exist_ok=True)
        (tmp_path / "imgs" / subject).rename(tmp_path / "others" / subject)
    return flags | {"val_data_path": str(tmp_path / "others"), "epoch_items": 24}


def run_of(folder: Path, name: str) -> Path:
    return folder / "experiments" / name


def last_of(run: Path) -> dict[str, Any]:
    return torch.load(run / "last.ckpt", weights_only=True)


def image(folder: Path, row: int) -> Path:
    return folder / "imgs" / f"s{row // PER_SUBJECT:03}" / f"{row % PER_SUBJECT}.png"


def first_batches(subjects: int, items: int, seed: int = 42) -> list[list[int]]:
    """Rows of the batches of the first epoch."""
    sampler = PositionSampler(num_rows=subjects * PER_SUBJECT, num_items=items, batch_size=8, seed=seed)
    return [[item.row for item in batch] for batch in sampler]


def late_subject(seed: int) -> int | None:
    """A subject of the second batch and not of the first, of five subjects."""
    first, second = ({row // PER_SUBJECT for row in batch} for batch in first_batches(5, 24, seed)[:2])
    return min(second - first, default=None)


def cut_short(paths: list[Path]) -> list[bytes]:
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        path.write_bytes(path.read_bytes()[:200])
    return contents


@pytest.mark.parametrize(
    ("stage", "workers", "accumulate"),
    [("backbone_stage", 0, 1), ("backbone_stage", 2, 1), ("backbone_stage", 0, 4), ("templates", 1, 1)],
)
def test_broken_image_stops_the_run_which_resumes_after_repair(
    stage: str, workers: int, accumulate: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    more = {"num_workers": workers, "accumulate_grad_batches": accumulate, "epochs": 2}
    seed = next(seed for seed in range(100) if late_subject(seed) is not None)
    flags = request.getfixturevalue(stage) | more | ({"seed": seed} if stage == "templates" else {})
    main.train(flags | {"prefix": "whole"})
    if stage == "templates":
        # Of a template's subject any image may be drawn, so all are broken.
        first = (late_subject(seed) or 0) * PER_SUBJECT
        step, broken = 1, [image(tmp_path, first + number) for number in range(PER_SUBJECT)]
    else:
        batch = 5 if accumulate > 1 else 3
        step, broken = batch // accumulate, [image(tmp_path, first_batches(8, 48)[batch][0])]
    contents = cut_short(broken)
    with pytest.raises(InputError) as fault:
        main.train(flags | {"prefix": "broken"})
    said, run = str(fault.value), run_of(tmp_path, "broken_0")
    assert any(str(path) in said for path in broken)
    assert "Traceback" not in said
    assert str(run / "last.ckpt") in said
    assert last_of(run)["global_step"] == step
    for path, content in zip(broken, contents, strict=True):
        path.write_bytes(content)
    main.train({"resume_from_checkpoint": str(run / "last.ckpt")})
    one, other = last_of(run), last_of(run_of(tmp_path, "whole_0"))
    assert one["global_step"] == other["global_step"]
    if accumulate == 1:
        torch.testing.assert_close(one["state_dict"], other["state_dict"], rtol=0, atol=0)


@pytest.mark.parametrize("advice", ["remove", "skip"])
def test_run_resumes_without_the_broken_image(
    backbone_stage: dict[str, Any], tmp_path: Path, advice: str
) -> None:
    flags = backbone_stage | {"epochs": 2, "batch_size": 4}
    broken = image(tmp_path, first_batches(8, 48)[2][0])
    cut_short([broken])
    with pytest.raises(InputError):
        main.train(flags)
    run = run_of(tmp_path, "run_0")
    stopped = last_of(run)["global_step"]
    assert 0 < stopped < 12
    flags = {"resume_from_checkpoint": str(run / "last.ckpt")}
    if advice == "remove":
        broken.unlink()
    else:
        flags["skip_bad_images"] = True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main.train(flags)
    (note,) = [str(w.message) for w in caught if issubclass(w.category, InputWarning)]
    assert f"{broken.parent.name} (6 images then, 5 now)" in note
    # The length of an epoch is kept, from which the position follows: 12 steps, and not 47 // 4.
    assert last_of(run)["global_step"] == 24
    written = json.loads((run / "run.json").read_text())
    assert written["images"] == 47
    assert written.get("skipped_images", {}).get("count") == (1 if advice == "skip" else None)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ("a subject is gone", ["1 of its 8 subjects"]),
        ("a subject is new", ["1 subjects are new: s100"]),
        ("an image is new", ["s002 (6 images then, 7 now)"]),
        ("images change places", ["s002 (6 images then, 5 now)", "s003 (6 images then, 7 now)"]),
        ("an image is another", ["1 subjects have other images: s002 (6 images then, 6 now)"]),
        ("another order", ["in another order"]),
    ],
)
def test_resuming_says_what_differs(
    backbone_stage: dict[str, Any], tmp_path: Path, change: str, facts: list[str]
) -> None:
    main.train(backbone_stage | {"epochs": 1, "epoch_items": 8})
    folder = tmp_path / "imgs"
    if change == "a subject is gone":
        (folder / "s003").rename(tmp_path / "s003")
    elif change == "a subject is new":
        (folder / "s100").mkdir()
        (folder / "s100" / "0.png").write_bytes((folder / "s000" / "0.png").read_bytes())
    elif change == "an image is new":
        (folder / "s002" / "new.png").write_bytes((folder / "s002" / "0.png").read_bytes())
    elif change == "images change places":
        (folder / "s002" / "0.png").rename(folder / "s003" / "new.png")
    elif change == "an image is another":
        (folder / "s002" / "0.png").write_bytes((folder / "s002" / "1.png").read_bytes())
    else:
        (folder / "s002" / "0.png").rename(folder / "s002" / "9.png")
    with pytest.raises(InputError) as fault:
        main.train({"resume_from_checkpoint": str(run_of(tmp_path, "run_0") / "last.ckpt"), "epochs": 2})
    assert all(fact in str(fault.value) for fact in facts), fault.value


@pytest.mark.parametrize("stage", ["backbone_stage", "templates", "features"])
def test_broken_images_are_counted_and_excluded(
    stage: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = request.getfixturevalue("templates" if stage == "features" else stage)
    if stage == "features":
        flags = flags | {"cache_features": str(tmp_path / "store"), "views": 1}
    broken = [image(tmp_path, 3), image(tmp_path, 10)]
    broken += [] if stage == "backbone_stage" else [tmp_path / "others" / "s006" / "0.png"]
    cut_short(broken)
    main.train(flags | {"skip_bad_images": True, "epochs": 1})
    out, err = capsys.readouterr()
    run = run_of(tmp_path, "run_0")
    written = json.loads((run / "run.json").read_text())
    count = 2 if stage == "backbone_stage" else 3
    assert written["skipped_images"]["count"] == count
    assert all(str(path) in " ".join(written["skipped_images"]["first"]) for path in broken)
    assert written["images"] == (46 if stage == "backbone_stage" else 28)
    for said in (out, err):
        assert f"{count} images" in said
        assert str(broken[0]) in said
    main.train({"resume_from_checkpoint": str(run / "last.ckpt"), "epochs": 2})
    assert last_of(run)["global_step"] == 2 * (written["epoch_items"] // 8)


def test_run_without_usable_images_is_refused(backbone_stage: dict[str, Any], tmp_path: Path) -> None:
    cut_short(sorted((tmp_path / "imgs").glob("*/*.png")))
    with pytest.raises(InputError, match="none of its 48 images"):
        main.train(backbone_stage | {"skip_bad_images": True})
