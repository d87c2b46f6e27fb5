"""Progress of long work: tqdm's bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0


class _Lines(tqdm):  # type: ignore[type-arg]
    """A line a minute, and the last state where tqdm would leave it on the screen."""

    _next: float | None = None

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Writes the state where the last line is a minute old, or the beginning where there is none."""
        now = time.monotonic()
        if self._next is None:
            self._next = now + SECONDS_BETWEEN_LINES
        elif now >= self._next:
            self._next = now + SECONDS_BETWEEN_LINES
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def close(self) -> None:
        """Writes the last state."""
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)  # type: ignore[attr-defined]
        if self.leave:
            self.fp.write(f"{self}\n")
            self.fp.flush()


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """A `tqdm.tqdm` with these options, on stderr; in a log one that writes lines."""
    kind = tqdm if sys.stderr is not None and sys.stderr.isatty() else _Lines
    return kind(iterable, **options)
