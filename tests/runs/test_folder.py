"""Which epoch best.ckpt is of, where a resumed run writes, and what it takes along."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from runs.checkpoints import BestCheckpoint, PeriodicCheckpoint
from runs.folder import LAST, earlier_starts, run_folder, write_run_json
from runs.metrics_log import MetricsLogger, metrics_before
from runs.saved_run import place_of
from runtime.errors import InputError
from runtime.json_files import json_text


class _Graded(pl.LightningModule):
    """Logs the given figure after each epoch; its one value counts the epochs."""

    def __init__(self, figures: list[float]) -> None:
        super().__init__()
        self.figures = figures
        self.epochs_seen = nn.Parameter(torch.zeros(()))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return 0 * self.epochs_seen

    def on_train_epoch_end(self) -> None:
        self.log("figure", self.figures[self.current_epoch])
        with torch.no_grad():
            self.epochs_seen += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(folder: Path, figures: list[float], *, epochs: int, start: Path | None = None) -> None:
    keep = BestCheckpoint(
        folder,
        "best",
        monitor="figure",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[keep],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.utils.data.DataLoader(torch.zeros(1, 1))
    trainer.fit(_Graded(figures), data, ckpt_path=start, weights_only=True)


def epoch_of(folder: Path) -> int:
    assert [path.name for path in folder.iterdir()] == ["best.ckpt"]
    return int(torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]["epochs_seen"])


@pytest.mark.parametrize(
    ("figures", "kept"),
    [
        ([0.90, 0.86, 0.80, 0.853], 1),
        ([0.5, 0.8, 0.6, 0.8, 0.7], 4),
        ([0.1, 0.2, 0.3], 3),
        ([0.7, 0.9, 0.8999, 1.0, 0.9], 4),
        ([float("nan"), 0.5, float("nan")], 2),
    ],
)
def test_the_epoch_with_the_highest_figure_is_kept(tmp_path: Path, figures: list[float], kept: int) -> None:
    train(tmp_path, figures, epochs=len(figures))
    assert epoch_of(tmp_path) == kept


@pytest.mark.parametrize(("last", "kept"), [(0.89, 1), (0.9, 3), (0.91, 3)])
def test_a_resumed_run_remembers_the_best(tmp_path: Path, last: float, kept: int) -> None:
    train(tmp_path, [0.9, 0.8, last], epochs=2)
    train(tmp_path, [0.9, 0.8, last], epochs=3, start=tmp_path / "best.ckpt")
    assert epoch_of(tmp_path) == kept


def test_resumed_run_without_best_checkpoint_writes_one(tmp_path: Path) -> None:
    folder, before = tmp_path / "new", tmp_path / "old"
    train(before, [0.9, 0.1], epochs=1)
    train(folder, [0.9, 0.1], epochs=2, start=before / "best.ckpt")
    assert epoch_of(folder) == 2


HEADER = "a,step,b\r\n"
# As versions without a checksum wrote it.
RECORD = '{"flags": {}, "starts": [{"command": ["main.py"]}]}'


def test_metrics_before_a_step_are_kept_unchanged(tmp_path: Path) -> None:
    rows = ["0.10,0,\r\n", ",3,1e-05\r\n", "2,4,\r\n", "7,5,\r\n", ",3,nan\r\n"]
    path = tmp_path / "metrics.csv"
    path.write_text(HEADER + "".join(rows) + "1,3", newline="")
    assert metrics_before(path, 4) == HEADER + rows[0] + rows[1] + rows[4]
    assert metrics_before(path, 0) == HEADER
    path.write_text("")
    assert metrics_before(path, 4) == ""


def test_metrics_are_appended_to_existing_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,loss,step\r\n0,0.1234567890123456789,0\r\n0,2.0,1\r\n", newline="")
    logger = MetricsLogger(tmp_path)
    # Validated again, as the checkpoint was written before validation: the same figures.
    logger.log_metrics({"loss": 2.0, "epoch": 0}, 1)
    logger.log_metrics({"val": 3.0, "epoch": 0}, 1)
    logger.log_metrics({"loss": 1.0, "epoch": 1}, 2)
    logger.log_metrics({"loss": 0.5, "epoch": 1}, 3)
    assert path.read_text().splitlines() == [
        "epoch,loss,step,val",
        "0,0.1234567890123456789,0,",
        "0,2.0,1,",
        "0,,1,3.0",
        "1,1.0,2,",
        "1,0.5,3,",
    ]


def stopped_run(folder: Path, best_step: int) -> Path:
    """A run folder that stopped after step 4; gives its last.ckpt."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(RECORD)
    (folder / "metrics.csv").write_text(HEADER + "1,3,\r\n1,4,\r\n", newline="")
    torch.save({"global_step": best_step}, folder / "best.ckpt")
    for name in ("last.ckpt", "epoch_0.ckpt"):
        torch.save({"global_step": 4}, folder / name)
    return folder / "last.ckpt"


def test_resumed_run_continues_in_its_folder_by_default(tmp_path: Path) -> None:
    last = stopped_run(tmp_path / "out" / "my_run_3", 2)
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    assert place_of(last) == (str(out), "my_run")
    assert run_folder(out, "my_run", last, step=4) == last.parent
    assert (last.parent / "metrics.csv").read_text().splitlines() == ["a,step,b", "1,3,"]
    assert run_folder(elsewhere, "my_run", last, step=4) == elsewhere / "my_run_0"
    assert run_folder(out, "my", last, step=4) == out / "my_0"
    assert run_folder(out, "my_run", last.with_name("epoch_0.ckpt"), step=4) == out / "my_run_0"


def test_run_folder_is_found_from_any_path_to_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = stopped_run(tmp_path / "out" / "plain", 2)
    monkeypatch.chdir(last.parent)
    for path in (Path("last.ckpt"), Path("../plain/last.ckpt"), last):
        root, prefix = place_of(path)
        assert (root, prefix) == (str(tmp_path / "out"), "plain")
        assert run_folder(Path(root), prefix, path, step=4).resolve() == last.parent


DAMAGED = {
    "empty": "",
    "cut": RECORD[: len(RECORD) // 2],
    "text": "starts",
    "null": "null",
    "list": "[]",
    "number": "3",
    "no_key": "{}",
    "starts_null": '{"starts": null}',
    "starts_number": '{"starts": 3}',
    "starts_object": '{"starts": {}}',
    "starts_texts": '{"starts": ["a"]}',
    "deep": '{"starts": ' + "[" * 100_000,
    "long_number": '{"starts": [], "a": 1' + "0" * 400 + "}",
    "not_finite": '{"starts": [], "a": 1e999}',
    "nan": '{"starts": [], "a": NaN}',
    "bytes": b"\xff\xfe\x00",
    "flipped": json_text({"starts": [{"command": ["a"]}]}).replace('"a"', '"b"'),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_run_json_is_reported_before_anything_is_changed(tmp_path: Path, kind: str) -> None:
    last = stopped_run(tmp_path / "out" / "run_0", 2)
    content = DAMAGED[kind]
    (last.parent / "run.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    before = {path: path.read_bytes() for path in last.parent.iterdir()}
    for root in (tmp_path / "out", tmp_path / "new"):
        with pytest.raises(InputError, match=r"run\.json"):
            run_folder(root, "run", last, step=4)
    with pytest.raises(InputError, match=r"run\.json"):
        write_run_json(last.parent, {}, {})
    assert {path: path.read_bytes() for path in last.parent.iterdir()} == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "content", [b"a,b\r\n1,2\r\n", b"a,step\r\n1,x\r\n", b"\xff\xfe\r\n", b'"a,step\r\n']
)
def test_damaged_metrics_are_reported_before_anything_is_changed(tmp_path: Path, content: bytes) -> None:
    last = stopped_run(tmp_path / "out" / "run_0", 2)
    (last.parent / "metrics.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"metrics\.csv"):
        run_folder(tmp_path / "new", "run", last, step=4)
    assert not (tmp_path / "new").exists()


def test_run_json_records_every_start(tmp_path: Path) -> None:
    for _ in range(2):
        write_run_json(tmp_path, {"lr": 0.1}, {"classes": 3})
    assert [set(start) for start in earlier_starts(tmp_path)] == [{"command", "versions", "commit"}] * 2


@pytest.mark.parametrize(("best_step", "comes_along"), [(2, True), (4, True), (6, False)])
def test_new_folder_gets_a_copy_of_the_run(tmp_path: Path, best_step: int, comes_along: bool) -> None:
    last = stopped_run(tmp_path / "out" / "run_0", best_step)
    folder = run_folder(tmp_path / "new", "run", last, step=4)
    assert (folder / "metrics.csv").read_text().splitlines() == ["a,step,b", "1,3,"]
    assert (folder / "run.json").read_text() == RECORD
    assert (folder / "best.ckpt").is_file() == comes_along


@pytest.mark.parametrize(("last", "kept"), [(0.1, 1), (0.95, 3)])
def test_best_is_remembered_where_the_folder_was_moved(tmp_path: Path, last: float, kept: int) -> None:
    figures = [0.9, 0.2, last]
    train(tmp_path / "old", figures, epochs=2)
    (tmp_path / "old").rename(tmp_path / "new")
    train(tmp_path / "new", figures, epochs=3, start=tmp_path / "new" / "best.ckpt")
    assert epoch_of(tmp_path / "new") == kept


def test_all_processes_use_the_path_of_process_0(tmp_path: Path) -> None:
    written: list[Any] = []
    trainer, module = MagicMock(), MagicMock()
    trainer.strategy.broadcast = lambda mine: str(tmp_path / "run_0" / LAST)
    trainer.save_checkpoint = written.append
    trainer.current_epoch, trainer.max_epochs = 0, 1
    trainer.ckpt_path = tmp_path / "resumed.ckpt"
    # Only process 0 knows the run's folder.
    keep = PeriodicCheckpoint(tmp_path)
    keep.setup(trainer, module, "fit")
    assert module.last_checkpoint == str(tmp_path / "resumed.ckpt")
    keep.on_train_epoch_end(trainer, module)
    assert module.last_checkpoint == str(tmp_path / "run_0" / LAST)
    assert written == [tmp_path / "run_0" / LAST]
