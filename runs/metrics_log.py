"""metrics.csv of a training run: written by a logger, cut where a resumed run continues."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from runtime.errors import InputError

METRICS = "metrics.csv"


class _AppendingWriter(ExperimentWriter):
    """Appends to an existing metrics.csv, which the base class would delete.

    A run resumed from a checkpoint before an epoch's validation validates again: a row of the last step with
    the same columns is not written twice.
    """

    def _check_log_dir_exists(self) -> None:
        self._last_step, self._columns_of_last_step = -1, set[frozenset[str]]()
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            self.metrics_keys = list(rows.fieldnames or [])
            for row in rows:
                if int(row["step"]) > self._last_step:
                    self._last_step, self._columns_of_last_step = int(row["step"]), set()
                self._columns_of_last_step.add(frozenset(name for name, value in row.items() if value))

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """See the base class."""
        if step != self._last_step or {"step", *metrics_dict} not in self._columns_of_last_step:
            super().log_metrics(metrics_dict, step)


class MetricsLogger(CSVLogger):
    """Appends rows to metrics.csv, one at a time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "", "", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """See the base class."""
        if not isinstance(self._experiment, _AppendingWriter):
            self._experiment = _AppendingWriter(self.log_dir)
        return self._experiment


def metrics_before(path: Path, step: int) -> str:
    """Text of a metrics.csv with the rows logged before an optimiser step, without an incomplete last row.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = file.read().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as fault:
        raise InputError(f"{path}: cannot be read ({fault}). Restore it from a copy, or remove it.") from None
    if not lines:
        return ""
    try:
        names = next(csv.reader(lines[:1]))
        rows = zip(lines[1:], csv.reader(lines[1:]), strict=True)
        place = names.index("step")
        whole = ((line, cells) for line, cells in rows if len(cells) == len(names) and line.endswith("\n"))
        return lines[0] + "".join(line for line, cells in whole if int(cells[place]) < step)
    except (ValueError, csv.Error) as fault:
        raise InputError(
            f"{path}: is damaged ({fault}). Expected columns of figures with 'step' among them. Restore it "
            "from a copy, or remove it: the run then continues without earlier figures."
        ) from None
