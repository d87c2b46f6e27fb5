"""Which epoch best.ckpt is of."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from run_folder import KeepBest


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


def kept_epoch(
    folder: Path,
    figures: list[float],
    *,
    resumed: bool = False,
    before: Path | None = None,
) -> int:
    """Trains these epochs; `resumed`: stops after all but the last and goes on from the best one's file.

    `before`: another folder, for what comes before it stops.
    """

    def run(epochs: int, folder: Path, start: Path | None = None) -> None:
        keep = KeepBest(
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

    if resumed:
        first = before or folder
        run(len(figures) - 1, first)
        run(len(figures), folder, first / "best.ckpt")
    else:
        run(len(figures), folder)
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
    assert kept_epoch(tmp_path, figures) == kept


@pytest.mark.parametrize(("last", "kept"), [(0.89, 1), (0.9, 3), (0.91, 3)])
def test_a_resumed_run_remembers_the_best(tmp_path: Path, last: float, kept: int) -> None:
    assert kept_epoch(tmp_path, [0.9, 0.8, last], resumed=True) == kept


def test_a_run_that_goes_on_in_another_folder_keeps_its_own_best_there(tmp_path: Path) -> None:
    folder, before = tmp_path / "new", tmp_path / "old"
    assert kept_epoch(folder, [0.9, 0.1], resumed=True, before=before) == 2
