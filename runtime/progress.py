"""Progress bars: tqdm on a terminal, one line per minute in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 60.0


class _Lines(tqdm):  # type: ignore[type-arg]
    """Prints a line per minute, and the final state if `leave` is set."""

    _next: float | None = None

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write the state if the last line is a minute old."""
        now = time.monotonic()
        if self._next is None:
            self._next = now + SECONDS_BETWEEN_LINES
        elif now >= self._next:
            self._next = now + SECONDS_BETWEEN_LINES
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def close(self) -> None:
        """Write the final state."""
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)  # type: ignore[attr-defined]
        if self.leave:
            self.fp.write(f"{self}\n")
            self.fp.flush()


def progress_bar(iterable: Iterable[Any] | None = None, **options: Any) -> tqdm[Any]:
    """A `tqdm.tqdm` on stderr with these options; if stderr is not a terminal, one that writes lines."""
    kind = tqdm if sys.stderr is not None and sys.stderr.isatty() else _Lines
    return kind(iterable, **options)
