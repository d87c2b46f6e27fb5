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


@pytest.mark.parametrize(
    ("figures", "kept"), [([0.5, 0.8, 0.6, 0.8, 0.7], 4), ([0.9, 0.8, 0.7], 1), ([0.1, 0.2, 0.3], 3)]
)
def test_the_last_of_equally_good_epochs_is_kept(tmp_path: Path, figures: list[float], kept: int) -> None:
    keep = KeepBest(
        tmp_path,
        "best",
        monitor="figure",
        mode="max",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=len(figures),
        callbacks=[keep],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(_Graded(figures), torch.utils.data.DataLoader(torch.zeros(1, 1)))
    assert [path.name for path in tmp_path.iterdir()] == ["best.ckpt"]
    state = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert state["epochs_seen"] == kept
