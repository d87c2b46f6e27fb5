"""The fault that a person can mend. Commands catch this class alone, so that a bug keeps its traceback."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(Exception):
    """Says what is wrong, where (file, line, key), what was expected and what to do."""

    @classmethod
    def from_faults(cls, faults: Sequence[str]) -> InputError:
        """Joins all faults of one input in one message, one a line, so that they are mended in one go."""
        return cls("\n".join(faults))


class InputWarning(UserWarning):
    """What a person should look at, though the work goes on; commands print it as a sentence."""
