"""Errors and warnings that tell the user what to correct.

Commands catch `InputError` only, so that a bug keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

_Value = TypeVar("_Value")


class InputError(Exception):
    """Says what is wrong, where (file, line, key), what was expected and what to do."""

    @classmethod
    def from_faults(cls, faults: Sequence[str]) -> InputError:
        """One message of all faults, one per line, so that they can be corrected at once."""
        return cls("\n".join(faults))


def valid_names(given: str, names: Iterable[str]) -> str:
    """For the message on an unknown name: the valid names, and the nearest one to what was given."""
    names = list(names)
    return f"Valid are {', '.join(names) or 'none'}.{did_you_mean(given, names)}"


def did_you_mean(given: str, names: Iterable[str], cutoff: float = 0.4) -> str:
    """The question after a message on an unknown name, with a space before it; '' if no name is near."""
    near = difflib.get_close_matches(given, list(names), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


class InputWarning(UserWarning):
    """A sentence that commands print on stderr; the command continues."""


@dataclass
class Faults:
    """Collects faults of flags and data, to report all of them in one message."""

    sentences: list[str] = field(default_factory=list)

    def of(self, step: Callable[[], _Value]) -> _Value | None:
        """The result of `step`; None if it raises an InputError, whose message is kept."""
        try:
            return step()
        except InputError as fault:
            self.sentences.append(str(fault))
            return None

    def raise_if_any(self) -> None:
        """Raise InputError with all sentences, if there are any."""
        if self.sentences:
            raise InputError.from_faults(self.sentences)
