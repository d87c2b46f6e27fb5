"""What commands share: flags that several of them have, exit codes, and how a fault is told.

Only commands import this; what they do lives elsewhere.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NoReturn, TextIO

from runtime.disk_faults import fault_text
from runtime.errors import InputError, InputWarning
from runtime.escaping import escaped_text
from runtime.files import private_files
from runtime.process_faults import is_first, is_watching, leave, second_signal_ends

if TYPE_CHECKING:
    import torch

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
# As of a process that SIGPIPE ends.
EXIT_NO_READER = 141
EXIT_BUG = 1
# Progress bars move the cursor up and down by these alone.
_CURSOR_MOVES = re.compile(r"(\n|\x1b\[A)*")


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows every default and takes no shortened flags; `description`: a module's docstring."""
    return _Parser(
        description=description,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )


def add_device(group: argparse._ActionsContainer) -> None:
    """Adds --device."""
    group.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda or cuda:N")


def chosen_device(text: str) -> torch.device:
    """The device that --device names.

    Raises:
        InputError: no such device here.
    """
    # Imported late, so that --help and commands without a network start fast.
    import torch

    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise InputError(f"--device {text}: expected auto, cpu, cuda or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {text}: expected auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"--device {text}: this machine shows {torch.cuda.device_count()} GPUs to PyTorch. "
            "Use --device cpu, or install a CUDA build of torch."
        )
    return device


def run_command(work: Callable[[], None]) -> int:
    """Runs a command and gives its exit code; what a user can mend is printed without a traceback.

    That is an InputError, and a fault of the machine or of a path (a full disk, no permission). All files
    that the command writes are private. Under several processes a fault ends all of them, and is printed by
    the one that it is of.
    """
    with escaped_output():
        return _run(work)


def _run(work: Callable[[], None]) -> int:
    try:
        with second_signal_ends(), private_files(), warnings.catch_warnings():
            warnings.showwarning = _show_warning
            work()
            sys.stdout.flush()
    except InputError as fault:
        return leave(f"error: {fault}", EXIT_BAD_INPUT, may_follow=False)
    except BrokenPipeError:
        if is_watching():
            return leave(traceback.format_exc(), EXIT_BUG, may_follow=True)
        # The reader of the output, such as `head`, has gone.
        return EXIT_NO_READER
    except KeyboardInterrupt:
        return leave("interrupted", EXIT_INTERRUPTED, may_follow=False)
    except Exception as fault:
        if isinstance(fault, OSError) and (text := fault_text(fault)) is not None:
            return leave(f"error: {text}", EXIT_BAD_INPUT, may_follow=False)
        if not is_watching():
            raise
        return leave(traceback.format_exc(), EXIT_BUG, may_follow=True)
    return 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of ours as a sentence, any other one as Python shows it."""
    text = f"warning: {message}\n"
    if issubclass(category, InputWarning):
        if not is_first():
            return
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


@contextmanager
def escaped_output() -> Iterator[None]:
    """In this block no text that is printed ends the program or commands the terminal.

    Characters that the console's code page lacks and control characters, as in names of files, are written
    as escapes.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        _Escaping(stream) if isinstance(stream, io.TextIOWrapper) else stream for stream in before
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # noqa: PERF203 - two streams
                # A full disk, or a reader such as `head` has gone: Python would try again when it ends.
                with suppress(OSError), open(os.devnull, "wb") as nothing:
                    os.dup2(nothing.fileno(), stream.fileno())
        sys.stdout, sys.stderr = before


class _Escaping(io.TextIOWrapper):
    """Writes to the same buffer as another stream, which it does not close."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        stream.flush()
        super().__init__(
            stream.buffer,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )

    def write(self, text: str) -> int:
        """See the base class. Progress bars begin with a carriage return."""
        if not _CURSOR_MOVES.fullmatch(text):
            bar = text.startswith("\r")
            super().write("\r" * bar + escaped_text(text[bar:]))
        else:
            super().write(text)
        return len(text)

    def close(self) -> None:
        """Leaves the buffer to the other stream."""
        with suppress(ValueError, OSError):
            self.flush()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """See the base class; file names of the command line may hold anything."""
        super().error(escaped_text(message))


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside each flag, and descriptions with their own line breaks."""
