"""Names and lines for messages, shortened to what is readable."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str], most: int = 3) -> str:
    """'a, b and 3 more': the first `most` names and the number of the others."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def first_lines(lines: Sequence[str], most: int, others: str = "... and {} more.") -> list[str]:
    """The first `most` lines, and a line with the number of the others in place of {}."""
    more = len(lines) - most
    return [*lines[:most], *([others.format(f"{more:,}")] if more > 0 else [])]


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; its type where the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shortened(name: str, length: int, tail: int) -> str:
    """A name of at most `length` characters; longer ones keep their last `tail`, which differ most."""
    return name if len(name) <= length else f"{name[: length - tail - 3]}...{name[-tail:]}"
